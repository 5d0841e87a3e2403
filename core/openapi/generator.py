"""How drf-spectacular generates the schema: what is added to each operation, and the shared components."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from drf_spectacular.extensions import OpenApiSerializerExtension
from drf_spectacular.openapi import AutoSchema

from core.openapi.responses import (
    EVERY_RESPONSE,
    HEADERS,
    PROBLEM_SCHEMA,
    conflict_response,
    header_refs,
    shared_errors,
)
from core.openapi.types import Schema


class ApiSchema(AutoSchema):
    """Adds to each operation the error responses that it shares with others, and the scope that it needs."""

    def get_operation(self, *args: Any, **kwargs: Any) -> Schema | None:
        """Return the operation, or None for one that is left out."""
        operation: Schema | None = super().get_operation(*args, **kwargs)
        if operation is None:
            return None
        responses: Schema = operation["responses"]
        for status in self._shared_errors(operation):
            responses.setdefault(status, {"$ref": f"#/components/responses/{status}"})
        operation["responses"] = dict(sorted(responses.items()))
        for response in responses.values():
            if "$ref" not in response:
                response["description"] = response["description"] or "Done."
                response["headers"] = {**response.get("headers", {}), **header_refs(*EVERY_RESPONSE)}
        for parameter in operation.setdefault("parameters", []):
            if parameter["in"] == "path":
                parameter.setdefault("description", _describe_id(parameter["name"]))
        operation["parameters"].append({"$ref": "#/components/parameters/X-Request-Id"})
        if self._is_idempotent():
            self._add_idempotency_key(operation)
        if (scope := self._scope()) is not None:
            operation["description"] = f"{operation.get('description', '')}\n\nNeeds the scope `{scope}`.".strip()
            # Not in `security`: OpenAPI 3.1 lets any scheme name roles there, but linters and generators don't.
            operation["x-required-scope"] = scope
        return operation

    def _scope(self) -> str | None:
        view: Any = self.view
        scope = view.scopes[self.method]
        return scope.value if scope is not None else None

    def _is_idempotent(self) -> bool:
        """Return whether the method is one that `orgs.idempotency.idempotent` has decorated."""
        view: Any = self.view
        method = getattr(view, getattr(view, "action", None) or self.method.lower(), None)
        return getattr(method, "is_idempotent", False)

    def _add_idempotency_key(self, operation: Schema) -> None:
        operation["parameters"].append({"$ref": "#/components/parameters/Idempotency-Key"})
        responses = operation["responses"]
        for status, response in responses.items():
            if status.startswith("2"):
                response["headers"] |= header_refs("Idempotency-Replayed")
        in_use = conflict_response("idempotency_key_in_use", "idempotent_response_lost")
        own = responses.setdefault("409", in_use)
        if own is not in_use:
            own["description"] += "\n" + in_use["description"]
        reused = {"$ref": "#/components/responses/422"}
        own = responses.setdefault("422", reused)
        if own is not reused:
            own["description"] += "\n" + conflict_response("idempotency_key_reused")["description"]
        operation["responses"] = dict(sorted(responses.items()))

    def _shared_errors(self, operation: Mapping[str, Any]) -> list[str]:
        found = ["400", "401", "414", "429", "500", "503"]
        if self._scope() is not None:
            found.append("403")
        if "{" in self.path:
            found.append("404")
        if "requestBody" in operation:
            found += ["413", "415"]
        return found


class StrictSerializerSchema(OpenApiSerializerExtension):  # type: ignore[no-untyped-call]
    """Closes the schema of a strict serializer, which rejects unknown members."""

    target_class = "core.serializers.StrictSerializer"
    match_subclasses = True

    def map_serializer(self, auto_schema: AutoSchema, direction: Any) -> Schema:
        """Return the schema of the serializer's fields, with `additionalProperties: false`."""
        auto: Any = auto_schema
        schema: Schema = auto._map_serializer(self.target, direction, bypass_extensions=True)
        for member in schema.get("properties", {}).values():
            # Some generators take a member with a default for one that is always there, as it is in a response.
            if "default" in member:
                default = member.pop("default")
                shown = {"": "", True: "true", False: "false"}.get(default, str(default))
                if shown:
                    member["description"] = f"{member.get('description', '')} Default: {shown}.".strip()
        return {**schema, "additionalProperties": False}


def _describe_id(name: str) -> str:
    """Return the description of a parameter in a path that has none of its own, such as `event_type_id`."""
    return f"The id of the {name.removesuffix('_id').replace('_', ' ')}."


def _drop_enum_ids(part: Any) -> None:
    """Drop the marks for drf-spectacular's own enum hook, which isn't used here."""
    if isinstance(part, dict):
        part.pop("x-spec-enum-id", None)
        part = list(part.values())
    if isinstance(part, list):
        for inner in part:
            _drop_enum_ids(inner)


def add_shared_components(result: Schema, **_: Any) -> Schema:
    """Add the components that operations refer to.  A postprocessing hook of drf-spectacular."""
    _drop_enum_ids(result)
    components = result["components"]
    components["schemas"] = dict(sorted({**components.get("schemas", {}), "Problem": PROBLEM_SCHEMA}.items()))
    components["headers"] = HEADERS
    components["responses"] = shared_errors()
    components["parameters"] = {
        "X-Request-Id": {
            "name": "X-Request-Id",
            "in": "header",
            "description": "Echoed in the response and in the log when it is 1 to 128 letters, digits or `._:-`.",
            "schema": {"type": "string"},
        },
        "Idempotency-Key": {
            "name": "Idempotency-Key",
            "in": "header",
            "description": "Any 1 to 255 printable ASCII characters, bare or quoted. For 24 hours, the same request "
            "with the same key gets the first successful response again, and does nothing.",
            "schema": {"type": "string", "minLength": 1},
            "example": "0198f2d0-6d3c-7a52-9b1e-2f4c8a7d1e94",
        },
    }
    return result
