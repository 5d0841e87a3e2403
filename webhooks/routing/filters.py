"""Payload filters: conditions on an event's data that a subscription adds to its event types.

The shape is the one of MongoDB, Hookdeck, Outpost, and Convoy: `{"customer": {"vip": true}, "total": {"$gte": 100}}`.
Members are looked up, operators begin with `$`, and everything in an object must hold.  There are no regular
expressions, and a filter may only look at a bounded part of the data, so that an evaluation takes microseconds,
whatever the data.

A filter is compiled once to closures.  An evaluation never raises: values that can't be compared don't match.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import orjson

MAX_CHARACTERS = 8192
MAX_CONDITIONS = 100
MAX_DEPTH = 10
# How many items of arrays an evaluation may look at, and how many conditions it may compare them with, because each
# item may have to meet all of a filter's.  A filter that exceeds them doesn't match.  So none takes longer than a few
# milliseconds.
MAX_ITEMS = 1000
MAX_COMPARISONS = 10_000
# A filter is looked up by up to this many values of an `$in`.  With more it is evaluated: an index of them would take
# too much memory.
MAX_INDEXED_VALUES = 50

Test = Callable[[Any], bool]
Path = tuple[str, ...]
_Scalar = str | int | float | bool | None

_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
_MISSING: Any = object()
_EQUAL = "$eq"
_ALIASES = {"$ne": "$neq", "$exists": "$exist"}
_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "$gt": lambda value, bound: value > bound,
    "$gte": lambda value, bound: value >= bound,
    "$lt": lambda value, bound: value < bound,
    "$lte": lambda value, bound: value <= bound,
}
# By operator, whether it is about an array as a whole: `$neq` means that no item is equal (`_Compiler._whole`).  The
# others hold for an array if they hold for any of its items (`_Compiler._leaf`).
OPERATORS = {
    _EQUAL: False,
    "$neq": True,
    "$in": False,
    "$nin": True,
    **dict.fromkeys(_COMPARISONS, False),
    "$startsWith": False,
    "$endsWith": False,
    "$exist": True,
    "$and": True,
    "$or": True,
    "$not": True,
}


class FilterError(ValueError):
    """A filter can't be used.  path: the names and positions that lead to what is wrong."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(reason)
        self.path = path
        self.reason = reason


class _TooManyItems(Exception):
    """The evaluation would look at more than MAX_ITEMS, or make more than MAX_COMPARISONS."""


class Filter:
    """A compiled filter, for one thread.  Raises FilterError."""

    def __init__(self, conditions: Any) -> None:
        if not isinstance(conditions, dict):
            raise FilterError((), "must be an object of conditions")
        if len(json.dumps(conditions, ensure_ascii=False)) > MAX_CHARACTERS:
            raise FilterError((), f"must have at most {MAX_CHARACTERS} characters")
        compiler = _Compiler()
        self._test = compiler.condition(conditions, ()) if conditions else _anything
        self._left = compiler.left
        self.required = required(conditions)

    def matches(self, data: Any) -> bool:
        """Return whether the data of an event, as `parse_data` returns it, meets the conditions."""
        return self.why_not(data) is None

    def why_not(self, data: Any) -> str | None:
        """Return None if the data meets the conditions; otherwise a sentence."""
        self._left[:] = MAX_ITEMS, MAX_COMPARISONS
        try:
            return None if self._test(data) else "The data doesn't meet the conditions of the filter."
        except _TooManyItems:
            return (
                f"The filter would look at more than {MAX_ITEMS} items of arrays in the data, "
                f"or make more than {MAX_COMPARISONS} comparisons with them."
            )


class StoredFilter:
    """The filter of a stored subscription, compiled when it is first needed: a thousand of them take a second.

    One that can't be used matches nothing, and affects no other subscription.  on_error: called once, with what is
    wrong with it.
    """

    def __init__(self, conditions: Any, on_error: Callable[[Exception], object]) -> None:
        self._conditions = conditions
        self._on_error = on_error
        self._compiled: Filter | None = None
        self.required = required(conditions)

    def matches(self, data: Any) -> bool:
        """Tell whether the data of an event meets the conditions; the first call compiles them."""
        if self._compiled is None:
            try:
                self._compiled = Filter(self._conditions)
            except Exception as error:
                self._on_error(error)
                self._compiled = NOTHING
            self._conditions = None
        return self._compiled.matches(data)


@dataclass(frozen=True, slots=True)
class Required:
    """A member of the data that a filter needs to be one of some values, or an array that holds one of them."""

    path: Path
    values: frozenset[_Scalar]


@dataclass(frozen=True, slots=True)
class RequiredRange:
    """A member of the data that has to be in a range, or an array with an item that is.

    low, high: both numbers or both texts, inclusive; None for no bound.  The filter itself may want more.
    """

    path: Path
    low: Any
    high: Any


