"""The OpenAPI 3.1 schema: what every operation shares, and the view that serves it.

A view's decorator says what is its own (summary, parameters, bodies, successes, conflicts).  The
answers that any operation may give, and the headers that every answer bears, are added here, from
what the operation is: with a scope, a path parameter, a query, a body.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from django.http import HttpRequest, HttpResponse
from drf_spectacular.extensions import OpenApiSerializerExtension
from drf_spectacular.generators import SchemaGenerator
from drf_spectacular.openapi import AutoSchema
from drf_spectacular.renderers import OpenApiJsonRenderer, OpenApiYamlRenderer
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiExample, OpenApiParameter, OpenApiResponse
from rest_framework import serializers

from core.problems import MEDIA_TYPE, invalid, only_get, problem_response
from core.query import DEFAULT_LIMIT, MAX_LIMIT

Schema = dict[str, Any]

PROBLEM: Schema = {"$ref": "#/components/schemas/Problem"}
REQUEST_ID = "0198f2d0-6d3c-7a52-9b1e-2f4c8a7d1e90"

# --- for decorators ---------------------------------------------------------------------------------


def query(
    name: str, description: str, type_: Any = OpenApiTypes.STR, *, enum: list[str] | None = None
) -> OpenApiParameter:
    """Return an optional query parameter."""
    return OpenApiParameter(name, type_, OpenApiParameter.QUERY, description=description, enum=enum)


PAGE = [
    OpenApiParameter(
        "limit",
        {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT, "default": DEFAULT_LIMIT},
        OpenApiParameter.QUERY,
        description="Most rows in the answer.",
    ),
    query("cursor", "`next_cursor` of the page before; the other parameters stay the same."),
]

SINCE = query("since", "Made at this time or later (ISO 8601; UTC without an offset).", OpenApiTypes.DATETIME)
UNTIL = query("until", "Made before this time (ISO 8601; UTC without an offset).", OpenApiTypes.DATETIME)

RATE_LIMIT_FIELDS = ("RateLimit", "RateLimit-Policy")


def location(*statuses: int) -> OpenApiParameter:
    """Return the `Location` header of the answers with these statuses."""
    return OpenApiParameter(
        "Location",
        {"type": "string", "format": "uri-reference"},
        OpenApiParameter.HEADER,
        response=list(statuses),
        description="Where to read what this answer is about.",
    )


def rate_limit(*statuses: int) -> list[OpenApiParameter]:
    """Return the rate limit's headers of the answers with these statuses."""
    return [
        OpenApiParameter(
            name,
            HEADERS[name]["schema"],
            OpenApiParameter.HEADER,
            response=list(statuses),
            description=HEADERS[name]["description"],
        )
        for name in RATE_LIMIT_FIELDS
    ]


Shape = type[serializers.Serializer[Any]]


def shape(
    name: str, doc: str, base: Shape = serializers.Serializer, **fields: serializers.Field[Any, Any, Any, Any]
) -> Shape:
    """Return a serializer class with these fields, for shapes whose members are called as Serializer's own are."""
    return type(name, (base,), {"__doc__": doc, **fields})


def page_of(item: Shape, name: str) -> Shape:
    """Return the shape of a list's page, named `name` in the schema."""
    return shape(
        name,
        "One page, newest first.",
        data=item(many=True),
        next_cursor=serializers.CharField(
            allow_null=True, help_text="Give it as `cursor` to read on; null on the last page."
        ),
    )


def conflict(description: str, code: str, detail: str, **members: Any) -> dict[tuple[int, str], OpenApiResponse]:
    """Return the 409 of an operation.  members: what the problem says on top."""
    example = _example(409, "Conflict", code, detail, **members)
    return {
        (409, MEDIA_TYPE): OpenApiResponse(PROBLEM, description, [OpenApiExample(code, example, media_type=MEDIA_TYPE)])
    }


# --- what every answer bears --------------------------------------------------------------------------

HEADERS: Schema = {
    "X-Request-Id": {
        "description": "The request's id: the one that was sent, or a fresh one.",
        "required": True,
        "schema": {"type": "string", "pattern": "^[A-Za-z0-9._:-]{1,128}$"},
        "example": REQUEST_ID,
    },
    "X-Response-Time": {
        "description": "How long the server took.",
        "required": True,
        "schema": {"type": "string", "pattern": r"^[0-9]+\.[0-9]{2}ms$"},
        "example": "3.21ms",
    },
    "Retry-After": {
        "description": "Seconds to wait before the next try.",
        "required": True,
        "schema": {"type": "string", "pattern": "^[1-9][0-9]*$"},
        "example": "5",
    },
    "RateLimit": {
        "description": "What is left of the quota (`r`) and the seconds until it is whole again (`t`); "
        "IETF draft-ietf-httpapi-ratelimit-headers. Absent when the organization has no limit.",
        "schema": {"type": "string"},
        "example": '"events";r=59999;t=42',
    },
    "RateLimit-Policy": {
        "description": "The quota (`q`) in a window of `w` seconds. Absent when the organization has no limit.",
        "schema": {"type": "string"},
        "example": '"events";q=60000;w=60',
    },
    "WWW-Authenticate": {
        "description": "How to authenticate (RFC 6750).",
        "required": True,
        "schema": {"type": "string"},
        "example": 'Bearer realm="triggers"',
    },
}

