"""Fan-out: from accepted events to one delivery for each subscription that wants them.

A round is one transaction, and its row locks are the claim: a worker that dies gives its events back by dying.  If a
round fails, its events are processed one by one, so that one bad event or subscription doesn't stop others.

Rounds are short and fair: organizations that want few deliveries come first, and one that wants many gets the rest of
the round.  Its other events wait for the next round or, in a worker with a backlog sender, for that process.
"""

from __future__ import annotations

import sys
import time
import uuid
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import structlog
from django.conf import settings
from psycopg.rows import scalar_row

from core.arrays import plain_array, text_array
from core.db import KEEP_PLANS_WITHOUT_WAITING, in_pipelined_transaction, is_transient, server_cursor
from core.logs import output
from core.metrics.kinds import Counter as CounterMetric
from webhooks.destinations.inbox.arrivals import announce_arrivals
from webhooks.routing.claim_events import CLAIM_AGAIN, AcceptedEvent, EventClaims, claiming_cursor
from webhooks.routing.round_insert import Processed, RoundInsert
from webhooks.routing.round_shares import choose_events
from webhooks.routing.selection import RoundMemory, Wanting, select
from webhooks.routing.sender_interface import HandOver
from webhooks.routing.subscribers import Subscribers
from webhooks.tracing import trace_fan_out

log = structlog.get_logger()

PROCESSED = CounterMetric("triggers_events_processed_total", "Events that were fanned out, by outcome.", ["outcome"])

MAX_REASON_CHARACTERS = 1000
# A round makes about this many deliveries, which takes some 25 ms: a newly accepted event may have to wait that long.
DELIVERIES_AT_A_TIME = 1_000
# A process that only works off backlogs makes fewer, larger transactions.
BACKLOG_DELIVERIES_AT_A_TIME = 5_000
# Claiming an event that has to wait for the next round is wasted work.  After a round that left events behind, the next
# one claims only this many times what that round processed, until a round processes all that it claimed.
CLAIM_AHEAD = 2
FEWEST_EVENTS = 8

# The statements of a round are SQL, because the ORM has no advisory locks, no UPDATE that returns rows, and no LATERAL
# joins.

# Each running fan-out takes a shared advisory lock whose second key is the number of events that it has claimed
# (`webhooks.stats` adds them up).  The number is always true, because the lock ends with the transaction.  A round
# takes one with 0 before it reads which subscriptions there are, so that a recovery can wait for the rounds that don't
# see a new one.
FAN_OUT_LOCK = 71_001
ANNOUNCE_FAN_OUT = f"SELECT pg_advisory_xact_lock_shared({FAN_OUT_LOCK}, %s)"
BEGIN_FAN_OUT = f"{KEEP_PLANS_WITHOUT_WAITING}, pg_advisory_xact_lock_shared({FAN_OUT_LOCK}, 0)"


# A failed fan-out is repeated after 1, 2, 4, ... seconds, at most a minute.
MARK_FAILED = """
UPDATE events_event SET
    failed_attempts = failed_attempts + 1,
    last_error = %(reason)s,
    status = CASE WHEN failed_attempts + 1 >= %(max_attempts)s THEN 'error' ELSE 'accepted' END,
    due_at = clock_timestamp() + make_interval(secs => least(60, power(2, failed_attempts)))
WHERE id = %(id)s AND status = 'accepted'
RETURNING status
"""


PUT_OFF_SECONDS = 0.1
# Events that have to wait for an earlier one of their ordering key, which this transaction doesn't process.  Each
# key is looked up once, however many of its events there are.
PUT_OFF = f"""
WITH keyed AS MATERIALIZED (
    SELECT * FROM unnest(%(ids)s::uuid[], %(organizations)s::uuid[], %(keys)s::text[], %(times)s::timestamptz[])
        AS k(id, organization_id, key, created_at)
)
UPDATE events_event SET due_at = clock_timestamp() + make_interval(secs => {PUT_OFF_SECONDS})
WHERE id = ANY (ARRAY (
    SELECT keyed.id FROM (SELECT DISTINCT organization_id, key FROM keyed) AS of_key
    CROSS JOIN LATERAL (
        SELECT e.created_at, e.id FROM events_event e
        WHERE e.organization_id = of_key.organization_id AND e.ordering_key = of_key.key AND e.status = 'accepted'
          AND e.id <> ALL (%(chosen)s::uuid[])
        ORDER BY e.created_at, e.id LIMIT 1
    ) AS earlier
    JOIN keyed ON keyed.organization_id = of_key.organization_id AND keyed.key = of_key.key
    WHERE (earlier.created_at, earlier.id) < (keyed.created_at, keyed.id)
))
RETURNING id
"""  # noqa: S608 - a constant of ours


