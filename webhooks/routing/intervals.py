"""Ranges of numbers or of texts, arranged so that the ones that hold a value are found without looking at each."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Intervals(Generic[T]):
    """Objects, each with a range: a low and a high bound, both inclusive, either of them None for no bound.

    All bounds are numbers, or all are texts.
    """

    def __init__(self, things: Iterable[tuple[Any, Any, T]]) -> None:
        given = list(things)
        self._from = _Sorted((low, thing) for low, high, thing in given if high is None)
        self._to = _Sorted((high, thing) for low, high, thing in given if low is None)
        # Empty ranges hold nothing.
        closed = [one for one in given if one[0] is not None and one[1] is not None and one[0] <= one[1]]
        self._root = _Node(closed) if closed else None

    def holding(self, value: Any) -> list[T]:
        """Return the objects whose ranges hold `value`, each once."""
        found = self._from.up_to(value) + self._to.down_to(value)
        node = self._root
        while node is not None:
            if value < node.center:
                found += node.lows.up_to(value)
                node = node.left
            else:
                found += node.highs.down_to(value)
                node = node.right
        return found


class _Sorted(Generic[T]):
    def __init__(self, things: Iterable[tuple[Any, T]]) -> None:
        ordered = sorted(things, key=lambda one: one[0])
        self._bounds = [bound for bound, _ in ordered]
        self._things = [thing for _, thing in ordered]

    def up_to(self, value: Any) -> list[T]:
        return self._things[: bisect_right(self._bounds, value)]

    def down_to(self, value: Any) -> list[T]:
        return self._things[bisect_left(self._bounds, value) :]


class _Node(Generic[T]):
    """A centered interval tree: ranges that hold the center are in this node, and those below or above it in its
    children.

    The center is the median of the bounds, so each side has at most half of them.
    """

    def __init__(self, things: list[tuple[Any, Any, T]]) -> None:
        bounds = sorted(bound for low, high, _ in things for bound in (low, high))
        self.center = bounds[len(bounds) // 2]
        here = [one for one in things if one[0] <= self.center <= one[1]]
        self.lows = _Sorted((low, thing) for low, _, thing in here)
        self.highs = _Sorted((high, thing) for _, high, thing in here)
        below = [one for one in things if one[1] < self.center]
        above = [one for one in things if one[0] > self.center]
        self.left: _Node[T] | None = _Node(below) if below else None
        self.right: _Node[T] | None = _Node(above) if above else None