_EVERY_ANSWER = ("X-Request-Id", "X-Response-Time")


def _header_refs(*names: str) -> Schema:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


# --- the answers that are errors ----------------------------------------------------------------------

PROBLEM_SCHEMA: Schema = {
    "type": "object",
    "description": "An error (RFC 9457). Programs decide by `status` and `code`; `detail` is for people.",
    "required": ["type", "title", "status", "detail", "code", "request_id"],
    "properties": {
        "type": {"type": "string", "format": "uri-reference", "description": "Always `about:blank`; see `code`."},
        "title": {"type": "string", "description": "The status in words."},
        "status": {"type": "integer", "minimum": 400, "maximum": 599},
        "detail": {"type": "string", "description": "What is wrong, in a sentence."},
        "code": {"type": "string", "description": "What is wrong, in a word that doesn't change."},
        "request_id": {"type": ["string", "null"], "description": "As in `X-Request-Id`; quote it in a bug report."},
        "errors": {
            "type": "array",
            "description": "Each thing that is wrong with the request.",
            "items": {
                "type": "object",
                "required": ["pointer", "detail"],
                "properties": {
                    "pointer": {
                        "type": "string",
                        "description": "JSON pointer into the body (RFC 6901; empty for the whole), "
                        "`?name` for a query parameter, `#Name` for a header.",
                    },
                    "detail": {"type": "string"},
                },
            },
        },
    },
}


def _example(status: int, title: str, code: str, detail: str, **members: Any) -> Schema:
    return {
        "type": "about:blank", "title": title, "status": status, "detail": detail, "code": code,
        "request_id": REQUEST_ID, **members,
    }  # fmt: skip


def _refusal(description: str, *examples: Schema, headers: tuple[str, ...] = ()) -> Schema:
    return {
        "description": description,
        "headers": _header_refs(*headers, *_EVERY_ANSWER),
        "content": {
            MEDIA_TYPE: {"schema": PROBLEM, "examples": {example["code"]: {"value": example} for example in examples}}
        },
    }


REFUSALS: Schema = {
    "400": _refusal(
        "The request is not valid; `errors` names each wrong field. Nothing was stored.",
        _example(
            400, "Bad Request", "invalid", "The event is not valid.",
            errors=[{"pointer": "/type", "detail": "is required"}],
        ),
        _example(400, "Bad Request", "invalid_json", "The body is not valid JSON: unexpected end of data."),
    ),
    "401": _refusal(
        "No API key was given, or it is wrong, revoked or expired.",
        _example(401, "Unauthorized", "invalid_api_key", "The API key is not valid."),
        headers=("WWW-Authenticate",),
    ),
    "403": _refusal(
        "The key lacks the scope that this operation needs, or was asked to give more than it has.",
        _example(
            403, "Forbidden", "missing_scope", "This key lacks the scope events:write.", scope="events:write"
        ),
    ),
    "404": _refusal(
        "There is no such resource in this organization.",
        _example(404, "Not Found", "not_found", "There is no such resource."),
    ),
    "413": _refusal(
        "The body, or the number of events in a batch, is over the limit. Nothing was stored.",
        _example(
            413, "Request Entity Too Large", "too_large", "The body is over the limit of 262144 bytes.",
            limit_bytes=262144,
        ),
    ),
    "414": _refusal(
        "The URL is too long.",
        _example(414, "Request-URI Too Long", "uri_too_long", "The URL is longer than 4096 characters."),
    ),
    "415": _refusal(
        "The content type is missing or not one that this operation takes, or the body is compressed.",
        _example(
            415, "Unsupported Media Type", "unsupported_media_type", "The content type must be application/json."
        ),
    ),
    "429": _refusal(
        "Too many failed authentications from this address or, for events, over the organization's rate. "
        "Nothing was stored.",
        _example(429, "Too Many Requests", "rate_limited", "The organization may send 60000 events a minute."),
        headers=("Retry-After", *RATE_LIMIT_FIELDS),
    ),
    "500": _refusal(
        "A fault of the server; it was logged under the request's id.",
        _example(
            500, "Internal Server Error", "internal_error",
            "Something went wrong here. It was logged under the request id.",
        ),
    ),
    "503": _refusal(
        "The database can't be reached or, for events, too many accepted events wait. Nothing was stored; try again.",
        _example(
            503, "Service Unavailable", "backlog_full",
            "Too many accepted events are waiting. Nothing was stored; try again.",
        ),
        headers=("Retry-After",),
    ),
}  # fmt: skip


