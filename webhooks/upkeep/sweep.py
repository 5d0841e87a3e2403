"""The sweep: what workers take care of between jobs, so that a lost wake-up costs seconds.

One worker at a time does it; a lease in the database decides which.  None of it needs Redis.
"""

from __future__ import annotations

import random
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import structlog
from django.conf import settings

from core.db import is_transient
from events.backlog import waiting_events
from webhooks.dispatch import leases
from webhooks.models import SubscriptionQueue
from webhooks.ordering_keys import repair_order
from webhooks.rollups import keep_rollups
from webhooks.subscriptions import resync
from webhooks.upkeep import background_runs, notifications, partitions
from webhooks.upkeep.held_retention import HeldRetention
from webhooks.upkeep.inbox_retention import InboxRetention
from webhooks.upkeep.queue_repair import recount_in_flight, repair_next_due_at
from webhooks.upkeep.retention import Purge
from webhooks.upkeep.task_lease import Lease

log = structlog.get_logger()
T = TypeVar("T")

SWEEP = "sweep"
PURGE_EVERY_SECONDS = 60.0
PARTITIONS_EVERY_SECONDS = 60.0
QUEUE_REPAIR_SECONDS = 30.0
NOTIFY_EVERY_SECONDS = 2.0
EXPIRING_KEYS_EVERY_SECONDS = 60.0
PURGE_SLICE_SECONDS = 2.0
CANCEL_SLICE_SECONDS = 1.0
RUN_SLICE_SECONDS = 0.25
RESYNC_SLICE_SECONDS = 1.0


class Sweep:
    """Runs the parts of the sweep, the rarer ones when they are due.

    events_waiting: called when accepted events wait.  take_over_runs: has another process advance the runs in the
    background, and returns False if there is none yet.
    """

    def __init__(self, events_waiting: Callable[[], None], take_over_runs: Callable[[], bool] = lambda: False) -> None:
        self._events_waiting = events_waiting
        self._take_over_runs = take_over_runs
        self._runs_are_long = False
        self._lease = Lease(SWEEP)
        self._held = HeldRetention()
        self._unfetched = InboxRetention()
        # A partition is dropped when its last event is old enough, and one day later, because the clocks that make ids
        # may differ.
        self._purge = Purge(patience=settings.PARTITION_DAYS + 2)
        self._purged_at = time.monotonic()
        self._partitions_at = float("-inf")
        self._notified_at = self._keys_at = float("-inf")
        self._repaired_queues_at = float("-inf")

    def run(self) -> None:
        """Run one round.  Raises what the database raises; the next round starts from the beginning."""
        if self._lease.take():
            try:
                self._tidy()
            finally:
                self._lease.give_back()
        # Not under the lease: processing may take a while, and any worker can help.
        if waiting_events(1):
            self._events_waiting()

    def _tidy(self) -> None:
        """Run the parts one after another, as long as this process holds the lease."""
        parts: list[tuple[str, Callable[[], object]]] = [
            ("leases", _expire_leases),
            ("resync", _resync_queues),
            ("bulk runs", self._advance_runs),
            ("rollups", keep_rollups),
        ]
        now = time.monotonic()
        if now - self._notified_at >= NOTIFY_EVERY_SECONDS:
            self._notified_at = now
            parts.append(("notifications", notifications.tell))
        if now - self._keys_at >= EXPIRING_KEYS_EVERY_SECONDS:
            self._keys_at = now
            parts.append(("expiring keys", notifications.tell_of_keys))
        if now - self._repaired_queues_at >= QUEUE_REPAIR_SECONDS:
            self._repaired_queues_at = now
            parts += [
                ("overdue queues", repair_next_due_at),
                ("order", repair_order),
                ("miscounted queues", recount_in_flight),
            ]
        if now - self._partitions_at >= PARTITIONS_EVERY_SECONDS:
            self._partitions_at = now
            parts.append(("partitions", partitions.look_after))
        if now - self._purged_at >= PURGE_EVERY_SECONDS:
            # What is cancelled first can be deleted at once.
            parts += [
                ("held deliveries", self._cancel_a_slice),
                ("unfetched deliveries", self._cancel_unfetched),
                ("purge", self._purge_a_slice),
            ]
        for name, work in parts:
            if not self._lease.keep():
                return  # the last part took so long that another worker has taken over
            _part(name, work)

    def _advance_runs(self) -> None:
        """Advance the runs for a slice of time.  Those that take longer are another process's, if there is one.

        In this process, each chunk would hold the interpreter up, which fans out and sends.
        """
        if self._runs_are_long and self._take_over_runs():
            self._runs_are_long = background_runs.are_running()
        else:
            self._runs_are_long = background_runs.advance_all(RUN_SLICE_SECONDS)

    def _cancel_a_slice(self) -> None:
        cancelled = self._held.run(CANCEL_SLICE_SECONDS)
        if cancelled.deliveries:
            log.info("held_deliveries_cancelled", deliveries=cancelled.deliveries)

    def _cancel_unfetched(self) -> None:
        cancelled = self._unfetched.run(CANCEL_SLICE_SECONDS)
        if cancelled.deliveries:
            log.info("unfetched_deliveries_cancelled", deliveries=cancelled.deliveries)

    def _purge_a_slice(self) -> None:
        before, self._purged_at = self._purged_at, time.monotonic()
        purged = self._purge.run(PURGE_SLICE_SECONDS)
        if not purged.is_complete:
            self._purged_at = before  # the next round goes on
        if purged.events or purged.dedup_keys:
            log.info("purged", events=purged.events, deliveries=purged.deliveries, dedup_keys=purged.dedup_keys)


def _part(name: str, work: Callable[[], object]) -> None:
    """Run one part of a round; a fault in its data must not keep the other parts from running."""
    try:
        work()
    except Exception as error:
        if is_transient(error):
            raise
        log.error("sweep_part_failed", part=name, error=repr(error)[:300])


def _expire_leases() -> None:
    while leases.expire() >= 1000:
        pass


def _resync_queues() -> None:
    """Align deliveries with their subscriptions for a while, a chunk of each queue, organizations in turn."""
    ends = time.monotonic() + RESYNC_SLICE_SECONDS
    marked = list(SubscriptionQueue.objects.filter(needs_resync=True).values_list("organization_id", "pk"))
    # In random order: queues with a lot to do, or that can't be finished, must not come first every time.
    random.shuffle(marked)
    for subscription_id in take_turns(marked):
        _part("resync of a queue", lambda queue=subscription_id: resync(queue))  # type: ignore[misc]
        if time.monotonic() >= ends:
            return


def take_turns(owned: Iterable[tuple[uuid.UUID, T]]) -> Iterator[T]:
    """Return the second of each pair: first one of every owner, then a second one of every owner, and so on."""
    by_owner: dict[uuid.UUID, list[T]] = defaultdict(list)
    for owner, item in owned:
        by_owner[owner].append(item)
    for position in range(max(map(len, by_owner.values()), default=0)):
        for items in by_owner.values():
            if position < len(items):
                yield items[position]
