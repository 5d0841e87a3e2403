"""The sender: a thread with an event loop that claims, sends, and records many deliveries at a time.

It runs beside the RQ worker's own loop, so that an endpoint that hangs delays neither the fan-out nor other webhooks.
No database transaction is open while a request is on the wire.

Its parts: the claim loop (`claim_loop`) takes due deliveries, `InFlight` counts them, a task sends each of them, and
the recorder (`recorder`) writes the results.  `ClaimProgress` knows whether anything may still be due.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from typing import TypeVar

import structlog
from django.conf import settings

from core.db import borrow_connection
from webhooks.destinations.base import Destination
from webhooks.destinations.kinds import PushedDestinations
from webhooks.destinations.outcome import Failure
from webhooks.dispatch import leases
from webhooks.dispatch.backlog_sender import BacklogSender
from webhooks.dispatch.claim import Claim, Occupancy, QueueFilter
from webhooks.dispatch.claim_loop import ClaimLoop
from webhooks.dispatch.claim_state import ClaimProgress
from webhooks.dispatch.delivery import AttemptResult, ClaimedDelivery
from webhooks.dispatch.giving_way import Pace
from webhooks.dispatch.in_flight import InFlight
from webhooks.dispatch.recorder import Recorder
from webhooks.dispatch.taking import TakingLoop
from webhooks.lease_lengths import lease_seconds
from webhooks.tracing import end_attempt, start_attempt

log = structlog.get_logger()
T = TypeVar("T")

# With this many requests in flight, the results and free places of a backlog are gathered for this long: a transaction
# for fifty results costs little more than one for ten.
GATHER_FROM = 64
GATHER_SECONDS = 0.01
# How long the backlog sender may take, after its grace period, to record its results and end.
BACKLOG_SENDER_END_SECONDS = 10.0
# A request isn't begun if its lease could end before it is recorded: this share of LEASE_MARGIN is for recording.
RECORDING_SHARE = 1 / 6


def lease_covers_attempt(lease_ends: float, now: float) -> bool:
    """Return whether an attempt that starts now will be recorded before its lease ends (monotonic seconds)."""
    return now <= lease_ends - settings.DELIVERY_TIMEOUT - settings.LEASE_MARGIN * RECORDING_SHARE


class Sender:
    """One per process: `start` it, `wake` it whenever deliveries may be due, and `stop` it.

    capacity: most deliveries in flight.  poll_seconds: how often it looks without being woken.  queues: those that it
    claims from.  with_backlog_sender: whether it may leave queues with a backlog to another process. pace: of the
    transactions, in that process. kept_for_hand_over: places that claims leave to deliveries that are handed over.
    takes_leased: whether it takes what the front door leases.
    """

    def __init__(
        self,
        capacity: int,
        poll_seconds: float,
        queues: QueueFilter = QueueFilter.ALL,
        *,
        with_backlog_sender: bool = False,
        kept_for_hand_over: int = 0,
        takes_leased: bool = False,
        pace: Pace | None = None,
    ) -> None:
        self._takes_leased = takes_leased
        self._pace = pace
        self._poll_seconds = poll_seconds
        self._queues = queues
        self._with_backlog_sender = with_backlog_sender
        self._progress = ClaimProgress()
        self._in_flight = InFlight(capacity, kept_for_hand_over)
        self._given_back: set[uuid.UUID] = set()  # leases that were handed over while the sender was stopping
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ready = threading.Event()
        self._stopping = False
        self._grace_ends = float("inf")
        self._claim_thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="claim")
        self._record_thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="record")

    # --- called from other threads --------------------------------------------------------------

    def start(self) -> None:
        """Start the thread; returns once its loop runs."""
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="sender", daemon=True)
        self._thread.start()
        self._ready.wait()

    @property
    def is_alive(self) -> bool:
        """Return whether the thread runs."""
        return self._thread is not None and self._thread.is_alive()

    def wake(self, *, backlog: bool = True) -> None:
        """Say that deliveries may be due.

        backlog: whether the backlog sender should look, too.  It needn't be told of what a fan-out adds to a queue
        with a backlog, because it goes on claiming as long as there is one.
        """
        self._progress.request()
        self._call(self._look_and_wake_backlog_sender if backlog else self._look)

    def take_over_fan_out(self) -> bool:
        """Start or wake the backlog sender's process, because a fan-out left events behind; return whether it runs.

        If it doesn't, the caller has to process those events itself. True may also mean that it is starting.
        """
        if not self._with_backlog_sender or not self.is_alive:
            return False
        self._call(self._start_backlog_sender)
        return self._backlog_sender.is_running

    def take_over_runs(self) -> bool:
        """Have the backlog sender's process advance the runs in the background; return whether it can.

        If it can't, it is being started.
        """
        if not self._with_backlog_sender or not self.is_alive:
            return False
        self._call(self._backlog_sender.take_over_runs)
        return self._backlog_sender.is_ready

    def has_room(self) -> bool:
        """Return whether there is room for claims."""
        return self.is_alive and not self._stopping and self._in_flight.claimable > 0

    def reserve(self, places: int) -> int:
        """Reserve up to `places` places for deliveries that will be handed over; return how many."""
        return self._in_flight.reserve(places) if self.is_alive and not self._stopping else 0

    def release_places(self, number: int) -> None:
        """Give reserved places back."""
        self._in_flight.release(number)

    def free_places(self) -> int:
        """Return how many places are neither taken nor reserved."""
        return self._in_flight.free

    def unoccupied_places(self) -> int:
        """Return how many places are not taken, reserved or not."""
        return self._in_flight.unoccupied

    def occupancy(self) -> Occupancy:
        """Return which places are taken, and by whom."""
        return self._in_flight.occupancy()

    def take(self, claimed: Claim, reserved: int) -> None:
        """Send deliveries that are leased to this sender and for which `reserved` places are held.

        A sender that stops gives them back.
        """
        if self._stopping or not self._call(lambda: self._take(claimed, reserved)):
            leases.release({delivery.lease_id for delivery in claimed.deliveries})
            self._in_flight.release(reserved)

    def stop_claiming(self) -> None:
        """Claim nothing more; what is in flight goes on."""
        self._stopping = True
        self._call(self._stop_claiming)

    def wait_until_drained(self, timeout: float | None = None) -> bool:
        """Wait until nothing is due or in flight; False if `timeout` seconds passed first."""
        return self._progress.wait_until_drained(timeout)

    def stop(self, grace_seconds: float) -> None:
        """Stop claiming, give requests in flight `grace_seconds` to finish, and give the other leases back."""
        self._grace_ends = time.monotonic() + grace_seconds
        self.stop_claiming()
        if self._thread is not None:
            self._thread.join()

    def _call(self, action: Callable[[], None]) -> bool:
        """Run `action` on the sender's loop soon; False when the loop has ended."""
        loop = self._loop
        if loop is None or loop.is_closed():
            return False
        try:
            loop.call_soon_threadsafe(action)
        except RuntimeError:  # the loop was closed between the two lines
            return False
        return True

    # --- on the sender's own thread ---------------------------------------------------------------

    def _take(self, claimed: Claim, reserved: int) -> None:
        if self._stopping:
            self._given_back |= {delivery.lease_id for delivery in claimed.deliveries}
        else:
            for delivery in claimed.deliveries:
                self._begin(delivery, claimed)
        self._in_flight.release(reserved)

    def _look(self) -> None:
        self._claim_loop.look()

    def _look_and_wake_backlog_sender(self) -> None:
        self._claim_loop.look()
        self._backlog_sender.wake()

    def _start_backlog_sender(self) -> None:
        self._backlog_sender.start()
        self._backlog_sender.wake()

    def _stop_claiming(self) -> None:
        self._claim_loop.stop()
        self._taking_loop.stop()
        self._backlog_sender.close()

    async def _run(self) -> None:
        """Run the parts until the sender is stopped, then end them one after another.

        In-flight requests finish or are canceled, their results are recorded, the backlog sender ends, and what is
        still leased is given back.
        """
        self._build_parts()
        recording = asyncio.create_task(self._recorder.run())
        taking = extending = None
        if self._takes_leased:
            taking = asyncio.create_task(self._taking_loop.run())
            extending = asyncio.create_task(self._taking_loop.extend_leases())
        if self._stopping:
            self._stop_claiming()
        self._ready.set()
        try:
            await self._claim_loop.run()
        finally:
            self._stopping = True  # whatever ended the loop
            self._backlog_sender.close()
            self._taking_loop.stop()
            if taking is not None:
                await asyncio.wait({taking})
            await self._finish_in_flight()
            if extending is not None:
                extending.cancel()
            self._recorder.close()
            await recording
            await self._backlog_sender.join(max(0.0, self._grace_ends - time.monotonic()) + BACKLOG_SENDER_END_SECONDS)
            await self._destination.aclose()
            await self._release(self._in_flight.leases | self._given_back)
            self._claim_thread.shutdown()
            self._record_thread.shutdown()
            self._progress.end()

    def _build_parts(self) -> None:
        """Make what belongs to the running event loop."""
        self._destination: Destination = PushedDestinations()
        self._backlog_sender = BacklogSender(
            on_end=self.wake, on_due=lambda: self.wake(backlog=False), enabled=self._with_backlog_sender
        )
        self._recorder = Recorder(
            run_in_thread=lambda work: self._in_thread(self._record_thread, work),
            gather=self._gather,
            on_recorded=self._on_recorded,
            gives_up=lambda: time.monotonic() > self._grace_ends,
        )
        self._claim_loop = ClaimLoop(
            poll_seconds=self._poll_seconds,
            queues=self._queues,
            in_flight=self._in_flight,
            progress=self._progress,
            backlog_sender=self._backlog_sender,
            run_in_thread=lambda work: self._in_thread(self._claim_thread, work),
            gather=self._gather,
            begin=self._begin,
            release=lambda claimed: self._release({delivery.lease_id for delivery in claimed.deliveries}),
        )
        self._taking_loop = TakingLoop(
            self._in_flight, begin=self._begin, release=self._give_back, extend=self._extend_leases
        )
        self._loop = asyncio.get_running_loop()

    async def _in_thread(self, thread: concurrent.futures.Executor, work: Callable[[], T]) -> T:
        """Run database work on one of our threads."""
        if (pace := self._pace) is not None:
            return await asyncio.get_running_loop().run_in_executor(
                thread, lambda: pace.run(lambda: borrow_connection(work))
            )
        return await asyncio.get_running_loop().run_in_executor(thread, borrow_connection, work)

    async def _gather(self) -> None:
        """Wait for more results or places, but only where a backlog is worked off with many requests in flight."""
        if self._queues is QueueFilter.WITH_BACKLOG and len(self._in_flight) >= GATHER_FROM:
            await asyncio.sleep(GATHER_SECONDS)

    def _begin(self, delivery: ClaimedDelivery, claimed: Claim) -> None:
        self._progress.work_began()
        self._in_flight.add(delivery)
        self._backlog_sender.others_are_served()
        task = asyncio.get_running_loop().create_task(self._deliver(delivery, claimed))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _deliver(self, delivery: ClaimedDelivery, claimed: Claim) -> None:
        """Make one attempt and hand its result to the recorder."""
        started = time.monotonic()
        if not lease_covers_attempt(claimed.lease_ends, started):
            # The process was paused for a while.  The lease ends by itself, and the sweep notices.
            self._in_flight.remove([delivery])
            return
        started_at = claimed.clock.now()
        span = start_attempt(delivery)
        outcome = await self._destination.send(delivery, started_at)
        if span is not None:
            end_attempt(span, outcome)
        if outcome.failure is Failure.INTERNAL_ERROR:
            log.error("attempt_failed_here", delivery_id=str(delivery.delivery_id), reason=outcome.detail)
        duration_ms = (time.monotonic() - started) * 1000
        self._recorder.add(AttemptResult(delivery, outcome, started_at, duration_ms))

    def _on_recorded(self, results: Sequence[AttemptResult], made_room: bool) -> None:
        """Give the places of recorded results back, and claim again if there may be more to claim."""
        self._in_flight.remove([result.delivery for result in results])
        self._backlog_sender.results_recorded([result.delivery.subscription_id for result in results], self._in_flight)
        if made_room or self._progress.may_have_missed_room():
            self._progress.request()
            self._claim_loop.look()
        self._progress.check_drained(len(self._in_flight))

    async def _finish_in_flight(self) -> None:
        """Wait for the requests on the wire until the grace ends, then cancel them."""
        while self._tasks and time.monotonic() < self._grace_ends:
            await asyncio.wait(set(self._tasks), timeout=min(1.0, max(0.01, self._grace_ends - time.monotonic())))
        for task in set(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=5)

    async def _give_back(self, lease_ids: set[uuid.UUID]) -> None:
        """Give leases back that there was no place for, and claim their deliveries when there is."""
        await self._release(lease_ids)
        self._progress.request()
        self._claim_loop.look()

    async def _extend_leases(self, deliveries: Sequence[ClaimedDelivery]) -> None:
        """Make the leases of deliveries in flight as long as those of a claim."""
        try:
            await self._in_thread(self._claim_thread, lambda: leases.extend(deliveries, lease_seconds()))
        except Exception as error:
            log.warning("leases_not_extended", deliveries=len(deliveries), error=repr(error)[:300])

    async def _release(self, lease_ids: set[uuid.UUID]) -> None:
        """Give leases back, so that other workers don't have to wait until they expire."""
        if not lease_ids:
            return
        try:
            released = await self._in_thread(self._claim_thread, lambda: leases.release(lease_ids))
            log.info("leases_released", deliveries=released)
        except Exception as error:
            log.warning("release_failed", error=repr(error)[:300])  # they expire


_current: Sender | None = None


def start_sender(*, with_backlog_sender: bool) -> Sender:
    """Start this process's sender, or return the one that runs.

    with_backlog_sender: whether it goes on after all is sent, and so may start that process, and takes what the front
    door leases.
    """
    global _current
    if _current is None or not _current.is_alive:
        _current = Sender(
            settings.MAX_CONCURRENT_DELIVERIES,
            settings.SWEEP_INTERVAL,
            with_backlog_sender=with_backlog_sender,
            takes_leased=with_backlog_sender,
            kept_for_hand_over=settings.MAX_CONCURRENT_DELIVERIES // 8,
        )
        _current.start()
    return _current


def current_sender() -> Sender | None:
    """Return this process's sender while it runs."""
    return _current if _current is not None and _current.is_alive else None