def required(conditions: Any) -> Required | RequiredRange | None:
    """Return something that has to be in the data for the conditions to hold, by which the filter can be looked up.

    An equality if there is one, because fewer events meet it; else a range or a prefix.
    """
    return _first(conditions, _equality) or _first(conditions, _range)


F = TypeVar("F")


def _first(conditions: Any, find: Callable[[Path, Any], F | None], path: Path = ()) -> F | None:
    """Return the first that `find` finds in the conditions of members that have to be present."""
    if not isinstance(conditions, dict):
        return None
    for name, wanted in conditions.items():
        # An operator may mean something else, and a name with dots may be a path or a name.
        if name.startswith("$") or "." in name:
            continue
        inner = (*path, name)
        found = find(inner, wanted)
        if found is None:
            found = _first(wanted, find, inner)
        if found is not None:
            return found
    return None


def _equality(path: Path, wanted: Any) -> Required | None:
    if isinstance(wanted, list):
        return None
    if not isinstance(wanted, dict):
        return Required(path, frozenset([wanted]))
    values = [wanted[_EQUAL]] if _EQUAL in wanted else wanted.get("$in")
    if not isinstance(values, list) or not 1 <= len(values) <= MAX_INDEXED_VALUES:
        return None
    return Required(path, frozenset(values)) if not any(isinstance(one, dict | list) for one in values) else None


def _range(path: Path, wanted: Any) -> RequiredRange | None:
    if not isinstance(wanted, dict):
        return None
    for kind in (int | float, str):
        lows = [wanted[name] for name in ("$gt", "$gte") if _is(wanted.get(name), kind)]
        highs = [wanted[name] for name in ("$lt", "$lte") if _is(wanted.get(name), kind)]
        if kind is str and _is(prefix := wanted.get("$startsWith"), str) and prefix:
            lows.append(prefix)
            if ord(prefix[-1]) < sys.maxunicode:
                highs.append(prefix[:-1] + chr(ord(prefix[-1]) + 1))
        if lows or highs:
            return RequiredRange(path, max(lows, default=None), min(highs, default=None))
    return None


