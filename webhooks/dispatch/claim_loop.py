"""The claim loop: claims while there is room and work, and otherwise sleeps until it is time to look again."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import random
import time
from collections.abc import Awaitable, Callable, Iterable

import structlog
from django.conf import settings

from webhooks.dispatch.backlog_sender import BacklogSender
from webhooks.dispatch.claim import Claim, QueueFilter, claim
from webhooks.dispatch.claim_state import ClaimProgress
from webhooks.dispatch.delivery import ClaimedDelivery
from webhooks.dispatch.in_flight import InFlight
from webhooks.dispatch.lagging import LaggingNotes

log = structlog.get_logger()

RETRY_SECONDS = 0.5
SKIPPED_LOCKED_SECONDS = 0.03
# Deliveries that a rate limit allows are gathered for at least this long: a claim costs the same for one as for ten.
RATE_SECONDS = 0.02

RunInThread = Callable[[Callable[[], Claim]], Awaitable[Claim]]


class RateTimers:
    """When rate limits allow more, by the monotonic clock."""

    def __init__(self) -> None:
        self._heap: list[float] = []

    def add(self, waits: Iterable[float], within: float) -> None:
        """Remember the waits (seconds from now) that end within `within` seconds."""
        for wait in waits:
            if wait < within:
                heapq.heappush(self._heap, time.monotonic() + max(RATE_SECONDS, wait))

    def pop_due(self) -> bool:
        """Remove the times that have come; return whether there were any."""
        found = False
        while self._heap and self._heap[0] <= time.monotonic():
            heapq.heappop(self._heap)
            found = True
        return found

    def seconds_until_next(self) -> float:
        """Return how many seconds from now the next time is; infinity if there is none."""
        return max(0.0, self._heap[0] - time.monotonic()) if self._heap else float("inf")


class ClaimLoop:
    """Claims deliveries on the sender's event loop and hands each to `begin` until it is stopped.

    poll_seconds: how often it looks without being woken.  queues: those that it claims from.  run_in_thread: runs a
    claim on a separate thread.  gather: awaited between claims; a sender with a backlog waits there for more room.
    release: gives back what was claimed after the order to stop.
    """

    def __init__(
        self,
        *,
        poll_seconds: float,
        queues: QueueFilter,
        in_flight: InFlight,
        progress: ClaimProgress,
        backlog_sender: BacklogSender,
        run_in_thread: RunInThread,
        gather: Callable[[], Awaitable[None]],
        begin: Callable[[ClaimedDelivery, Claim], None],
        release: Callable[[Claim], Awaitable[None]],
    ) -> None:
        self._poll_seconds = poll_seconds
        self._queues = queues
        self._in_flight = in_flight
        self._progress = progress
        self._backlog_sender = backlog_sender
        self._run_in_thread = run_in_thread
        self._gather = gather
        self._begin = begin
        self._release = release
        self._woken = asyncio.Event()
        self._rate_timers = RateTimers()
        self._lagging_notes = LaggingNotes(in_flight)
        self._stopped = False

    def look(self) -> None:
        """Look for due deliveries soon."""
        self._woken.set()

    def stop(self) -> None:
        """Claim nothing more."""
        self._stopped = True
        self._woken.set()

    async def run(self) -> None:
        """Claim, begin what was claimed, and wait for a reason to claim again."""
        while not self._stopped:
            self._woken.clear()
            self._progress.claim_begins()
            is_off = settings.DISABLE_WEBHOOK_DELIVERY
            room = 0 if is_off else self._in_flight.reserve_for_claim()
            if room > 0:
                try:
                    claimed = await self._claim(room)
                except Exception as error:
                    self._in_flight.release(room)
                    log.warning("claim_failed", error=repr(error)[:300])
                    await asyncio.sleep(RETRY_SECONDS)
                    continue
                if self._is_stopped():
                    # The order to stop came meanwhile: other workers can have these at once.
                    await self._release(claimed)
                    return
                for delivery in claimed.deliveries:
                    self._begin(delivery, claimed)
                self._in_flight.release(room)
                self._backlog_sender.take_over(claimed.backlog, self._in_flight)
            else:
                claimed = Claim()
            self._progress.claim_ended(claimed.more or claimed.skipped_locked or (room <= 0 and not is_off))
            self._progress.check_drained(len(self._in_flight))
            if not (claimed.more and claimed.deliveries and self._in_flight.free > 0):
                await self._sleep(claimed.skipped_locked)
            await self._gather()

    def _is_stopped(self) -> bool:
        return self._stopped

    async def _claim(self, room: int) -> Claim:
        """Claim from this sender's queues; those with a backlog belong to the backlog sender while it runs."""
        queues = QueueFilter.WITHOUT_BACKLOG if self._backlog_sender.is_ready else self._queues
        if self._rate_timers.pop_due():
            self._backlog_sender.wake()  # the queue that waited for its rate limit may belong to it by now
        occupancy = self._in_flight.occupancy()

        def claim_and_note() -> Claim:
            claimed = claim(room, occupancy, queues)
            self._lagging_notes.note(claimed.lagging)
            return claimed

        claimed = await self._run_in_thread(claim_and_note)
        self._rate_timers.add(claimed.rate_waits, within=self._poll_seconds)
        return claimed

    async def _sleep(self, skipped_locked: bool) -> None:
        """Sleep until woken, until a rate limit allows more, or until it is time to look in any case."""
        wait = min(self._poll_seconds, self._rate_timers.seconds_until_next())
        if skipped_locked:  # others hold the locks for a moment; not all may come back at the same time
            wait = min(wait, SKIPPED_LOCKED_SECONDS * random.uniform(0.5, 1.5))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait):
                await self._woken.wait()
