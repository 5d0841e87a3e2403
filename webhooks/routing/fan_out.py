"""Fan-out: from accepted events to one delivery for each subscription that wants them.

A batch is one transaction, and its row locks are the claim: a worker that dies gives its events back by dying.  If a
batch fails, its events are tried one by one, so that one bad event or subscription stops nobody else's.
"""

from __future__ import annotations

import time
import uuid
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import psycopg
import structlog
from django.conf import settings
from psycopg.rows import class_row

from core.db import in_transaction, is_transient, pipelined, server_cursor
from webhooks.models import Subscription
from webhooks.routing.insert import NewDeliveries
from webhooks.routing.matching import Matcher, SubscribedTypes

log = structlog.get_logger()

MAX_REASON_CHARACTERS = 1000
# A transaction makes about this many deliveries; the events beyond wait for the next one.
DELIVERIES_AT_A_TIME = 20_000

# How many events each running fan-out holds is told as a shared advisory lock whose second key is the number
# (`webhooks.stats` adds them up).  It is true at every moment, because it goes with the transaction.
FAN_OUT_LOCK = 71_001
ANNOUNCE_FAN_OUT = f"SELECT pg_advisory_xact_lock_shared({FAN_OUT_LOCK}, %s)"

CLAIM_ACCEPTED = """
SELECT id, organization_id, type FROM events_event
WHERE status = 'accepted' AND due_at <= statement_timestamp()
ORDER BY due_at LIMIT %s
FOR UPDATE SKIP LOCKED
"""

MARK_PROCESSED = """
UPDATE events_event SET status = 'processed', processed_at = clock_timestamp(), last_error = ''
WHERE id = ANY(%s::uuid[])
"""

# A failed fan-out is tried again after 1, 2, 4, ... seconds, at most a minute.
MARK_FAILED = """
UPDATE events_event SET
    failed_attempts = failed_attempts + 1,
    last_error = %(reason)s,
    status = CASE WHEN failed_attempts + 1 >= %(max_attempts)s THEN 'error' ELSE 'accepted' END,
    due_at = clock_timestamp() + make_interval(secs => least(60, power(2, failed_attempts)))
WHERE id = %(id)s AND status = 'accepted'
RETURNING status
"""


@dataclass(frozen=True, slots=True)
class AcceptedEvent:
    """An event whose row this transaction has locked."""

    id: uuid.UUID
    organization_id: uuid.UUID
    type: str


class _BatchFailed(Exception):
    """The batch raised after its events were locked."""

    def __init__(self, events: Sequence[AcceptedEvent]) -> None:
        super().__init__("fan-out failed")
        self.events = events


def fan_out_batch(limit: int) -> int:
    """Process up to `limit` accepted events that are due; return how many were seen.

    That is `limit` if more may wait, even if fewer were processed because they have so many deliveries.
    """
    started = time.perf_counter()
    try:
        seen, events = in_transaction(lambda: _claim_and_process(limit))
    except _BatchFailed as failed:
        log.warning("fan_out_batch_failed", events=len(failed.events), error=repr(failed.__cause__)[:300])
        for event in failed.events:
            _process_alone(event)
        return len(failed.events)
    _log_outcomes(events, started)
    return seen


def _claim_and_process(limit: int) -> tuple[int, list[tuple[AcceptedEvent, bool]]]:
    with server_cursor(class_row(AcceptedEvent)) as claiming, server_cursor() as other, pipelined():
        # A crash that forgets this commit leaves the events accepted, and they are processed again.
        other.execute("SET LOCAL synchronous_commit = off")
        events = claiming.execute(CLAIM_ACCEPTED, (limit,)).fetchall()
        if not events:
            return 0, []
        other.execute(ANNOUNCE_FAN_OUT, (len(events),))
    try:
        done = _process(events)
    except Exception as error:
        if is_transient(error):
            raise
        raise _BatchFailed(events) from error
    return len(events) if len(done) == len(events) else limit, done


