"""How much is waiting, and whether more may be accepted.

Three bounds: what one organization may have waiting as accepted events, what it may have waiting as deliveries, and,
to protect the disk, the accepted events of all organizations together.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass

import structlog
from cachetools import LRUCache
from django.conf import settings
from django.db.models import DurationField, ExpressionWrapper, Min
from django.db.models.functions import Now
from psycopg.rows import scalar_row

from core.db import server_cursor
from core.problems import Problem
from events.delivery_lookup import delivery_lookup
from events.models import Event, EventStatus

log = structlog.get_logger()

MOST_ORGANIZATIONS = 10_000  # whose figures a process remembers; forgetting one costs a count

# A figure is used for this long, or for this many times as long as it took to count, so that counting what an
# organization with a million waiting deliveries has takes at most a fiftieth of the time.
_FRESH_SECONDS = 1.0
_FRESH_PER_SECOND_COUNTED = 50
# How often a process says whose events it refuses.
_LOG_SECONDS = 60.0
# A request needn't wait for a new count if there is one that isn't older than this.
_KNOWN_SECONDS = 60.0

# Counting stops at the limit: nobody needs to know how far over it is, and the count stays cheap.  SQL because the
# ORM selects the primary key in such a count, for which PostgreSQL must read the rows beside the index.
_COUNT_ACCEPTED = """
SELECT count(*) FROM (SELECT 1 FROM events_event WHERE status = 'accepted' LIMIT %s) AS waiting
"""
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
class _Figure:
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


# In the order in which they are checked: an organization that is over its own bound hears of that one.
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


class BacklogEstimate:
    """What is waiting, as far as this process knows: counted now and then, plus what it has accepted since."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._figures: LRUCache[tuple[str, uuid.UUID], _Figure] = LRUCache(2 * MOST_ORGANIZATIONS)
        self._shared = _Figure()

    def is_stale(self, organization_id: uuid.UUID) -> bool:
        """Return whether a figure that bounds the organization should be counted again."""
        now = time.monotonic()
        with self._lock:
            return any(self._figure(bound, organization_id).stale_at <= now for bound in _BOUNDS)

    def is_known(self, organization_id: uuid.UUID) -> bool:
        """Return whether every figure that bounds the organization was counted less than a minute ago."""
        then = time.monotonic() - _KNOWN_SECONDS
        with self._lock:
            return all(self._figure(bound, organization_id).counted_at > then for bound in _BOUNDS)

    def refresh(self, organization_id: uuid.UUID) -> None:
        """Count again what is stale."""
        for bound in _BOUNDS:
            with self._lock:
                figure = self._figure(bound, organization_id)
                started = time.monotonic()
                if figure.stale_at > started:
                    continue
                # Set before the count is made: meanwhile other threads go on with the old figure.
                figure.stale_at = started + _FRESH_SECONDS
                added_before = figure.added
            length = bound.count(organization_id, bound.limit() + 1)
            counted = time.monotonic()
            with self._lock:
                # What was added meanwhile may not have been committed when it was counted.  If it was, it is in twice
                # until the next count: a bound may hold back too early, and never too late.
                figure.length = length + figure.added - added_before
                figure.counted_at = counted
                figure.stale_at = counted + max(_FRESH_SECONDS, _FRESH_PER_SECOND_COUNTED * (counted - started))

    def add(self, organization_id: uuid.UUID, events: int) -> Problem | None:
        """Add `events` to what is waiting and return None, or add nothing and return why they may not be accepted.

        A batch may go over the edge of a bound; the next one may not.
        """
        with self._lock:
            figures = [(bound, self._figure(bound, organization_id)) for bound in _BOUNDS]
            for bound, figure in figures:
                if figure.length >= bound.limit():
                    problem = bound.refusal(bound.limit())
                    _log_now_and_then(figure, organization_id, problem)
                    return problem
            for bound, figure in figures:
                if bound.counts_events:
                    figure.length += events
                    figure.added += events
        return None

    def reset(self) -> None:
        """Forget every figure, so that the next call counts again."""
        with self._lock:
            self._figures.clear()
            self._shared = _Figure()

    def _figure(self, bound: _Bound, organization_id: uuid.UUID) -> _Figure:
        if bound.is_shared:
            return self._shared
        figure = self._figures.get((bound.name, organization_id))
        if figure is None:
            figure = self._figures[bound.name, organization_id] = _Figure()
        return figure


def _log_now_and_then(figure: _Figure, organization_id: uuid.UUID, problem: Problem) -> None:
    """Say in the log whose events are refused, which no metric can: once a minute, however many requests there are."""
    now = time.monotonic()
    if now - figure.logged_at >= _LOG_SECONDS:
        figure.logged_at = now
        log.warning("events_refused", organization_id=str(organization_id), code=problem.code)


estimate = BacklogEstimate()


def require_room(organization_id: uuid.UUID, events: int) -> None:
    """Raise a Problem, 429 or 503, while too much is waiting for `events` more to be accepted."""
    if estimate.is_stale(organization_id):
        estimate.refresh(organization_id)
    problem = estimate.add(organization_id, events)
    if problem is not None:
        raise problem
