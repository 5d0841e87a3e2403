"""Gives each enum of the schema one name, so that code generators make one type of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from core.openapi.types import Schema


def name_enums(schema: Schema, names: Mapping[str, Iterable[str]]) -> None:
    """Move the enums with these values to components with these names, and refer to them."""
    components = schema["components"]["schemas"]
    known = {frozenset(values): name for name, values in names.items()}
    _replace(schema, known)
    # Afterward, or the components would refer to themselves.
    components.update({name: {"type": "string", "enum": list(values)} for name, values in names.items()})
    schema["components"]["schemas"] = dict(sorted(components.items()))


def _replace(part: Any, known: Mapping[frozenset[str], str]) -> None:
    if isinstance(part, dict):
        values = part.get("enum")
        if isinstance(values, list):
            name = known.get(frozenset(value for value in values if value is not None))
            if name is not None:
                reference = {"$ref": f"#/components/schemas/{name}"}
                is_nullable = None in values
                for word in ("type", "enum"):
                    part.pop(word, None)
                part.update({"oneOf": [reference, {"type": "null"}]} if is_nullable else reference)
        part = list(part.values())
    if isinstance(part, list):
        for inner in part:
            _replace(inner, known)
