"""JMESPath expressions that make a webhook's body of an event, bounded in time and in size.

A few dozen characters of an expression can produce gigabytes: `join('', [@, @])` doubles a text, and a chain of `[@, @]
| [@, @]` becomes 2^n copies.  So each evaluated node counts, and so does the size of its result; the evaluation stops
before a result becomes too large.  The same expression takes the same number of steps every time, on any machine.
"""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

import jmespath
import orjson
from jmespath import functions
from jmespath.exceptions import JMESPathError
from jmespath.visitor import Options, TreeInterpreter

MAX_EXPRESSION_CHARACTERS = 4096
MAX_EXPRESSION_DEPTH = 60
# The most evaluated nodes, plus a few for each value that is made: some 50 ms at most.
MOST_STEPS = 20_000
# The largest body, and the largest intermediate result, in characters and values.
MOST_SIZE = 1_048_576


class TransformError(ValueError):
    """An expression can't be used, or fails for an event; the message is a sentence for the tenant."""


class _Functions(functions.Functions):
    """JMESPath's functions; `join` can't make more than MOST_SIZE."""

    @functions.signature({"types": ["string"]}, {"types": ["array-string"]})
    def _func_join(self, separator: str, array: list[str]) -> str:
        _require_size(sum(map(len, array)) + len(separator) * len(array))
        return separator.join(array)


class _Interpreter(TreeInterpreter):
    """Evaluates one expression for one event, and counts."""

    def __init__(self) -> None:
        super().__init__(Options(custom_functions=_Functions()))
        self._steps = 0
        # By the identity of what was made, which is kept so that no other object gets that identity.
        self._sizes: dict[int, tuple[Any, int]] = {}

    def visit(self, node: Any, *args: Any, **kwargs: Any) -> Any:
        """Evaluate a node."""
        self._count(1)
        made = super().visit(node, *args, **kwargs)
        size = self._size(made)
        _require_size(size)
        self._count(size // 500)  # what is done with it, a comparison or a sort, takes as long as it is large
        return made

    def _count(self, steps: int) -> None:
        self._steps += steps
        if self._steps > MOST_STEPS:
            raise TransformError(f"The expression takes more than {MOST_STEPS} steps for this event.")

    def _size(self, value: Any) -> int:
        """Return how many values and characters there are in `value`, written out; each container is looked at once."""
        if isinstance(value, str):
            return len(value)
        if not isinstance(value, dict | list):
            return 1
        known = self._sizes.get(id(value))
        if known is None:
            # One step for eight values: to look at them is cheaper than to evaluate a node.
            self._count(len(value) // 8)
            size = 1 + sum(map(self._size, value.values() if isinstance(value, dict) else value))
            if isinstance(value, dict):
                size += sum(map(len, value))
            known = self._sizes[id(value)] = value, size
        return known[1]


def _require_size(size: int) -> None:
    if size > MOST_SIZE:
        raise TransformError(f"The expression makes more than {MOST_SIZE} values and characters of this event.")


def check_expression(text: str) -> None:
    """Raise TransformError for an expression that isn't JMESPath, or is too long or nested too deep."""
    if not text.strip():
        raise TransformError("The expression is empty.")
    _compile(text)


@lru_cache(maxsize=1000)
def _compile(text: str) -> Any:
    if len(text) > MAX_EXPRESSION_CHARACTERS:
        raise TransformError(f"The expression has more than {MAX_EXPRESSION_CHARACTERS} characters.")
    try:
        parsed = jmespath.compile(text).parsed
    except (JMESPathError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise TransformError(f"The expression is not valid JMESPath: {reason}") from None
    except RecursionError:
        raise TransformError("The expression is nested too deep.") from None
    _check_nodes(parsed)
    return parsed


def _check_nodes(node: Any) -> None:
    """Raise TransformError for an expression with too many levels, or with a function that there isn't."""
    level, depth = [node], 0
    while level:  # level by level, not by recursion
        for one in level:
            if one["type"] == "function_expression" and one["value"] not in _Functions.FUNCTION_TABLE:
                known = ", ".join(sorted(_Functions.FUNCTION_TABLE))
                raise TransformError(f"There is no function {one['value'][:60]}; there are {known}.")
        level = [inner for one in level for inner in one["children"] if isinstance(inner, dict)]
        depth += 1
        if depth > MAX_EXPRESSION_DEPTH:
            raise TransformError("The expression is nested too deep.")


def transform(text: str, envelope: bytes) -> bytes:
    """Return what an expression makes of the standard envelope, as JSON.  Raises TransformError."""
    parsed = _compile(text)
    try:
        event = orjson.loads(envelope)
    except orjson.JSONDecodeError:
        raise TransformError("The event holds a number or text that an expression can't be applied to.") from None
    try:
        made = _Interpreter().visit(parsed, event)
        if made is None:
            raise TransformError("The expression makes null of this event.")
        return json.dumps(made, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except TransformError:
        raise
    except RecursionError:
        raise TransformError("The expression nests too deep for this event.") from None
    except Exception as error:  # from the functions: a text that isn't a number, an operand of another type
        reason = " ".join(str(error).split())[:200]
        raise TransformError(f"The expression fails for this event: {reason}") from None
