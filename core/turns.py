"""A number of places, for which those who wait take turns."""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Hashable
from contextlib import asynccontextmanager
from typing import NamedTuple

# How long somebody who gives way waits for the one place, which may be held by a request that waits for something.
MOST_WAIT_SECONDS = 0.5


class Turn:
    """A held place.  rest: for how many seconds after it whoever held it counts as if they still did."""

    __slots__ = ("rest",)

    def __init__(self) -> None:
        self.rest = 0.0


class _Waiting(NamedTuple):
    """Somebody who waits.  late_at: when they no longer give way, by the loop's clock."""

    admitted: asyncio.Future[None]
    late_at: float


class Turns:
    """Lets `places` in at a time; those who wait take turns, however many requests each has.

    None may hold more than three quarters of the places, so that one that keeps them for long leaves some to the
    others. For one event loop.

    gives_way: returns whether somebody should hold a single place only, for now; they wait MOST_WAIT_SECONDS for it,
    and take any free one from then on.
    """

    def __init__(self, places: int, gives_way: Callable[[Hashable], bool] = lambda who: False) -> None:
        self._free = places
        self._most = max(1, places * 3 // 4)
        self._gives_way = gives_way
        # Also of those who have left their places and rest.
        self._held: Counter[Hashable] = Counter()
        # By who waits, whose turn is next first.
        self._waiting: OrderedDict[Hashable, deque[_Waiting]] = OrderedDict()

    @asynccontextmanager
    async def turn(self, who: Hashable) -> AsyncIterator[Turn]:
        """Hold a place while the block runs."""
        if self._free and self._may_enter(who):
            self._free -= 1
            self._held[who] += 1
        else:
            loop = asyncio.get_running_loop()
            admitted = loop.create_future()
            self._waiting.setdefault(who, deque()).append(_Waiting(admitted, loop.time() + MOST_WAIT_SECONDS))
            late = loop.call_later(MOST_WAIT_SECONDS, self._admit, who)
            try:
                await admitted
            except asyncio.CancelledError:
                if not admitted.cancelled():
                    self._leave(who)
                raise
            finally:
                late.cancel()
        turn = Turn()
        try:
            yield turn
        finally:
            self._leave(who, turn.rest)

    def _may_enter(self, who: Hashable, is_late: bool = False) -> bool:
        return self._held[who] < (1 if not is_late and self._gives_way(who) else self._most)

    def _leave(self, who: Hashable, rest: float = 0.0) -> None:
        self._free += 1
        if rest > 0:
            self._admit_waiting()
            asyncio.get_running_loop().call_later(rest, self._end_rest, who)
        else:
            self._end_rest(who)

    def _end_rest(self, who: Hashable) -> None:
        self._held[who] -= 1
        if not self._held[who]:
            del self._held[who]
        self._admit_waiting()

    def _admit_waiting(self) -> None:
        for waiting in list(self._waiting):
            if not self._free:
                break
            self._admit(waiting)

    def _admit(self, who: Hashable) -> None:
        """Let the first of those in who wait as `who`, and send the others to the end of the line."""
        waiting = self._waiting.get(who)
        if waiting is None:  # admitted in the moment in which it would have been late
            return
        while waiting and waiting[0].admitted.done():  # cancelled
            waiting.popleft()
        is_late = bool(waiting) and asyncio.get_running_loop().time() >= waiting[0].late_at
        if waiting and self._free and self._may_enter(who, is_late):
            waiting.popleft().admitted.set_result(None)
            self._free -= 1
            self._held[who] += 1
            self._waiting.move_to_end(who)
        if not waiting:
            del self._waiting[who]