@dataclass(frozen=True, slots=True)
class Round:
    """What a round of the fan-out did.

    seen: events that it claimed.  left_behind: organizations of which it processed fewer events than it claimed,
    because they want so many deliveries.  passed_over: those of which it processed none.  more: whether another round
    at once may find more.  left_to_claims: whether a claim may take deliveries now that were not handed over.
    inboxes: those that got deliveries.  put_off: events that wait for an earlier one of their ordering key, and are due
    again after PUT_OFF_SECONDS.
    """

    seen: int = 0
    left_behind: frozenset[uuid.UUID] = frozenset()
    passed_over: frozenset[uuid.UUID] = frozenset()
    more: bool = False
    left_to_claims: bool = False
    inboxes: frozenset[uuid.UUID] = frozenset()
    put_off: int = 0


class FanOut:
    """Fans accepted events out, round by round, for one thread.

    waited: only events that have been due for so many seconds, for a process that leaves the newer ones to another.
    """

    def __init__(self, waited: float = 0.0) -> None:
        self._claims = EventClaims(waited)
        self._subscribers = Subscribers()
        # Organizations that the last round passed over: an event of theirs comes first in the next one.
        self._overdue: frozenset[uuid.UUID] = frozenset()
        self._memory = RoundMemory()
        self._most_events = sys.maxsize

    def run_round(
        self,
        limit: int,
        skip: Collection[uuid.UUID] = (),
        hand_over: HandOver | None = None,
        deliveries: int = DELIVERIES_AT_A_TIME,
        backlogged: Collection[uuid.UUID] = (),
        between_pieces: Callable[[], None] | None = None,
    ) -> Round:
        """Process up to `limit` accepted events that are due, and none of organizations in `skip`.

        The transaction claims the events, matches them, and inserts their deliveries.  If it fails for another reason
        than the database's, each event gets a transaction to itself.  What the round left behind decides how many
        events the next one claims.

        hand_over: takes the deliveries that can be sent at once.  deliveries: most that the round makes, unless a
        single event has more.  backlogged: organizations whose events another process takes if they don't fit.
        between_pieces: called in the middle of a large insertion, which is divided for it.
        """
        started = time.perf_counter()
        limit = min(limit, self._most_events)
        events: list[AcceptedEvent] = []

        def claim_and_process() -> RoundInsert:
            if hand_over is not None:
                hand_over.abandon()  # prepared by an attempt that was rolled back
            events.clear()
            events.extend(self._claim(limit, skip))
            return self._process(events, deliveries, hand_over, backlogged, between_pieces)

        try:
            done = in_pipelined_transaction(claim_and_process)
        except BaseException as error:
            if hand_over is not None:
                hand_over.abandon()
            if not events or not isinstance(error, Exception) or is_transient(error):
                raise
            log.warning("fan_out_batch_failed", events=len(events), error=repr(error)[:300])
            for event in events:
                self._process_alone(event, deliveries)
            return Round(len(events), more=len(events) >= limit, left_to_claims=True)
        processed = done.outcomes()
        if hand_over is not None:
            hand_over.begin()
        result = self._result(events, done, limit)
        if result.inboxes:
            announce_arrivals(result.inboxes)
        self._overdue = result.passed_over
        if result.left_behind:
            self._most_events = max(FEWEST_EVENTS, CLAIM_AHEAD * len(processed))
        elif result.seen >= limit:
            self._most_events = CLAIM_AHEAD * limit
        _log_outcomes(processed, started)
        return result

    def _claim(self, limit: int, skip: Collection[uuid.UUID]) -> list[AcceptedEvent]:
        with claiming_cursor() as claiming:
            other = server_cursor()
            # A crash that forgets this commit leaves the events accepted, and they are processed again.
            other.execute(BEGIN_FAN_OUT)
            events = self._claims.claim(limit, skip, claiming)
            if events:
                other.execute(ANNOUNCE_FAN_OUT, (len(events),))
        return events

    @staticmethod
    def _result(events: Sequence[AcceptedEvent], done: RoundInsert, limit: int) -> Round:
        """Return what became of a round's events."""
        finished = {event.id for event in done.chosen} | set(done.put_off)
        served = {event.organization_id for event in done.chosen}
        left = frozenset(event.organization_id for event in events if event.id not in finished)
        return Round(
            seen=len(events),
            left_behind=left,
            passed_over=left - served,
            more=bool(left) or len(events) >= limit,
            left_to_claims=done.left_to_claims,
            inboxes=frozenset(done.pending.inboxes),
            put_off=len(done.put_off),
        )

    def _process(
        self,
        events: Sequence[AcceptedEvent],
        deliveries: int,
        hand_over: HandOver | None = None,
        backlogged: Collection[uuid.UUID] = (),
        between_pieces: Callable[[], None] | None = None,
    ) -> RoundInsert:
        """Insert the deliveries of locked events, as many as a round may; the other events stay accepted."""
        if not events:
            return RoundInsert()
        matchers = self._subscribers.matchers({event.organization_id: event.fingerprint for event in events})
        wanting = select(events, matchers, self._overdue, self._memory)
        candidates = [event for event in events if event.id in wanting]
        wanted = {event_id: len(found) for event_id, found in wanting.items()}
        chosen = choose_events(candidates, wanted, deliveries, self._overdue, backlogged)
        put_off = self._put_off(chosen, wanting)
        if put_off:
            chosen = [event for event in chosen if event.id not in put_off]
        insertion = RoundInsert(chosen, wanting, put_off, hand_over, between_pieces)
        insertion.insert()
        return insertion

    @staticmethod
    def _put_off(chosen: Sequence[AcceptedEvent], wanting: Wanting) -> set[uuid.UUID]:
        """Put off the events that have to wait for an earlier one with the same ordering key, and return their ids.

        Another worker may be processing that one, or its fan-out failed and will be repeated.
        """
        keyed = [
            event
            for event in chosen
            if event.ordering_key is not None and any(one.is_ordered for one in wanting[event.id])
        ]
        if not keyed:
            return set()
        with server_cursor(scalar_row) as cursor:
            parameters = {
                "ids": plain_array(event.id for event in keyed),
                "organizations": plain_array(event.organization_id for event in keyed),
                "keys": text_array(event.ordering_key for event in keyed),
                "times": [event.created_at for event in keyed],
                "chosen": plain_array(event.id for event in chosen),
            }
            return set(cursor.execute(PUT_OFF, parameters).fetchall())

    def _process_alone(self, event: AcceptedEvent, deliveries: int) -> None:
        """Process one event of a failed round in its own transaction; count a failure against it alone."""
        started = time.perf_counter()

        def again() -> RoundInsert:
            with claiming_cursor() as claiming, server_cursor() as other:
                other.execute(BEGIN_FAN_OUT)
                found = claiming.execute(CLAIM_AGAIN, (event.id,)).fetchall()
                other.execute(ANNOUNCE_FAN_OUT, (len(found),))
                return self._process(found, deliveries)

        try:
            _log_outcomes(in_pipelined_transaction(again).outcomes(), started)
        except Exception as error:
            if is_transient(error):
                raise
            _count_failure(event, error, started)