def _process(events: Sequence[AcceptedEvent]) -> list[tuple[AcceptedEvent, bool]]:
    """Insert the deliveries of locked events; return each event with whether any of its deliveries was new.

    Stops before the first event that would make it more than DELIVERIES_AT_A_TIME; that one and those after it
    aren't returned, and stay accepted.
    """
    with server_cursor() as inserting, server_cursor() as other:
        with pipelined():
            wanted_by, wanted = _insert(events, inserting, other)
        inserted = inserting.rowcount  # a closed cursor has forgotten it
    # Without a conflict every delivery is new; with one, only a batch of one can tell whose it was.
    new = not wanted or inserted == wanted or len(wanted_by) > 1
    return [(event, new or not count) for event, count in zip(events, wanted_by, strict=False)]


def _insert(
    events: Sequence[AcceptedEvent], inserting: psycopg.Cursor[object], other: psycopg.Cursor[object]
) -> tuple[list[int], int]:
    """Send the statements; return how many deliveries each of the first events has, and all of them together."""
    matchers = _load_matchers({event.organization_id for event in events})
    deliveries = NewDeliveries()
    wanted_by: list[int] = []
    for event in events:
        matcher = matchers.get(event.organization_id)
        wanting = matcher.match(event.type) if matcher is not None else []
        if deliveries and len(deliveries) + len(wanting) > DELIVERIES_AT_A_TIME:
            break
        wanted_by.append(len(wanting))
        for subscription in wanting:
            deliveries.add(event.organization_id, [event.id], subscription.subscription_id, subscription.is_active)
    delay = settings.DELIVERY_RETRY_SCHEDULE[0]
    deliveries.insert(delay, inserting)
    other.execute(MARK_PROCESSED, ([event.id for event in events[: len(wanted_by)]],))
    deliveries.mark_queues(delay, other)
    return wanted_by, len(deliveries)


def _load_matchers(organization_ids: set[uuid.UUID]) -> dict[uuid.UUID, Matcher]:
    found: dict[uuid.UUID, list[SubscribedTypes]] = defaultdict(list)
    rows = Subscription.objects.filter(organization_id__in=organization_ids, deleted_at=None).order_by("id")
    for organization_id, subscription_id, event_types, is_active in rows.values_list(
        "organization_id", "id", "event_types", "is_active"
    ):
        found[organization_id].append(SubscribedTypes(subscription_id, tuple(event_types), is_active))
    return {organization_id: Matcher(subscribed) for organization_id, subscribed in found.items()}


def _process_alone(event: AcceptedEvent) -> None:
    """Process one event of a failed batch in its own transaction; count a failure against it alone."""
    started = time.perf_counter()

    def again() -> list[tuple[AcceptedEvent, bool]]:
        with server_cursor() as cursor:
            cursor.execute(
                "SELECT 1 FROM events_event WHERE id = %s AND status = 'accepted' FOR UPDATE SKIP LOCKED", (event.id,)
            )
            if cursor.fetchone() is None:
                return []
        return _process([event])

    try:
        _log_outcomes(in_transaction(again), started)
    except Exception as error:
        if is_transient(error):
            raise
        _count_failure(event, error, started)


def _count_failure(event: AcceptedEvent, error: Exception, started: float) -> None:
    reason = f"{type(error).__name__}: {error}".replace("\x00", "")[:MAX_REASON_CHARACTERS]
    with server_cursor() as cursor:
        cursor.execute(MARK_FAILED, {"id": event.id, "reason": reason, "max_attempts": settings.EVENT_MAX_ATTEMPTS})
        row = cursor.fetchone()
    log.error(
        "event_processed",
        outcome="error",
        event_id=str(event.id),
        organization_id=str(event.organization_id),
        type=event.type,
        final=bool(row and row[0] == "error"),
        reason=reason,
        duration_ms=round((time.perf_counter() - started) * 1000, 3),
    )


def _log_outcomes(events: Sequence[tuple[AcceptedEvent, bool]], started: float) -> None:
    """Log one line for each event; its duration is the batch's, which is how long it took."""
    duration_ms = round((time.perf_counter() - started) * 1000, 3)
    for event, new in events:
        log.info(
            "event_processed",
            outcome="persisted" if new else "already_exists",
            event_id=str(event.id),
            organization_id=str(event.organization_id),
            type=event.type,
            duration_ms=duration_ms,
        )
