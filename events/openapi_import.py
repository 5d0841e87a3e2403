"""Event types from the `webhooks` of an OpenAPI 3.1 document."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from events.payload import event_type_error
from events.schemas import SchemaError, check_schema, pointer_of

_METHODS = ("post", "put", "patch", "get", "delete")
_COMPONENTS = "#/components/schemas/"
_MOST_REFERENCES = 10  # from one to the next
_MOST_PARTS = 50  # of an envelope


@dataclass(frozen=True, slots=True)
class ImportedType:
    """An event type as the document describes it."""

    name: str
    description: str
    examples: list[Any]
    schema: Any


class ImportFailed(ValueError):
    """The document can't be imported.  errors: JSON pointers into it and reasons."""

    def __init__(self, errors: list[tuple[str, str]]) -> None:
        super().__init__("the document can't be imported")
        self.errors = errors


def read_webhooks(document: Mapping[str, Any]) -> list[ImportedType]:
    """Return the event types that the webhooks of an OpenAPI document describe.

    The name of a webhook is the type.  Its JSON request body has the schema of the data, or if it is an envelope (an
    object with `type` and `data`, as in Standard Webhooks), of its member `data`.  Path items, request bodies, and
    examples may be references into the document.  Raises ImportFailed.
    """
    webhooks = document.get("webhooks", document.get("x-webhooks"))
    if not isinstance(webhooks, dict) or not webhooks:
        raise ImportFailed([("/webhooks", "must be an object with at least one webhook (OpenAPI 3.1)")])
    errors: list[tuple[str, str]] = []
    found = []
    for name, item in webhooks.items():
        pointer = pointer_of(["webhooks", name])
        if reason := event_type_error(name):
            errors.append((pointer, f"the name {reason}"))
            continue
        try:
            found.append(_read(document, name, _resolve(document, item)))
        except SchemaError as error:
            errors.append((pointer, f"the schema{' at ' + error.pointer if error.pointer else ''} {error.reason}"))
        except _NotThere as error:
            errors.append((pointer, str(error)))
    if errors:
        raise ImportFailed(errors)
    return found


class _NotThere(ValueError):
    """A part of the document is missing; the message says which."""


def _read(document: Mapping[str, Any], name: str, item: Any) -> ImportedType:
    operation = next((item[m] for m in _METHODS if isinstance(item, dict) and isinstance(item.get(m), dict)), None)
    if operation is None:
        raise _NotThere("has no operation such as post")
    description = operation.get("description") or operation.get("summary") or ""
    content = _member(_resolve(document, operation.get("requestBody")), "content")
    media = next((held for kind, held in content.items() if "json" in kind and isinstance(held, dict)), {})
    schema = media.get("schema")
    examples = [media["example"]] if "example" in media else []
    for example in _member(media, "examples").values():
        given = _resolve(document, example)
        if isinstance(given, dict) and "value" in given:
            examples.append(given["value"])
    if schema is not None:
        components = _member(document, "components", "schemas")
        has_type, data = _envelope(components, schema, set())
        if has_type and data:
            schema = data[0] if len(data) == 1 else {"allOf": data}
            examples = [one["data"] for one in examples if isinstance(one, dict) and "data" in one]
        schema = _self_contained(schema, components)
        check_schema(schema)
    return ImportedType(name, str(description)[:2000], examples[:20], schema)


def _envelope(components: Mapping[str, Any], schema: Any, seen: set[int]) -> tuple[bool, list[Any]]:
    """Return whether a schema has a member `type`, and the schemas of its member `data`, those in `allOf`, too."""
    inside = _follow(components, schema)
    if not isinstance(inside, dict) or id(inside) in seen or len(seen) > _MOST_PARTS:
        return False, []
    seen.add(id(inside))
    properties = _member(inside, "properties")
    has_type, data = "type" in properties, [properties["data"]] if "data" in properties else []
    parts = inside.get("allOf")
    for part in parts if isinstance(parts, list) else ():
        type_here, data_here = _envelope(components, part, seen)
        has_type, data = has_type or type_here, data + data_here
    return has_type, data


def _resolve(document: Mapping[str, Any], held: Any) -> Any:
    """Return what a path item, a request body, or an example that may be a reference stands for.

    Raises _NotThere for a reference to another document, or to nothing.
    """
    for _ in range(_MOST_REFERENCES):
        ref = held.get("$ref") if isinstance(held, dict) else None
        if not isinstance(ref, str):
            return held
        held = document
        for step in ref.removeprefix("#/").split("/") if ref.startswith("#/") else [""]:
            held = _member(held).get(unquote(step).replace("~1", "/").replace("~0", "~"))
        if held is None:
            raise _NotThere(f"has a $ref to {ref[:200]}, which isn't in the document")
    raise _NotThere("has a $ref that leads to too many others")


def _member(held: Any, *names: str) -> Mapping[str, Any]:
    """Return the object below these names; empty where there is none."""
    for name in names:
        held = held.get(name) if isinstance(held, dict) else None
    return held if isinstance(held, dict) else {}


def _follow(components: Mapping[str, Any], schema: Any) -> Any:
    for _ in range(_MOST_REFERENCES):
        ref = schema.get("$ref") if isinstance(schema, dict) else None
        if not isinstance(ref, str) or not ref.startswith(_COMPONENTS):
            break
        schema = components.get(_component(ref))
    return schema


def _component(ref: str) -> str:
    return ref.removeprefix(_COMPONENTS).partition("/")[0].replace("~1", "/").replace("~0", "~")


def _self_contained(schema: Any, components: Mapping[str, Any]) -> Any:
    """Return the schema with the components that it refers to as its `$defs`."""
    used: dict[str, Any] = {}
    waiting: list[str] = []  # each is rewritten by itself: a chain of them may be long

    def rewrite(part: Any) -> Any:
        if isinstance(part, list):
            return [rewrite(one) for one in part]
        if not isinstance(part, dict):
            return part
        written = {name: rewrite(inner) for name, inner in part.items()}
        ref = part.get("$ref")
        if isinstance(ref, str) and ref.startswith(_COMPONENTS):
            component = _component(ref)
            if component not in components:
                raise SchemaError(f"has a $ref to {ref}, which isn't there")
            if component not in used:
                used[component] = True  # it may refer to itself
                waiting.append(component)
            written["$ref"] = "#/$defs/" + ref.removeprefix(_COMPONENTS)
        return written

    whole = rewrite(schema)
    while waiting:
        component = waiting.pop()
        used[component] = rewrite(components[component])
    if not used:
        return whole
    if not isinstance(whole, dict) or "$defs" in whole:
        whole = {"allOf": [whole]}
    return {**whole, "$defs": used}
