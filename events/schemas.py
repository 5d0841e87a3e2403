"""JSON Schemas (2020-12) of event data: which ones are accepted, and how data is checked against them.

A tenant's schema runs on the event loop that accepts the events of all organizations.  So it is compiled once, may
refer to nothing outside of itself, has regular expressions that take linear time, and is refused if it could make the
validator check one value too often: a few hundred bytes of `anyOf` and `$ref` can lead to 2^60 checks.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jsonschema_rs
import orjson
from django.conf import settings

DIALECT = "https://json-schema.org/draft/2020-12/schema"
MAX_SCHEMA_BYTES = 65536
MOST_ERRORS = 20
# How many subschemas may apply to one value, counting those that may apply to what contains it.
MOST_CHECKS = 200
# The size of a compiled regular expression, which bounds the cost of matching a character.
_REGEX_BYTES = 100_000

# The values of the keyword `type`.
_TYPES = "array, boolean, integer, null, number, object, string"
# Keywords whose schemas apply to the same value, and to what it contains; each by what it holds: a schema, an array of
# schemas, or an object of them.
_HERE = {"not": 1, "if": 1, "then": 1, "else": 1, "allOf": 2, "anyOf": 2, "oneOf": 2, "dependentSchemas": 3}
_ANY_MEMBER = {"additionalProperties": 1, "unevaluatedProperties": 1, "propertyNames": 1, "patternProperties": 3}
_ANY_ITEM = {"items": 1, "contains": 1, "unevaluatedItems": 1}
_REFUSED = {
    "$dynamicRef": "is not supported; use $ref",
    "$dynamicAnchor": "is not supported; use $anchor",
    "$recursiveRef": "is not supported; use $ref",
    "$vocabulary": "is not supported",
}


class SchemaError(ValueError):
    """A schema can't be used.  pointer: into the schema."""

    def __init__(self, reason: str, pointer: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.pointer = pointer


class Validator:
    """A compiled schema."""

    def __init__(self, schema: Any) -> None:
        """Compile a schema that `check_schema` takes.  Raises SchemaError."""
        try:
            self._compiled = jsonschema_rs.Draft202012Validator(
                schema,
                offline=True,
                validate_formats=False,
                pattern_options=jsonschema_rs.RegexOptions(size_limit=_REGEX_BYTES, dfa_size_limit=_REGEX_BYTES),
            )
        except jsonschema_rs.ValidationError as error:
            raise SchemaError(_reason(error), pointer_of(error.instance_path)) from None
        except (ValueError, TypeError, RecursionError) as error:
            raise SchemaError(f"can't be compiled: {str(error)[:200]}") from None

    def errors(self, data: str) -> list[tuple[str, str]]:
        """Return what is wrong with an event's data, as pointers into it and reasons; at most MOST_ERRORS."""
        try:
            value = orjson.loads(data)
        except orjson.JSONDecodeError:
            try:
                value = json.loads(data)
            except (ValueError, RecursionError):
                return [("", "holds a number or text that can't be checked against the schema")]
        try:
            if self._compiled.is_valid(value):
                return []
            found = itertools.islice(self._compiled.iter_errors(value), MOST_ERRORS)
            return [(pointer_of(error.instance_path), _reason(error)) for error in found]
        except (ValueError, OverflowError) as error:
            return [("", f"can't be checked against the schema: {str(error)[:200]}")]


def _reason(error: jsonschema_rs.ValidationError) -> str:
    message = error.message
    # The message begins with the value, which may be long.
    return message if len(message) <= 300 else f"{message[:100]} … {message[-180:]}"


def pointer_of(path: Iterable[str | int]) -> str:
    """Return a JSON pointer (RFC 6901)."""
    return "".join("/" + str(step).replace("~", "~0").replace("/", "~1") for step in path)


def check_schema(schema: Any) -> None:
    """Raise SchemaError if a schema isn't valid, refers to anything outside, or may take too long to check."""
    if not isinstance(schema, dict | bool):
        raise SchemaError("must be a JSON Schema: an object, true, or false")
    if len(orjson.dumps(schema)) > MAX_SCHEMA_BYTES:
        raise SchemaError(f"is over the limit of {MAX_SCHEMA_BYTES} bytes")
    dialect = schema.get("$schema", DIALECT) if isinstance(schema, dict) else DIALECT
    if not isinstance(dialect, str) or dialect.rstrip("#") != DIALECT:
        raise SchemaError(f"must be {DIALECT}, or be left out", "/$schema")
    try:
        jsonschema_rs.meta.validate(schema if isinstance(schema, bool) else {**schema, "$schema": DIALECT})
    except jsonschema_rs.ValidationError as error:
        reason = _reason(error)
        if error.instance_path and error.instance_path[-1] == "type" and "'anyOf'" in reason:
            reason = f"must be one of {_TYPES}, or an array of these"
        raise SchemaError(reason, pointer_of(error.instance_path)) from None
    _Cost(schema).check()
    Validator(schema)


# How often each schema may apply to one value, by the schema's number.
_Times = dict[int, int]


def _add(total: _Times, more: _Times, times: int) -> None:
    """Add `times` times `more` to the total."""
    for schema, number in more.items():
        total[schema] = total.get(schema, 0) + number * times


def _is_leaf(schema: dict[str, Any]) -> bool:
    """Return whether a schema holds neither another schema nor a list, nor refers to one."""
    return "$ref" not in schema and not any(isinstance(value, dict | list) for value in schema.values())


class _Cost:
    """Counts how often a validator may have to check one value, in the worst case.

    At one value, a schema leads to others by `$ref`, `anyOf`, and the like.  Each of those may have schemas for the
    same member or item, and so on, level by level: the product is what grows.  Data is at most MAX_JSON_DEPTH levels
    deep.  Schemas that hold no others and say the same, such as `{"type": "string"}`, are looked at once.
    """

    def __init__(self, schema: Any) -> None:
        self._root = schema
        self._anchors: dict[str, Any] = {}
        self._schemas: dict[int, Any] = {}
        self._leaves: dict[tuple[Any, ...], int] = {}
        self._here: dict[int, _Times] = {}
        self._steps = 0

    def check(self) -> None:
        """Raise SchemaError for a schema that refers outside, or that is too costly."""
        self._collect(self._root)
        at = {self._note(self._root): 1}
        seen: set[frozenset[tuple[int, int]]] = set()
        levels = [at]
        for _ in range(settings.MAX_JSON_DEPTH):
            following: list[_Times] = []
            for schemas in levels:
                for below in self._below(self._expand(schemas)):
                    key = frozenset(below.items())
                    if key not in seen:
                        seen.add(key)
                        following.append(below)
            if not following:
                return
            levels = following

    def _collect(self, part: Any, path: tuple[str | int, ...] = ()) -> None:
        """Look for references everywhere, also where no schema belongs: a reference may lead there."""
        if isinstance(part, list):
            for position, inner in enumerate(part):
                self._collect(inner, (*path, position))
        if not isinstance(part, dict):
            return
        for name, inner in part.items():
            if isinstance(inner, dict | list):
                self._collect(inner, (*path, name))
            elif isinstance(inner, str) and name.startswith("$"):
                if reason := self._refusal(name, inner, is_top=not path):
                    raise SchemaError(reason, pointer_of([*path, name]))
                if name == "$anchor":
                    self._anchors[inner] = part

    @staticmethod
    def _refusal(name: str, value: str, *, is_top: bool) -> str | None:
        """Return why a schema can't have this member; None if it can."""
        if name in _REFUSED:
            return _REFUSED[name]
        if name == "$id" and not is_top:
            return "is only supported at the top"
        if name == "$ref" and not value.startswith("#"):
            return "must begin with #: a schema can't refer to anything outside of itself"
        return None

    def _note(self, schema: Any) -> int:
        """Return a number for a schema."""
        number = id(schema)
        if number not in self._schemas and isinstance(schema, dict) and _is_leaf(schema):
            number = self._leaves.setdefault(tuple(schema.items()), number)
        self._schemas[number] = schema
        return number

    def _count(self, number: int) -> None:
        self._steps += number
        if self._steps > 200_000:
            raise SchemaError("is too complex")

    def _resolve(self, ref: str) -> Any:
        name = ref[1:]
        if not name:
            return self._root
        if not name.startswith("/"):
            if name in self._anchors:
                return self._anchors[name]
            raise SchemaError(f"has a $ref to {ref}, which isn't there")
        found = self._root
        for step in name[1:].split("/"):
            step = step.replace("~1", "/").replace("~0", "~").replace("%25", "%")
            try:
                found = found[int(step)] if isinstance(found, list) else found[step]
            except (LookupError, ValueError, TypeError):
                raise SchemaError(f"has a $ref to {ref}, which isn't there") from None
        return found

    def _expand(self, schemas: _Times) -> _Times:
        """Return every schema that applies to a value, and how often, if these do.  Raises SchemaError for too many."""
        total: _Times = {}
        for schema, times in schemas.items():
            _add(total, self._closure(schema, ()), times)
        checks = sum(number * self._weight(self._schemas[one]) for one, number in total.items())
        if checks > MOST_CHECKS:
            raise SchemaError(
                f"may check one value more than {MOST_CHECKS} times; use fewer alternatives (anyOf, oneOf, $ref)"
            )
        return total

    def _closure(self, schema: int, above: tuple[int, ...]) -> _Times:
        if schema in above:
            raise SchemaError("has a $ref that leads back to itself")
        if len(above) >= MOST_CHECKS:  # so many that the recursion could be too deep for Python
            raise SchemaError(f"may check one value more than {MOST_CHECKS} times; use fewer levels of $ref")
        if schema not in self._here:
            found = {schema: 1}
            for inner in self._applied_here(self._schemas[schema]):
                _add(found, self._closure(self._note(inner), (*above, schema)), 1)
                if sum(found.values()) > MOST_CHECKS:
                    raise SchemaError(f"may check one value more than {MOST_CHECKS} times; use fewer alternatives")
            self._here[schema] = found
        self._count(len(self._here[schema]))
        return self._here[schema]

    def _applied_here(self, schema: Any) -> Iterator[Any]:
        if isinstance(schema, dict):
            yield from _held(schema, _HERE)
            if isinstance(schema.get("$ref"), str):
                yield self._resolve(schema["$ref"])

    def _weight(self, schema: Any) -> int:
        """Return the cost of a schema itself: long lists are compared item by item."""
        if not isinstance(schema, dict):
            return 1
        lists = sum(len(schema[name]) for name in ("enum", "required") if isinstance(schema.get(name), list))
        return 1 + lists // 20

    def _below(self, schemas: _Times) -> Iterator[_Times]:
        """Yield the schemas that may apply together to one member or item of a value that these apply to."""
        any_member: _Times = {}
        any_item: _Times = {}
        named: dict[str, _Times] = {}
        placed: dict[int, _Times] = {}
        for one, times in schemas.items():
            schema = self._schemas[one]
            if not isinstance(schema, dict):
                continue
            for inner in _held(schema, _ANY_MEMBER):
                _add(any_member, {self._note(inner): 1}, times)
            for inner in _held(schema, _ANY_ITEM):
                _add(any_item, {self._note(inner): 1}, times)
            for name, inner in (schema.get("properties") or {}).items():
                _add(named.setdefault(name, {}), {self._note(inner): 1}, times)
            for position, inner in enumerate(schema.get("prefixItems") or []):
                _add(placed.setdefault(position, {}), {self._note(inner): 1}, times)
        for some, everywhere in ((named.values(), any_member), (placed.values(), any_item)):
            for together in (*some, {}):
                _add(together, everywhere, 1)
                if together:
                    self._count(len(together))
                    yield together


def _held(schema: Mapping[str, Any], keywords: Mapping[str, int]) -> Iterator[Any]:
    for name, kind in keywords.items():
        held = schema.get(name)
        if held is None:
            continue
        yield from [held] if kind == 1 else held if kind == 2 else held.values()
