"""Work of many in a web process's threads: who rests after it, and who doesn't."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import pytest

from core.shared_threads import SharedThreads, always
from tests.busy import busy_rests, long_rests

__all__ = ["long_rests"]


def never(result: object) -> bool:
    return False


def fails() -> None:
    raise LookupError


@pytest.mark.usefixtures("long_rests")
@pytest.mark.parametrize(
    ("work", "is_urgent", "beside_others", "rests"),
    [
        (threading.get_ident, always, True, False),
        (threading.get_ident, never, True, True),
        (threading.get_ident, never, False, False),
        (fails, always, True, True),
    ],
    ids=["urgent work", "work that can wait", "nobody else is served", "work that fails"],
)
def test_who_gives_way_rests_after_work_that_can_wait(
    work: Callable[[], object], is_urgent: Callable[[object], bool], beside_others: bool, rests: bool
) -> None:
    async def run() -> None:
        threads = SharedThreads(2, "test", lambda who: beside_others, busy_rests())
        for _ in range(2):  # the first two looks tell how busy the processors are
            await threads.run("somebody", threading.get_ident, always)
        await asyncio.gather(threads.run("greedy", work, is_urgent), return_exceptions=True)
        following = asyncio.create_task(threads.run("greedy", threading.get_ident))
        # Whoever else asks meanwhile is served: the place itself is free.
        while not (following.done() or rests):
            await asyncio.sleep(0.01)
        assert await asyncio.gather(threads.run("a", threading.get_ident), threads.run("b", threading.get_ident))
        assert following.done() is not rests
        following.cancel()
        await asyncio.to_thread(threads.shutdown)

    asyncio.run(asyncio.wait_for(run(), 60))
