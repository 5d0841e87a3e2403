"""A number of places, for which those who wait take turns."""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Hashable
from contextlib import asynccontextmanager
from typing import NamedTuple

# Somebody who gives way waits for the one place until it hasn't changed hands for this long: whoever holds it may
# itself be waiting for something.  Longer than any rest (`core.giving_way.MOST_SECONDS`).
STUCK_SECONDS = 1.0
# How long they wait at most.
MOST_WAIT_SECONDS = 5.0


class Turn:
    """A held place.  rest: for how many seconds after it whoever held it counts as if they still did."""

    __slots__ = ("rest",)

    def __init__(self) -> None:
        self.rest = 0.0


class _Waiting(NamedTuple):
    """Somebody who waits, and since when, by the loop's clock."""

    admitted: asyncio.Future[None]
    since: float


class Turns:
    """Lets `places` in at a time; those who wait take turns, however many requests each has.

    None may hold more than three quarters of the places, so that one that keeps them for long leaves some to the
    others. For one event loop.

    gives_way: returns whether somebody should hold a single place only, for now.  They wait for it for up to
    MOST_WAIT_SECONDS, or until it hasn't changed hands for STUCK_SECONDS, and take any free one from then on.
    """

    def __init__(self, places: int, gives_way: Callable[[Hashable], bool] = lambda who: False) -> None:
        self._free = places
        self._most = max(1, places * 3 // 4)
        self._gives_way = gives_way
        # Also of those who have left their places and rest.
        self._held: Counter[Hashable] = Counter()
        # When each of these last got a place.
        self._entered_at: dict[Hashable, float] = {}
        # By who waits, whose turn is next first.
        self._waiting: OrderedDict[Hashable, deque[_Waiting]] = OrderedDict()

    @asynccontextmanager
    async def turn(self, who: Hashable) -> AsyncIterator[Turn]:
        """Hold a place while the block runs."""
        if self._free and self._may_enter(who):
            self._enter(who)
        else:
            await self._wait(who)
        turn = Turn()
        try:
            yield turn
        finally:
            self._leave(who, turn.rest)

    async def _wait(self, who: Hashable) -> None:
        """Wait for a place."""
        loop = asyncio.get_running_loop()
        admitted = loop.create_future()
        self._waiting.setdefault(who, deque()).append(_Waiting(admitted, loop.time()))
        try:
            while not admitted.done():
                await asyncio.wait({admitted}, timeout=STUCK_SECONDS)
                if not admitted.done():
                    self._admit(who)  # the first of them may be late
        except asyncio.CancelledError:
            if not admitted.cancel():
                self._leave(who)
            raise

    def _enter(self, who: Hashable) -> None:
        self._free -= 1
        self._held[who] += 1
        self._entered_at[who] = asyncio.get_running_loop().time()

    def _is_late(self, who: Hashable, since: float) -> bool:
        now = asyncio.get_running_loop().time()
        moved_at = max(since, self._entered_at.get(who, since))
        return now - since >= MOST_WAIT_SECONDS or now - moved_at >= STUCK_SECONDS

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
            del self._held[who], self._entered_at[who]
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
        is_late = bool(waiting) and self._is_late(who, waiting[0].since)
        if waiting and self._free and self._may_enter(who, is_late):
            waiting.popleft().admitted.set_result(None)
            self._enter(who)
            self._waiting.move_to_end(who)
        if not waiting:
            del self._waiting[who]
