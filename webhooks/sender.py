"""The sender: a thread with an event loop that claims, sends and records, many at a time.

It runs beside the RQ worker's own loop, so that a receiver that hangs delays neither the fan-out nor
anybody else's webhooks.  No database transaction is open while a request is on the wire.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import functools
import heapq
import random
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable
from typing import TypeVar

import orjson
import structlog
from django.conf import settings

from core.db import borrow_connection
from webhooks import claiming, leases, recording
from webhooks.busylanes import BusyLanes
from webhooks.claiming import Claim, Claimed, Clock, Held, Lanes
from webhooks.recording import Result
from webhooks.schedule import Answer, Failure
from webhooks.signing import sign
from webhooks.transport import Egress, Transport, explain

log = structlog.get_logger()
T = TypeVar("T")

USER_AGENT = "TriggersAPI/1.0"
RECORD_AT_A_TIME = 500
RETRY_SECONDS = 0.5
CROWDED_SECONDS = 0.03
# With so many requests in flight, a backlog's results and free places are gathered for so long: a transaction costs
# nearly the same for ten as for fifty.
GATHER_FROM = 64
GATHER_SECONDS = 0.01
# How long what a rate limit allows is gathered at the least: a claim costs the same for one delivery as for ten.
RATE_SECONDS = 0.02
# After its own grace, how long the process for the busy lanes may take to record and to end.
BUSY_LANES_END_SECONDS = 10.0
# A request isn't begun when its lease would end before it could be recorded: this share of the margin is for that.
RECORDING_SHARE = 1 / 6


def build_body(claimed: Claimed) -> bytes:
    """Return the bytes that are sent and signed; `data` is the producer's text as it came."""
    head = orjson.dumps(
        {"id": claimed.event_id, "type": claimed.event_type, "timestamp": claimed.event_created_at},
        option=orjson.OPT_UTC_Z,
    )
    return head[:-1] + b',"data":' + claimed.event_data.encode() + b"}"


def build_headers(claimed: Claimed, timestamp: int, body: bytes) -> list[tuple[str, str]]:
    """Return the headers of Standard Webhooks and the subscription's own, which can't replace ours."""
    webhook_id = str(claimed.event_id)
    ours = [
        ("content-type", "application/json"),
        ("user-agent", USER_AGENT),
        ("webhook-id", webhook_id),
        ("webhook-timestamp", str(timestamp)),
        ("webhook-signature", sign(claimed.receiver.keys, webhook_id, timestamp, body)),
    ]
    return ours + list(claimed.receiver.headers)


def egress_from_settings() -> Egress:
    """Return the way out that the settings describe."""
    return Egress(
        timeout=settings.DELIVERY_TIMEOUT,
        body_bytes=settings.RESPONSE_BODY_BYTES,
        allowed_networks=settings.WEBHOOK_ALLOWED_SUBNETS,
        allowed_ports=settings.WEBHOOK_ALLOWED_PORTS,
        proxy_url=settings.WEBHOOK_PROXY_URL,
        ca_file=settings.WEBHOOK_CA_FILE,
        dns_cache_ttl=settings.DNS_CACHE_TTL,
        dns_servers=settings.WEBHOOK_DNS_SERVERS,
        connections=settings.MAX_CONCURRENT_DELIVERIES,
    )


