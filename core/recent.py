"""What a process remembers of many: the last ones."""

from __future__ import annotations

from collections import OrderedDict
from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")

REMEMBERED = 10_000


class Recent(OrderedDict[K, V]):
    """A dict that keeps the REMEMBERED keys that were set last.  Setting needs a lock, as it is several steps."""

    def __setitem__(self, key: K, value: V) -> None:
        super().__setitem__(key, value)
        self.move_to_end(key)
        if len(self) > REMEMBERED:
            self.popitem(last=False)
