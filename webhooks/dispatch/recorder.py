"""The recorder: collects results while the last batch is being written, and writes them together."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence

import structlog

from core.processor_load import processors_are_busy
from webhooks.dispatch.delivery import AttemptResult
from webhooks.dispatch.record import record_each

log = structlog.get_logger()

RESULTS_AT_A_TIME = 500
# Results of organizations with at most so many are recorded before those of others, and apart from them.
FEW_RESULTS = 20
RETRY_SECONDS = 0.5
# While the processors are busy, a batch waits this long for more results if the last one had so many.
GATHER_FROM = 6
GATHER_SECONDS = 0.005

RunInThread = Callable[[Callable[[], tuple[list[AttemptResult], bool]]], Awaitable[tuple[list[AttemptResult], bool]]]


def next_batch(results: Sequence[AttemptResult]) -> tuple[list[AttemptResult], list[AttemptResult]]:
    """Return the results to be recorded next, and the others, each in their order.

    A batch locks the queues of all its results.  The events of an organization with few would wait for the many results
    of another one: their fan-out needs the same locks.
    """
    counts = Counter(result.delivery.organization_id for result in results)
    few = {organization_id for organization_id, number in counts.items() if number <= FEW_RESULTS}
    if 0 < len(few) < len(counts):
        first = [result for result in results if result.delivery.organization_id in few]
        later = [result for result in results if result.delivery.organization_id not in few]
    else:
        first, later = list(results), []
    return first[:RESULTS_AT_A_TIME], first[RESULTS_AT_A_TIME:] + later


class Recorder:
    """Records results on the sender's event loop until it is closed.

    run_in_thread: runs database work on a separate thread. gather: awaited before each batch; a sender with a backlog
    waits there for more results. on_recorded: called with the recorded results of each batch, and with whether they
    made room that no claim has seen. gives_up: returns whether results may be left unrecorded while the database is
    away; their leases then expire.
    """

    def __init__(
        self,
        run_in_thread: RunInThread,
        gather: Callable[[], Awaitable[None]],
        on_recorded: Callable[[Sequence[AttemptResult], bool], None],
        gives_up: Callable[[], bool],
    ) -> None:
        self._run_in_thread = run_in_thread
        self._gather = gather
        self._on_recorded = on_recorded
        self._gives_up = gives_up
        self._results: list[AttemptResult] = []
        self._results_before = 0  # how many the last batch had
        self._changed = asyncio.Event()
        self._closed = False

    def add(self, result: AttemptResult) -> None:
        """Take a result to be recorded."""
        self._results.append(result)
        self._changed.set()

    def close(self) -> None:
        """Let `run` end once everything is recorded."""
        self._closed = True
        self._changed.set()

    async def run(self) -> None:
        """Record what is added; what is added meanwhile makes the next batch."""
        while self._results or not self._closed:
            await self._changed.wait()
            await self._gather()
            self._changed.clear()
            while self._results:
                if self._results_before >= GATHER_FROM and processors_are_busy():
                    await asyncio.sleep(GATHER_SECONDS)
                batch, self._results = next_batch(self._results)
                self._results_before = len(batch)
                unrecorded, made_room = await self._record(batch)
                left_out = {id(result) for result in unrecorded}
                self._on_recorded([result for result in batch if id(result) not in left_out], made_room)
            if self._closed:
                return

    async def _record(self, batch: list[AttemptResult]) -> tuple[list[AttemptResult], bool]:
        """Record a batch, and repeat that while the database is away, so that no response is lost.

        Returns what is still unrecorded once `gives_up` says so, and whether the others made room.
        """
        left, made_room = batch, False
        while left:
            try:
                left, has_room = await self._run_in_thread(lambda results=left: record_each(results))  # type: ignore[misc]
                made_room = made_room or has_room
            except Exception as error:
                log.warning("record_failed", results=len(left), error=repr(error)[:300])
            if left:
                if self._gives_up():
                    break
                await asyncio.sleep(RETRY_SECONDS)
        return left, made_room
