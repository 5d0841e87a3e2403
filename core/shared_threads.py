"""A web process's threads for work of many, who take turns for them and give way to each other's urgent requests."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from core.giving_way import Rests
from core.turns import Turns

R = TypeVar("R")


def always(result: object) -> bool:
    """Return True: whatever the result, the work is urgent."""
    return True


class SharedThreads:
    """Runs functions in `threads` threads; those who wait for one take turns.

    others_are_served: returns whether somebody else's requests were served lately that must not wait.  While they are
    and the processors are busy, everybody has one thread at a time, and rests after each use of it.
    """

    def __init__(
        self, threads: int, name: str, others_are_served: Callable[[Hashable], bool], rests: Rests | None = None
    ) -> None:
        self._others_are_served = others_are_served
        self._rests = rests or Rests(name)
        self._turns = Turns(threads, self._gives_way)
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix=name)

    async def run(
        self, who: Hashable, function: Callable[[], R], is_urgent: Callable[[R], bool] = lambda result: False
    ) -> R:
        """Return what `function` returns in a thread.

        who: whose turn it takes.  is_urgent: returns, from the result, whether that is work that needn't be followed by
        a rest.
        """
        self._rests.look()
        async with self._turns.turn(who) as turn:
            started = time.monotonic()
            rests = True
            try:
                result = await asyncio.get_running_loop().run_in_executor(self._executor, function)
                rests = not is_urgent(result)
                return result
            finally:
                if rests and self._gives_way(who):
                    turn.rest = self._rests.after(time.monotonic() - started)

    def _gives_way(self, who: Hashable) -> bool:
        return self._rests.are_due and self._others_are_served(who)

    def shutdown(self) -> None:
        """Wait for the threads to finish.  Blocks."""
        self._executor.shutdown(wait=True)