def _is(value: Any, kind: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def values_at(path: Path, data: Any) -> list[Any] | None:
    """Return the values of which the data has to have one; None if only the filter itself can tell."""
    value = data
    for name in path:
        if type(value) is list:
            return None
        value = value.get(name, _MISSING) if type(value) is dict else _MISSING
    if type(value) is not list:
        return [value]
    return value if len(value) <= MAX_ITEMS else None


def check_filter(conditions: Any) -> None:
    """Raise FilterError, with what is wrong and where, if this isn't a filter."""
    Filter(conditions)


def parse_data(text: str) -> Any:
    """Return the value of an event's data.  Numbers that no float can hold are infinite; never raises."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        pass
    try:
        return json.loads(text, parse_int=_integer)
    except (ValueError, RecursionError):
        return _MISSING  # meets no condition except that something is absent


def _integer(digits: str) -> float:
    return int(digits) if len(digits) < 300 else math.copysign(math.inf, -1 if digits.startswith("-") else 1)


def _anything(_value: Any) -> bool:
    return True


class _Compiler:
    """Compiles one filter, and bounds its size.

    left: how many items its evaluation may still look at, and how many comparisons it may make with them.
    """

    def __init__(self) -> None:
        self.left = [MAX_ITEMS, MAX_COMPARISONS]
        self._conditions = 0

    def condition(self, wanted: Any, path: Path, depth: int = 0) -> Test:
        """Compile what a value has to be: an object of conditions, or the value itself."""
        if depth > MAX_DEPTH:
            raise FilterError(path, f"is nested more than {MAX_DEPTH} levels deep")
        if not isinstance(wanted, dict):
            return self._of_items(self._leaf(_EQUAL, wanted, path))
        if not wanted:
            raise FilterError(path, "must hold a condition")
        counted_before = self._conditions
        of_items: list[Test] = []
        of_whole: list[Test] = []
        for name, value in wanted.items():
            inner = (*path, name)
            operator = _ALIASES.get(name, name)
            self._count(inner)
            if not name.startswith("$"):
                of_items.append(self._member(name, value, inner, depth))
            elif operator not in OPERATORS:
                raise FilterError(inner, f"is not an operator; there are {', '.join(OPERATORS)}")
            elif OPERATORS[operator]:
                of_whole.append(self._whole(operator, value, inner, depth))
            else:
                of_items.append(self._leaf(operator, value, inner))
        # One item of an array has to meet all of these.
        tests = [self._of_items(_all(of_items), self._conditions - counted_before)] if of_items else []
        return _all(tests + of_whole)

    def _count(self, path: Path) -> None:
        self._conditions += 1
        if self._conditions > MAX_CONDITIONS:
            raise FilterError(path, f"is one condition more than the {MAX_CONDITIONS} that a filter may have")

    def _of_items(self, test: Test, conditions: int = 1) -> Test:
        """Return a test of a value or, if that is an array, of any of its items.  conditions: how many are in it."""
        left = self.left

        def test_items(value: Any) -> bool:
            if type(value) is not list:
                return test(value)
            left[0] -= len(value)
            left[1] -= len(value) * conditions
            if left[0] < 0 or left[1] < 0:
                raise _TooManyItems
            return any(map(test, value))

        return test_items

    def _member(self, name: str, wanted: Any, path: Path, depth: int) -> Test:
        if _UNSTORABLE.search(name):
            raise FilterError(path[:-1], "has a name with U+0000 or half of a surrogate pair, which can't be stored")
        first, *others = name.split(".")
        counted_before = self._conditions
        test = self.condition(wanted, path, depth + 1 + len(others))
        if not others:
            return _member(name, test)
        nested = test
        for part in reversed(others):
            nested = self._of_items(_member(part, nested), 1 + self._conditions - counted_before)
        # A name with dots is a path, unless there is a member of that very name.
        return _member_or(name, test, _member(first, nested))

    def _whole(self, operator: str, value: Any, path: Path, depth: int) -> Test:
        """Compile an operator that applies to an array as a whole, such as that none of its items is equal."""
        if operator == "$exist":
            if not isinstance(value, bool):
                raise FilterError(path, "must be true or false")
            return lambda found: (found is not _MISSING) is value
        if operator in ("$and", "$or"):
            if not isinstance(value, list) or not value:
                raise FilterError(path, "must be an array of conditions")
            tests = []
            for position, wanted in enumerate(value):
                self._count((*path, str(position)))
                tests.append(self.condition(wanted, (*path, str(position)), depth + 1))
            return _all(tests) if operator == "$and" else _any(tests)
        if operator == "$not":
            test = self.condition(value, path, depth + 1)
        else:
            test = self._of_items(self._leaf({"$neq": _EQUAL, "$nin": "$in"}[operator], value, path))
        return lambda found: not test(found)

    def _leaf(self, operator: str, value: Any, path: Path) -> Test:
        if operator == _EQUAL:
            return _equal(_scalar(value, path))
        if operator == "$in":
            if not isinstance(value, list) or not value:
                raise FilterError(path, "must be an array of values")
            return _one_of([_scalar(item, (*path, str(position))) for position, item in enumerate(value)])
        if operator in ("$startsWith", "$endsWith"):
            if not isinstance(value, str) or not value:
                raise FilterError(path, "must be a text")
            _scalar(value, path)
            if operator == "$startsWith":
                return lambda found: type(found) is str and found.startswith(value)
            return lambda found: type(found) is str and found.endswith(value)
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise FilterError(path, "must be a number or a text")
        _scalar(value, path)
        compare = _COMPARISONS[operator]
        if isinstance(value, str):
            return lambda found: type(found) is str and compare(found, value)
        return lambda found: (type(found) is int or type(found) is float) and compare(found, value)


def _scalar(value: Any, path: Path) -> _Scalar:
    if isinstance(value, str):
        if _UNSTORABLE.search(value):
            raise FilterError(path, "contains U+0000 or half of a surrogate pair, which can't be stored")
        return value
    if isinstance(value, float) and not math.isfinite(value):
        raise FilterError(path, "is not a JSON number")
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, list):
        raise FilterError(path, "must not be an array; for one of several values use $in, for all of them $and")
    raise FilterError(path, "must be a text, a number, true, false, or null")


def _equal(wanted: _Scalar) -> Test:
    if isinstance(wanted, bool) or wanted is None:
        return lambda found: found is wanted
    if isinstance(wanted, str):
        return lambda found: found == wanted
    return lambda found: found == wanted and type(found) is not bool


def _one_of(wanted: list[_Scalar]) -> Test:
    # In Python True is 1; in JSON it isn't.
    keys = {(isinstance(value, bool), value) for value in wanted}

    def test(found: Any) -> bool:
        return type(found) not in (list, dict) and (type(found) is bool, found) in keys

    return test


def _member(name: str, test: Test) -> Test:
    def test_member(value: Any) -> bool:
        return test(value.get(name, _MISSING) if type(value) is dict else _MISSING)

    return test_member


def _member_or(name: str, test: Test, otherwise: Test) -> Test:
    def test_member(value: Any) -> bool:
        return test(value[name]) if type(value) is dict and name in value else otherwise(value)

    return test_member


def _all(tests: list[Test]) -> Test:
    if len(tests) == 1:
        return tests[0]
    return lambda value: all(test(value) for test in tests)


def _any(tests: list[Test]) -> Test:
    if len(tests) == 1:
        return tests[0]
    return lambda value: any(test(value) for test in tests)


# A filter that no data meets.
NOTHING = Filter({"$and": [{"x": {"$exist": True}}, {"x": {"$exist": False}}]})
