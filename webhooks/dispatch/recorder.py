"""The recorder: collects results while the last batch is being written, and writes them together."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, TypeVar

import structlog

from webhooks.dispatch.delivery import AttemptResult
from webhooks.dispatch.record import record_each, record_unlocked

log = structlog.get_logger()

RESULTS_AT_A_TIME = 500
RETRY_SECONDS = 0.5

T = TypeVar("T")
Results = list[AttemptResult]


class RunInThread(Protocol):
    """Runs database work on a thread of its own."""

    def __call__(self, work: Callable[[], T]) -> Awaitable[T]:
        """Return what `work` returns."""
        ...


class Recorder:
    """Records results on the sender's event loop until it is closed.

    A queue may be locked for long, for instance by the backlog sender on a busy machine.  The results of an
    organization with such a queue wait for the lock apart from the others.

    run_in_thread, run_waiting: each runs database work on a separate thread; the second one waits for locks. gather:
    awaited before each batch; a sender with a backlog waits there for more results. on_recorded: called with the
    recorded results of each batch, and with whether they made room that no claim has seen. gives_up: returns whether
    results may be left unrecorded while the database is away; their leases then expire.
    """

    def __init__(
        self,
        run_in_thread: RunInThread,
        run_waiting: RunInThread,
        gather: Callable[[], Awaitable[None]],
        on_recorded: Callable[[Sequence[AttemptResult], bool], None],
        gives_up: Callable[[], bool],
    ) -> None:
        self._run_in_thread = run_in_thread
        self._run_waiting = run_waiting
        self._gather = gather
        self._on_recorded = on_recorded
        self._gives_up = gives_up
        self._results: Results = []
        self._changed = asyncio.Event()
        self._closed = False
        self._locked: Results = []
        self._locked_changed = asyncio.Event()
        self._ends = False

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
        waiting = asyncio.create_task(self._record_locked())
        try:
            while self._results or not self._closed:
                await self._changed.wait()
                await self._gather()
                self._changed.clear()
                while self._results:
                    batch, self._results = self._results[:RESULTS_AT_A_TIME], self._results[RESULTS_AT_A_TIME:]
                    await self._record(batch, self._record_unlocked)
        finally:
            self._ends = True
            self._locked_changed.set()
            await waiting

    async def _record_locked(self) -> None:
        """Record the results that have to wait for a lock."""
        while self._locked or not self._ends:
            await self._locked_changed.wait()
            self._locked_changed.clear()
            while self._locked:
                batch, self._locked = self._locked[:RESULTS_AT_A_TIME], self._locked[RESULTS_AT_A_TIME:]
                await self._record(batch, self._record_waiting)
            if self._ends:
                return

    async def _record_unlocked(self, results: Results) -> tuple[Results, Results, bool]:
        return await self._run_in_thread(lambda: record_unlocked(results))

    async def _record_waiting(self, results: Results) -> tuple[Results, Results, bool]:
        return [], *await self._run_waiting(lambda: record_each(results))

    async def _record(
        self, batch: Results, record: Callable[[Results], Awaitable[tuple[Results, Results, bool]]]
    ) -> None:
        """Record a batch, and repeat that while the database is away, so that no response is lost.

        Left unrecorded is what has to wait for a lock, and everything once `gives_up` says so.
        """
        left, made_room = batch, False
        unrecorded: set[int] = set()
        while left:
            try:
                locked, left, has_room = await record(left)
                made_room = made_room or has_room
                if locked:
                    unrecorded |= {id(result) for result in locked}
                    self._locked += locked
                    self._locked_changed.set()
            except Exception as error:
                log.warning("record_failed", results=len(left), error=repr(error)[:300])
            if left:
                if self._gives_up():
                    break
                await asyncio.sleep(RETRY_SECONDS)
        unrecorded |= {id(result) for result in left}
        self._on_recorded([result for result in batch if id(result) not in unrecorded], made_room)
