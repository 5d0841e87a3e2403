"""Which parts of the API are deprecated, since when, and until when they work: one registry, like that of the problems.

Each app lists its deprecations in a module `deprecations`, which is imported when Django starts (`core.apps`).  The
headers of responses (`Deprecation`, RFC 9745; `Sunset`, RFC 8594), the marks in the OpenAPI document, and the generated
reference come from the registry.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson
from django.http import HttpRequest, HttpResponse, QueryDict
from django.utils.http import http_date

from core.json_body import body_that_was_read
from core.metrics.requests import route_of
from core.url_prefix import full_path

DOCUMENTATION = "/api/docs"


@dataclass(frozen=True)
class Deprecation:
    """An operation that is deprecated or, if one is named, its query parameter or the member of its body.

    method, route: as in the OpenAPI document, such as `GET` and `/api/events/{event_id}`.  instead: a sentence that
    says what to use.  sunset: the day from which it may be removed; None while that isn't decided.
    """

    method: str
    route: str
    since: datetime.date
    instead: str
    sunset: datetime.date | None = None
    parameter: str = ""
    field: str = ""

    @property
    def sentence(self) -> str:
        """Return a sentence for the documentation."""
        until = f", works until {self.sunset}" if self.sunset else ""
        return f"**Deprecated** since {self.since}{until}. {self.instead}"

    def is_used_by(self, parameters: QueryDict, body: bytes) -> bool:
        """Return whether a request to the operation uses what is deprecated."""
        if self.parameter:
            return self.parameter in parameters
        return not self.field or self.field in _members(body)


# By method and route.
registry: dict[tuple[str, str], list[Deprecation]] = {}


def register(*deprecations: Deprecation) -> None:
    """Add deprecations to the registry."""
    for one in deprecations:
        registry.setdefault((one.method, one.route), []).append(one)


def deprecation_headers(method: str, route: str, query: str, body: Callable[[], bytes]) -> Mapping[str, str]:
    """Return the headers for a request that uses something deprecated; if there are several, those of the first to be
    removed.

    route: the template.  body: returns the request's body, decompressed, as far as it was read.
    """
    listed = registry.get(("GET" if method == "HEAD" else method, route))
    if not listed:
        return {}
    parameters = QueryDict(query)
    used = [one for one in listed if one.is_used_by(parameters, body() if one.field else b"")]
    if not used:
        return {}
    headers = {
        "Deprecation": f"@{min(_seconds(one.since) for one in used)}",
        "Link": f'<{full_path(DOCUMENTATION)}>; rel="deprecation"; type="text/html"',
    }
    if ends := [_seconds(one.sunset) for one in used if one.sunset]:
        headers["Sunset"] = http_date(min(ends))
    return headers


def add_deprecation_headers(request: HttpRequest, response: HttpResponse) -> None:
    """Add the headers to a response of Django's, beside a `Link` that it already has."""
    if not registry:
        return
    headers = deprecation_headers(
        request.method or "", route_of(request), request.META.get("QUERY_STRING", ""),
        lambda: body_that_was_read(request) or b"",
    )  # fmt: skip
    for name, value in headers.items():
        response[name] = f"{response[name]}, {value}" if name == "Link" and response.has_header(name) else value


def mark_deprecations(result: dict[str, Any], **_: Any) -> dict[str, Any]:
    """Mark in the OpenAPI document what is deprecated.  A postprocessing hook of drf-spectacular.

    Raises LookupError for a deprecation of something that isn't there.
    """
    for one in (one for listed in registry.values() for one in listed):
        part = _find(result, one)
        part["deprecated"] = True
        part["description"] = f"{one.sentence} {part.get('description', '')}".strip()
    return result


def _find(document: dict[str, Any], one: Deprecation) -> dict[str, Any]:
    """Return the part of the OpenAPI document that describes what is deprecated."""
    try:
        operation: dict[str, Any] = document["paths"][one.route][one.method.lower()]
        if one.parameter:
            return next(part for part in operation["parameters"] if part.get("name") == one.parameter)
        if one.field:
            schema: Any = operation["requestBody"]["content"]["application/json"]["schema"]
            while "$ref" in schema:
                schema = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
            member: dict[str, Any] = schema["properties"][one.field]
            return member
    except (KeyError, StopIteration):
        raise LookupError(f"the API has nothing like {one}") from None
    return operation


def _members(body: bytes) -> set[str]:
    """Return the names of the members of a JSON object, or of the objects in an array."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        return set()
    return {name for one in (value if isinstance(value, list) else [value]) if isinstance(one, dict) for name in one}


def _seconds(day: datetime.date) -> int:
    return int(datetime.datetime.combine(day, datetime.time(), datetime.UTC).timestamp())
