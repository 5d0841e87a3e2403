"""Fan-out: from accepted events to one delivery for each subscription that wants them.

A batch is one transaction, and its row locks are the claim: a worker that dies gives its events back
by dying.  When a batch fails, its events are tried one by one, so that one bad event or subscription
stops nobody else's.
"""

from __future__ import annotations

import time
import uuid
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import psycopg
import structlog
from django.conf import settings

from core.db import in_transaction, is_transient, pipelined, server_cursor
from core.ids import new_ids
from events import sql as events_sql
from webhooks import sql
from webhooks.matching import Matcher, Wanting

log = structlog.get_logger()

MAX_REASON_CHARACTERS = 1000
# A transaction makes about this many deliveries; the events beyond wait for the next one.
DELIVERIES_AT_A_TIME = 20_000


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

    That is `limit` when more may wait, also if fewer were processed because they have so many deliveries.
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
    with server_cursor() as cursor, server_cursor() as other, pipelined():
        # A crash that forgets this commit leaves the events accepted, and they are processed again.
        other.execute("SET LOCAL synchronous_commit = off")
        cursor.execute(events_sql.CLAIM_ACCEPTED, (limit,))
        events = [AcceptedEvent(*row) for row in cursor.fetchall()]
        if not events:
            return 0, []
        other.execute(sql.ANNOUNCE_FAN_OUT, (len(events),))
    try:
        done = _process(events)
    except Exception as error:
        if is_transient(error):
            raise
        raise _BatchFailed(events) from error
    return len(events) if len(done) == len(events) else limit, done


def _process(events: Sequence[AcceptedEvent]) -> list[tuple[AcceptedEvent, bool]]:
    """Insert the deliveries of locked events; return each event with whether any of its deliveries was new.

    Stops before the first event that would make it more than DELIVERIES_AT_A_TIME; that one and those
    after it aren't returned, and stay accepted.
    """
    with server_cursor() as inserting, server_cursor() as other:
        with pipelined():
            wanted_by, wanted = _insert(events, inserting, other)
        inserted = inserting.rowcount  # a closed cursor has forgotten it
    # Without a conflict every delivery is new; with one, only a batch of one can tell whose it was.
    new = not wanted or inserted == wanted or len(wanted_by) > 1
    return [(event, new or not count) for event, count in zip(events, wanted_by, strict=False)]


def _insert(
    events: Sequence[AcceptedEvent], inserting: psycopg.Cursor[Any], other: psycopg.Cursor[Any]
) -> tuple[list[int], int]:
    """Send the statements; return how many deliveries each of the first events has, and all of them together."""
    matchers = _load_matchers({event.organization_id for event in events})
    organizations: list[uuid.UUID] = []
    event_ids: list[uuid.UUID] = []
    subscriptions: list[uuid.UUID] = []
    statuses: list[str] = []
    due_lanes: set[uuid.UUID] = set()
    held_lanes: set[uuid.UUID] = set()
    wanted_by: list[int] = []
    for event in events:
        matcher = matchers.get(event.organization_id)
        wanting = matcher.match(event.type) if matcher is not None else []
        if event_ids and len(event_ids) + len(wanting) > DELIVERIES_AT_A_TIME:
            break
        wanted_by.append(len(wanting))
        for subscription in wanting:
            organizations.append(event.organization_id)
            event_ids.append(event.id)
            subscriptions.append(subscription.subscription_id)
            # A disabled subscription loses nothing: what it would have got waits until it is enabled.
            statuses.append("pending" if subscription.is_active else "held")
            (due_lanes if subscription.is_active else held_lanes).add(subscription.subscription_id)
    if event_ids:
        inserting.execute(
            sql.INSERT_DELIVERIES,
            {
                "ids": new_ids(len(event_ids)),
                "organizations": organizations,
                "events": event_ids,
                "subscriptions": subscriptions,
                "statuses": statuses,
                "delay": settings.DELIVERY_RETRY_SCHEDULE[0],
            },
        )
    other.execute(events_sql.MARK_PROCESSED, ([event.id for event in events[: len(wanted_by)]],))
    # Last, because the lanes' locks are what claims wait for.
    if held_lanes:
        other.execute(sql.ANNOUNCE_HELD, (list(held_lanes),))
    if due_lanes:
        other.execute(sql.ANNOUNCE_DUE, {"ids": list(due_lanes), "delay": settings.DELIVERY_RETRY_SCHEDULE[0]})
    return wanted_by, len(event_ids)


def _load_matchers(organization_ids: set[uuid.UUID]) -> dict[uuid.UUID, Matcher]:
    found: dict[uuid.UUID, list[Wanting]] = defaultdict(list)
    with server_cursor() as cursor:
        cursor.execute(sql.FIND_SUBSCRIPTIONS, (list(organization_ids),))
        for organization_id, subscription_id, event_types, is_active in cursor.fetchall():
            found[organization_id].append(Wanting(subscription_id, tuple(event_types), is_active))
    return {organization_id: Matcher(wanting) for organization_id, wanting in found.items()}


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
        cursor.execute(
            events_sql.MARK_FAILED, {"id": event.id, "reason": reason, "max_tries": settings.EVENT_MAX_TRIES}
        )
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
