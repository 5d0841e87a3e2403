"""A number of places, for which those who wait take turns."""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager


class Turns:
    """Lets `places` in at a time; those who wait take turns, however many requests each has.

    None may hold more than three quarters of the places, so that one that keeps them for long leaves some to the
    others. For one event loop.
    """

    def __init__(self, places: int) -> None:
        self._free = places
        self._most = max(1, places * 3 // 4)
        self._held: Counter[Hashable] = Counter()
        # By who waits, whose turn is next first.
        self._waiting: OrderedDict[Hashable, deque[asyncio.Future[None]]] = OrderedDict()

    @asynccontextmanager
    async def turn(self, who: Hashable) -> AsyncIterator[None]:
        """Hold a place while the block runs."""
        if self._free and self._held[who] < self._most:
            self._free -= 1
            self._held[who] += 1
        else:
            admitted = asyncio.get_running_loop().create_future()
            self._waiting.setdefault(who, deque()).append(admitted)
            try:
                await admitted
            except asyncio.CancelledError:
                if not admitted.cancelled():
                    self._leave(who)
                raise
        try:
            yield
        finally:
            self._leave(who)

    def _leave(self, who: Hashable) -> None:
        self._free += 1
        self._held[who] -= 1
        if not self._held[who]:
            del self._held[who]
        for waiting in list(self._waiting):
            if not self._free:
                break
            self._admit(waiting)

    def _admit(self, who: Hashable) -> None:
        """Let the first of those in who wait as `who`, and send the others to the end of the line."""
        futures = self._waiting[who]
        while futures and futures[0].done():  # cancelled
            futures.popleft()
        if futures and self._held[who] < self._most:
            futures.popleft().set_result(None)
            self._free -= 1
            self._held[who] += 1
            self._waiting.move_to_end(who)
        if not futures:
            del self._waiting[who]
