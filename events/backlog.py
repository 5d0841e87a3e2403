"""How much is waiting, and whether more may be accepted.

Three bounds: what one organization may have waiting as accepted events, what it may have waiting as deliveries, and,
to protect the disk, the accepted events of all organizations together.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import structlog
from django.conf import settings
from django.db.models import DurationField, ExpressionWrapper, Min
from django.db.models.functions import Now
from psycopg.rows import scalar_row

from core.db import keeping_plans, server_cursor
from core.problems import Problem
from events.delivery_lookup import delivery_lookup
from events.models import Event, EventStatus

log = structlog.get_logger()

MOST_ORGANIZATIONS = 10_000  # whose counts a process remembers; forgetting one costs another count

# A count is used for this long, or for this many times as long as it took, so that counting a million waiting
# deliveries of an organization takes at most a fiftieth of the time.
_FRESH_SECONDS = 1.0
_FRESH_PER_SECOND_COUNTED = 50
# How often a process says whose events it refuses.
_LOG_SECONDS = 60.0
# A request doesn't wait for a new count while the last one isn't older than this.
_RECENT_SECONDS = 60.0

# Counting stops at the limit, so that it stays cheap: how far the limit is exceeded doesn't matter.  SQL because the
# ORM selects the primary key in such a count, for which PostgreSQL must read the rows beside the index.
_COUNT_ACCEPTED = """
SELECT count(*) FROM (SELECT 1 FROM events_event WHERE status = 'accepted' LIMIT %s) AS waiting
"""
# The same for one organization.
_COUNT_ACCEPTED_OF_ORGANIZATION = """
SELECT count(*) FROM (
    SELECT 1 FROM events_event WHERE organization_id = %s AND status = 'accepted' LIMIT %s
) AS waiting
"""


def waiting_events(most: int, organization_id: uuid.UUID | None = None) -> int:
    """Return how many accepted events, of all or of one organization, are not processed yet.

    Counting stops at `most`.
    """
    with server_cursor(scalar_row) as cursor:
        if organization_id is None:
            number = cursor.execute(_COUNT_ACCEPTED, (most,)).fetchone()
        else:
            number = cursor.execute(_COUNT_ACCEPTED_OF_ORGANIZATION, (organization_id, most)).fetchone()
    return number or 0


def oldest_waiting_seconds() -> float:
    """Return how long the oldest accepted event has waited, in seconds; 0 when none is waiting."""
    waited = Event.objects.filter(status=EventStatus.ACCEPTED).aggregate(
        longest=ExpressionWrapper(Now() - Min("due_at"), output_field=DurationField())
    )["longest"]
    return 0.0 if waited is None else max(0.0, waited.total_seconds())


@dataclass
class _Count:
    """What was counted, plus what this process has accepted since.

    added: what this process has accepted in all.  counted_at, stale_at, logged_at: monotonic times; the last one is
    that of the last line about a refusal.
    """

    length: int = 0
    added: int = 0
    counted_at: float = float("-inf")
    stale_at: float = float("-inf")
    logged_at: float = float("-inf")


@dataclass(frozen=True)
class _Bound:
    """A limit and how to count against it."""

    name: str
    limit: Callable[[], int]
    count: Callable[[uuid.UUID, int], int]
    refusal: Callable[[int], Problem]
    is_shared: bool = False  # by all organizations
    counts_events: bool = True  # else deliveries, which events become only later


def _organization_events_refusal(limit: int) -> Problem:
    return Problem(
        "event_backlog_full",
        f"The organization has {limit} accepted events waiting to be processed, which is the limit "
        "(MAX_WAITING_EVENTS). Nothing was stored; try again.",
        headers={"Retry-After": "5"},
        extra={"limit_events": limit},
    )


def _organization_deliveries_refusal(limit: int) -> Problem:
    return Problem(
        "delivery_backlog_full",
        f"The organization has {limit} deliveries waiting, which is the limit (MAX_WAITING_DELIVERIES). Nothing "
        "was stored. `GET /api/deliveries?status=pending` and `?status=held` list them.",
        headers={"Retry-After": "60"},
        extra={"limit_deliveries": limit},
    )


def _shared_refusal(limit: int) -> Problem:
    return Problem(
        "backlog_full",
        "Too many accepted events of all organizations are waiting (MAX_QUEUE_LENGTH). Nothing was stored; try again.",
        headers={"Retry-After": "5"},
    )


# In the order in which they are checked: an organization that exceeds its own bound is told about that one.
_BOUNDS = (
    _Bound(
        "events",
        lambda: settings.MAX_WAITING_EVENTS,
        lambda organization_id, most: waiting_events(most, organization_id),
        _organization_events_refusal,
    ),
    _Bound(
        "deliveries",
        lambda: settings.MAX_WAITING_DELIVERIES,
        lambda organization_id, most: delivery_lookup().waiting(organization_id, most),
        _organization_deliveries_refusal,
        counts_events=False,
    ),
    _Bound(
        "all events",
        lambda: settings.MAX_QUEUE_LENGTH,
        lambda _organization_id, most: waiting_events(most),
        _shared_refusal,
        is_shared=True,
    ),
)


class _Stale(NamedTuple):
    """A count that is stale, and what had been added when its refresh began."""

    bound: _Bound
    kept: _Count
    added_before: int


class BacklogEstimate:
    """What is waiting, as estimated by this process: counted now and then, plus what it has accepted since."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # Of each organization, the count for each of _BOUNDS.
        self._counts: dict[uuid.UUID, list[_Count]] = {}
        self._shared = _Count()

    def is_stale(self, organization_id: uuid.UUID) -> bool:
        """Return whether a count for the organization is due again."""
        now = time.monotonic()
        with self._lock:
            for count in self._counts_of(organization_id):
                if count.stale_at <= now:
                    return True
        return False

    def is_recent(self, organization_id: uuid.UUID) -> bool:
        """Return whether every count for the organization is less than a minute old."""
        then = time.monotonic() - _RECENT_SECONDS
        with self._lock:
            return all(count.counted_at > then for count in self._counts_of(organization_id))

    def begin_refresh(self, organization_id: uuid.UUID, bounds: Sequence[_Bound] = _BOUNDS) -> list[_Stale]:
        """Return which counts of `bounds` are stale, for `finish_refresh`; meanwhile other requests use the old ones.

        What is added from now on may not be committed when it is counted.  So this is called before `add`, also if
        another thread counts.
        """
        now = time.monotonic()
        stale = []
        with self._lock:
            for bound, count in zip(_BOUNDS, self._counts_of(organization_id), strict=True):
                if bound in bounds and count.stale_at <= now:
                    count.stale_at = now + _FRESH_SECONDS
                    stale.append(_Stale(bound, count, count.added))
        return stale

    def finish_refresh(self, organization_id: uuid.UUID, stale: Sequence[_Stale]) -> None:
        """Count again what is stale."""
        for bound, count, added_before in stale:
            started = time.monotonic()
            # Planning the deliveries' count for all partitions takes longer than anything else that accepting an event
            # costs PostgreSQL.
            length = keeping_plans(lambda bound=bound: bound.count(organization_id, bound.limit() + 1))  # type: ignore[misc]
            counted = time.monotonic()
            with self._lock:
                # What was added meanwhile and committed before the count is counted twice until the next one: a bound
                # may apply too early.
                count.length = length + count.added - added_before
                count.counted_at = counted
                count.stale_at = counted + max(_FRESH_SECONDS, _FRESH_PER_SECOND_COUNTED * (counted - started))

    def refresh(self, organization_id: uuid.UUID) -> None:
        """Count again what is stale and what no other thread counts."""
        for bound in _BOUNDS:
            self.finish_refresh(organization_id, self.begin_refresh(organization_id, (bound,)))

    def add(self, organization_id: uuid.UUID, events: int) -> Problem | None:
        """Add `events` to the estimate and return None, or add nothing and return why they may not be accepted.

        A batch may exceed a bound; then the next one may not.
        """
        with self._lock:
            counts = self._counts_of(organization_id)
            for bound, count in zip(_BOUNDS, counts, strict=True):
                if count.length >= (limit := bound.limit()):
                    problem = bound.refusal(limit)
                    _log_now_and_then(count, organization_id, problem)
                    return problem
            for bound, count in zip(_BOUNDS, counts, strict=True):
                if bound.counts_events:
                    count.length += events
                    count.added += events
        return None

    def reset(self) -> None:
        """Forget every count, so that the next call counts again."""
        with self._lock:
            self._counts.clear()
            self._shared = _Count()

    def _counts_of(self, organization_id: uuid.UUID) -> list[_Count]:
        """Return the count for each of _BOUNDS, in their order."""
        counts = self._counts.get(organization_id)
        if counts is None:
            if len(self._counts) >= MOST_ORGANIZATIONS:
                del self._counts[next(iter(self._counts))]  # whichever has been there for longest
            counts = [self._shared if bound.is_shared else _Count() for bound in _BOUNDS]
            self._counts[organization_id] = counts
        return counts


def _log_now_and_then(count: _Count, organization_id: uuid.UUID, problem: Problem) -> None:
    """Say in the log whose events are refused, which no metric can: once a minute, however many requests there are."""
    now = time.monotonic()
    if now - count.logged_at >= _LOG_SECONDS:
        count.logged_at = now
        log.warning("events_refused", organization_id=str(organization_id), code=problem.code)


estimate = BacklogEstimate()


def require_room(organization_id: uuid.UUID, events: int) -> None:
    """Raise a Problem, 429 or 503, while too much is waiting for `events` more to be accepted."""
    if estimate.is_stale(organization_id):
        estimate.refresh(organization_id)
    problem = estimate.add(organization_id, events)
    if problem is not None:
        raise problem