class ApiSchema(AutoSchema):
    """Describe an operation with the answers that it shares with others and the scope that it needs."""

    def get_operation(self, *args: Any, **kwargs: Any) -> Schema | None:
        """Return the operation, or None for one that is left out."""
        operation: Schema | None = super().get_operation(*args, **kwargs)
        if operation is None:
            return None
        responses: Schema = operation["responses"]
        for status in self._refusals(operation):
            responses.setdefault(status, {"$ref": f"#/components/responses/{status}"})
        operation["responses"] = dict(sorted(responses.items()))
        for response in responses.values():
            if "$ref" not in response:
                response["description"] = response["description"] or "Done."
                response["headers"] = {**response.get("headers", {}), **_header_refs(*_EVERY_ANSWER)}
        operation.setdefault("parameters", []).append({"$ref": "#/components/parameters/X-Request-Id"})
        if (scope := self._scope()) is not None:
            operation["description"] = f"{operation.get('description', '')}\n\nNeeds the scope `{scope}`.".strip()
            # OpenAPI 3.1 lets any scheme name the roles that an operation needs.
            operation["security"] = [{name: [scope] for name in way} for way in operation["security"]]
        return operation

    def _scope(self) -> str | None:
        view: Any = self.view
        scope = view.scopes[self.method]
        return scope.value if scope is not None else None

    def _refusals(self, operation: Mapping[str, Any]) -> list[str]:
        found = ["400", "401", "414", "429", "500", "503"]
        if self._scope() is not None:
            found.append("403")
        if "{" in self.path:
            found.append("404")
        if "requestBody" in operation:
            found += ["413", "415"]
        return found


class StrictSerializerSchema(OpenApiSerializerExtension):  # type: ignore[no-untyped-call]
    """A strict serializer refuses members that it doesn't know, and its schema says so."""

    target_class = "core.serializers.StrictSerializer"
    match_subclasses = True

    def map_serializer(self, auto_schema: AutoSchema, direction: Any) -> Schema:
        """Return what drf-spectacular makes of the fields, closed."""
        auto: Any = auto_schema
        return {**auto._map_serializer(self.target, direction, bypass_extensions=True), "additionalProperties": False}


def _drop_enum_ids(part: Any) -> None:
    """Drop the marks that drf-spectacular's own enum hook, which we don't use, would read."""
    if isinstance(part, dict):
        part.pop("x-spec-enum-id", None)
        part = list(part.values())
    if isinstance(part, list):
        for inner in part:
            _drop_enum_ids(inner)


def add_shared_components(result: Schema, **_: Any) -> Schema:
    """drf-spectacular's hook: add the components that operations refer to."""
    _drop_enum_ids(result)
    components = result["components"]
    components["schemas"] = dict(sorted({**components.get("schemas", {}), "Problem": PROBLEM_SCHEMA}.items()))
    components["headers"] = HEADERS
    components["responses"] = REFUSALS
    components["parameters"] = {
        "X-Request-Id": {
            "name": "X-Request-Id",
            "in": "header",
            "description": "Echoed in the answer and in the log when it is 1 to 128 letters, digits or `._:-`.",
            "schema": {"type": "string"},
        }
    }
    return result


# --- serving it -----------------------------------------------------------------------------------------


@lru_cache(maxsize=2)
def rendered_schema(form: str) -> bytes:
    """Return the schema as `json` or `yaml`.  It doesn't change while the process lives."""
    document = SchemaGenerator().get_schema(request=None, public=True)  # type: ignore[no-untyped-call]
    renderer = OpenApiYamlRenderer() if form == "yaml" else OpenApiJsonRenderer()
    text: bytes = renderer.render(document)
    return text


def schema_view(request: HttpRequest) -> HttpResponse:
    """Serve the schema: JSON, or YAML for `?format=yaml` or an `Accept` that asks for it."""
    if (refusal := only_get(request)) is not None:
        return refusal
    wanted = request.GET.get("format") or ("yaml" if "yaml" in request.headers.get("Accept", "") else "json")
    if wanted not in {"json", "yaml"}:
        return problem_response(request, invalid([("?format", "must be json or yaml")]))
    return HttpResponse(rendered_schema(wanted), content_type=f"application/{wanted}", headers={"Vary": "Accept"})