def _count_failure(event: AcceptedEvent, error: Exception, started: float) -> None:
    reason = f"{type(error).__name__}: {error}".replace("\x00", "")[:MAX_REASON_CHARACTERS]
    with server_cursor(scalar_row) as cursor:
        cursor.execute(MARK_FAILED, {"id": event.id, "reason": reason, "max_attempts": settings.EVENT_MAX_ATTEMPTS})
        status = cursor.fetchone()
    PROCESSED.inc("error")
    log.error(
        "event_processed",
        outcome="error",
        event_id=str(event.id),
        organization_id=str(event.organization_id),
        type=event.type,
        final=status == "error",
        reason=reason,
        duration_ms=round((time.perf_counter() - started) * 1000, 3),
    )


def _log_outcomes(processed: Sequence[Processed], started: float) -> None:
    """Log, count, and trace each event; its duration is the round's, which is how long it took."""
    seconds = time.perf_counter() - started
    trace_fan_out([entry.event.id for entry in processed], seconds)
    with output.together():
        for entry in processed:
            event = entry.event
            note_processed(event.id, event.organization_id, event.type, seconds, is_new=entry.is_new)


def note_processed(
    event_id: uuid.UUID, organization_id: uuid.UUID, event_type: str, seconds: float, *, is_new: bool = True
) -> None:
    """Log and count an event that was fanned out.  is_new: whether any of its deliveries is, or it has none."""
    outcome = "persisted" if is_new else "already_exists"
    PROCESSED.inc(outcome)
    log.info(
        "event_processed",
        outcome=outcome,
        event_id=str(event_id),
        organization_id=str(organization_id),
        type=event_type,
        duration_ms=round(seconds * 1000, 3),
    )