class Sender:
    """One per process.  `start`, `wake` as often as there may be work, `stop`.

    capacity: deliveries in work at a time.  poll_seconds: how often it looks without being woken.  lanes: those
    it claims from.  with_busy_lanes: whether it may start a process for the busy ones and leave them to it.
    """

    def __init__(
        self, capacity: int, poll_seconds: float, lanes: Lanes = Lanes.ALL, *, with_busy_lanes: bool = False
    ) -> None:
        self._capacity = capacity
        self._poll_seconds = poll_seconds
        self._lanes = lanes
        self._busy_lanes = BusyLanes(on_end=self.wake) if with_busy_lanes else None
        # Lanes that a claim left busy while requests to them are in flight here: each result may let the other go on.
        self._left_busy: set[uuid.UUID] = set()
        self._left_behind = False  # whether a claim runs, or the last one may have left something
        self._seen_wakes = 0  # of the last claim
        self._looks: list[float] = []  # a heap: when rate limits allow more, by the monotonic clock
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ready = threading.Event()
        self._drained = threading.Event()
        self._drained_lock = threading.Lock()
        self._wakes = 0
        self._stopping = False
        self._grace_ends = float("inf")
        self._claim_thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="claim")
        self._record_thread = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="record")
        self._tasks: set[asyncio.Task[None]] = set()
        # Deliveries that have a place here.
        self._leases: Counter[uuid.UUID] = Counter()
        self._held = Held()
        self._results: list[Result] = []
        self._unrecorded = 0

    # --- from other threads ---------------------------------------------------------------------

    def start(self) -> None:
        """Start the thread; returns when its loop runs."""
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="sender", daemon=True)
        self._thread.start()
        self._ready.wait()

    @property
    def is_alive(self) -> bool:
        """Tell whether the thread runs."""
        return self._thread is not None and self._thread.is_alive()

    def wake(self, *, busy_lanes: bool = True) -> None:
        """Say that deliveries may be due.  busy_lanes: whether those of busy lanes may be, too.

        What a fan-out adds to a busy lane need not be told: a lane stays busy only as long as somebody will look.
        """
        with self._drained_lock:
            self._wakes += 1
            self._drained.clear()
        self._call(self._look if busy_lanes else self._look_here)

    def has_room(self) -> bool:
        """Tell whether this sender could take more now."""
        return self.is_alive and not self._stopping and len(self._tasks) + self._unrecorded < self._capacity

    def stop_claiming(self) -> None:
        """Claim nothing more; what is in flight goes on."""
        self._stopping = True
        self._call(self._look)

    def wait_until_drained(self, timeout: float | None = None) -> bool:
        """Wait until nothing is due or in flight; False when `timeout` seconds passed first."""
        return self._drained.wait(timeout)

    def stop(self, grace_seconds: float) -> None:
        """Stop claiming, let requests in flight finish for `grace_seconds`, give the other leases back."""
        self._grace_ends = time.monotonic() + grace_seconds
        self.stop_claiming()
        if self._thread is not None:
            self._thread.join()

    def _call(self, action: Callable[[], None]) -> None:
        loop = self._loop
        if loop is not None and not loop.is_closed():
            with contextlib.suppress(RuntimeError):  # the loop may close between the two lines
                loop.call_soon_threadsafe(action)

    # --- on the sender's own thread ---------------------------------------------------------------

    def _look_here(self) -> None:
        self._work.set()

    def _look(self) -> None:
        """Look for work, here and in the process for the busy lanes; or stop there, too."""
        self._work.set()
        if self._busy_lanes is not None:
            if self._stopping:
                self._busy_lanes.close()
            else:
                self._busy_lanes.wake()

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._work = asyncio.Event()
        self._recordable = asyncio.Event()
        self._transport = Transport(egress_from_settings())
        self._ready.set()
        recorder = asyncio.create_task(self._record_results())
        try:
            await self._claim_and_send()
            await self._finish_in_flight()
        finally:
            self._stopping = True  # whatever ended the loop: the recorder ends when all is recorded
            self._look()
            self._recordable.set()
            await recorder
            if self._busy_lanes is not None:
                await self._busy_lanes.join(max(0.0, self._grace_ends - time.monotonic()) + BUSY_LANES_END_SECONDS)
            await self._transport.aclose()
            await self._release(set(self._leases))
            self._claim_thread.shutdown()
            self._record_thread.shutdown()
            self._drained.set()

    async def _in(self, thread: concurrent.futures.Executor, work: Callable[[], T]) -> T:
        """Run database work on one of our threads."""
        return await asyncio.get_running_loop().run_in_executor(thread, borrow_connection, work)

    def _may_claim(self) -> bool:
        return not self._stopping

    def _room(self) -> int:
        return self._capacity - len(self._tasks) - self._unrecorded

    async def _claim_and_send(self) -> None:
        """Claim while there is room and work; otherwise sleep until woken, or until it is time to look."""
        while not self._stopping:
            self._work.clear()
            wakes = self._wakes
            claim = Claim()
            room = self._room()
            self._left_behind = True
            if room > 0 and not settings.DISABLE_WEBHOOK_DELIVERY:
                try:
                    claim = await self._claim(room)
                except Exception as error:
                    log.warning("claim_failed", error=repr(error)[:300])
                    await asyncio.sleep(RETRY_SECONDS)
                    continue
                if not self._may_claim():
                    # The order to stop came meanwhile: other workers can have these at once.
                    await self._release({claimed.lease_id for claimed in claim.deliveries})
                    return
                for claimed in claim.deliveries:
                    self._begin(claimed, claim.clock, claim.deadline)
                self._leave_busy(claim.busy)
            self._left_behind = claim.more or claim.was_crowded or room <= 0
            self._seen_wakes = wakes
            self._tell_if_drained()
            more = claim.more and bool(claim.deliveries)
            if more and self._room() > 0:
                await self._gather()
                continue
            wait = self._poll_seconds
            if self._looks:
                wait = min(wait, max(0.0, self._looks[0] - time.monotonic()))
            if claim.was_crowded:  # others hold the lanes for a moment; not all must come back at the same one
                wait = min(wait, CROWDED_SECONDS * random.uniform(0.5, 1.5))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._work.wait()
            await self._gather()

    def _tell_if_drained(self) -> None:
        """Say so when nothing is in work and nothing can be due that no claim has seen."""
        with self._drained_lock:
            seen = self._seen_wakes == self._wakes and not self._left_behind and not self._work.is_set()
            if seen and not self._tasks and not self._unrecorded:
                self._drained.set()

    async def _gather(self) -> None:
        """Wait for more results or places, where a backlog is worked off and many requests are in flight."""
        if self._lanes is Lanes.BUSY and len(self._tasks) >= GATHER_FROM:
            await asyncio.sleep(GATHER_SECONDS)

    async def _claim(self, room: int) -> Claim:
        lanes = self._lanes
        if self._busy_lanes is not None and self._busy_lanes.is_ready:
            lanes = Lanes.QUIET
        while self._looks and self._looks[0] <= time.monotonic():
            heapq.heappop(self._looks)
            if self._busy_lanes is not None:
                self._busy_lanes.wake()  # if it is there, the lane is its by now
        claim = await self._in(self._claim_thread, functools.partial(claiming.claim, room, self._held.copy(), lanes))
        for wait in claim.waits:
            if wait < self._poll_seconds:
                heapq.heappush(self._looks, time.monotonic() + max(RATE_SECONDS, wait))
        return claim

    def _leave_busy(self, lanes: frozenset[uuid.UUID]) -> None:
        """Leave what these lanes have left to the process for busy lanes, which is started if need be."""
        if lanes and self._busy_lanes is not None:
            self._left_busy |= lanes & self._held.by_subscription.keys()
            self._busy_lanes.start()
            self._busy_lanes.wake()

    def _begin(self, claimed: Claimed, clock: Clock, deadline: float) -> None:
        self._drained.clear()
        self._leases[claimed.lease_id] += 1
        self._held.add(claimed)
        task = asyncio.get_running_loop().create_task(self._deliver(claimed, clock, deadline))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _deliver(self, claimed: Claimed, clock: Clock, deadline: float) -> None:
        if time.monotonic() > deadline - settings.DELIVERY_TIMEOUT - settings.LEASE_MARGIN * RECORDING_SHARE:
            # This process was stopped for a while; the lease is as good as over, and its end is noticed.
            self._give_up_place(claimed)
            return
        started = time.monotonic()
        started_at = clock.now()
        try:
            if claimed.receiver.fault:
                answer = Answer(failure=Failure.INTERNAL_ERROR, detail=claimed.receiver.fault)
            else:
                body = build_body(claimed)
                headers = build_headers(claimed, int(started_at), body)
                answer = await self._transport.send(claimed.receiver.url, headers, body)
        except Exception as error:
            answer = explain(error)
        if answer.failure is Failure.INTERNAL_ERROR:
            log.error("attempt_failed_here", delivery_id=str(claimed.delivery_id), reason=answer.detail)
        self._keep(Result(claimed, answer, started_at, (time.monotonic() - started) * 1000))

    def _keep(self, result: Result) -> None:
        self._results.append(result)
        self._unrecorded += 1
        self._recordable.set()

    async def _record_results(self) -> None:
        """Record results as they come; those that come meanwhile make the next batch."""
        while True:
            await self._recordable.wait()
            await self._gather()
            self._recordable.clear()
            while self._results:
                batch, self._results = self._results[:RECORD_AT_A_TIME], self._results[RECORD_AT_A_TIME:]
                unrecorded, made_room = await self._record(batch)
                self._unrecorded -= len(batch)
                kept = {id(result) for result in unrecorded}
                if self._busy_lanes and any(result.claimed.subscription_id in self._left_busy for result in batch):
                    self._busy_lanes.wake()
                for result in batch:
                    if id(result) not in kept:
                        self._give_up_place(result.claimed)
                if made_room or self._left_behind:
                    self._work.set()  # a claim that runs may not have seen the room
                self._tell_if_drained()
            if self._stopping and not self._tasks and not self._results:
                return

    async def _record(self, batch: list[Result]) -> tuple[list[Result], bool]:
        """Record a batch, again and again while the database is away: an answer isn't forgotten.

        Returns what could not be recorded when the grace was over, whose leases are given back, and whether there
        is room in a lane that had none.
        """
        left = batch
        made_room = False
        while left:
            try:
                left, has_room = await self._in(
                    self._record_thread,
                    lambda results=left: recording.record_each(results),  # type: ignore[misc]
                )
                made_room = made_room or has_room
            except Exception as error:
                log.warning("record_failed", results=len(left), error=repr(error)[:300])
            if left:
                if time.monotonic() > self._grace_ends:
                    break
                await asyncio.sleep(RETRY_SECONDS)
        return left, made_room

    def _give_up_place(self, claimed: Claimed) -> None:
        self._leases[claimed.lease_id] -= 1
        if self._leases[claimed.lease_id] <= 0:
            del self._leases[claimed.lease_id]
        self._held.remove(claimed)
        if claimed.subscription_id not in self._held.by_subscription:
            self._left_busy.discard(claimed.subscription_id)

    async def _finish_in_flight(self) -> None:
        while self._tasks and time.monotonic() < self._grace_ends:
            await asyncio.wait(set(self._tasks), timeout=min(1.0, max(0.01, self._grace_ends - time.monotonic())))
        for task in set(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=5)
        self._recordable.set()

    async def _release(self, lease_ids: set[uuid.UUID]) -> None:
        if not lease_ids:
            return
        try:
            released = await self._in(self._claim_thread, lambda: leases.release(lease_ids))
            log.info("leases_released", deliveries=released)
        except Exception as error:
            log.warning("release_failed", error=repr(error)[:300])  # they expire


_current: Sender | None = None


def start_sender(*, with_busy_lanes: bool) -> Sender:
    """Start this process's sender, or return the one that runs."""
    global _current
    if _current is None or not _current.is_alive:
        _current = Sender(settings.MAX_CONCURRENT_DELIVERIES, settings.SWEEP_INTERVAL, with_busy_lanes=with_busy_lanes)
        _current.start()
    return _current


def current_sender() -> Sender | None:
    """Return this process's sender while it runs."""
    return _current if _current is not None and _current.is_alive else None
