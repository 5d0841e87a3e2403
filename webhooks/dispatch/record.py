"""Recording results: attempts, deliveries, and queues in one transaction."""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import msgspec
import structlog
from django.conf import settings
from psycopg.rows import class_row, scalar_row

from core.arrays import bytes_array, number_array, plain_array, text_array
from core.db import (
    KEEP_PLANS,
    in_pipelined_transaction,
    in_transaction,
    is_transient,
    pipelined,
    server_cursor,
)
from core.encryption import Sealer
from webhooks import ordering_keys
from webhooks.destinations.exchange import seal_exchange
from webhooks.dispatch.attempt_log import LATE, LoggedAttempt, count_attempts, log_attempts
from webhooks.dispatch.delivery import AttemptResult
from webhooks.dispatch.disabling import disable_unwanted
from webhooks.dispatch.queue_update import UPDATE_QUEUES, QueueUpdate, breaker_policy, queue_columns
from webhooks.dispatch.retry import NextStep, decide_next_step, retry_after_seconds, retry_delay
from webhooks.models import DeliveryStatus, NoticeKind
from webhooks.notices import Note, failed_delivery, note
from webhooks.queues import LockedQueue, begin_locking, locked_queues, mark_due
from webhooks.rollups import ADD_ATTEMPTS, attempt_columns

log = structlog.get_logger()

# Only the thread that records uses it.
_sealer = Sealer()

# A plan from when there were few deliveries would read all of them for each batch: for a hash, a merge, or a copy in
# memory that each result is compared with.
_KEEP_PLANS = (
    f"{KEEP_PLANS}, set_config('enable_hashjoin', 'off', true), set_config('enable_mergejoin', 'off', true),"
    " set_config('enable_material', 'off', true)"
)

# SQL, because the ORM can't insert what an UPDATE from arrays returns.  Every attempt is kept.  The delivery changes
# only if the worker still holds the lease.
#
# LIMIT and OFFSET 0 keep the planner from going through the deliveries in the order of their ids and comparing each
# with the results, which it does as long as it believes that there are hardly any (see _KEEP_PLANS).  As one subquery,
# the results would have to be looked up again for each delivery, so they are looked up first, whatever is believed.
RECORD_ATTEMPTS = """
WITH result AS (
    SELECT * FROM unnest(
        %(ids)s::uuid[], %(leases)s::uuid[], %(statuses)s::text[], %(delays)s::float8[], %(codes)s::int[],
        %(errors)s::text[], %(details)s::text[], %(bodies)s::text[], %(started)s::float8[], %(durations)s::float8[],
        %(causes)s::text[], %(exchanges)s::bytea[]
    ) AS r(delivery_id, lease_id, status, delay, code, error, detail, body, started, duration, cause, exchange)
), changed AS (
    UPDATE webhooks_delivery d SET
        attempt_count = d.attempt_count + 1,
        attempts_used = d.attempts_used + r.one,
        status = CASE r.one WHEN 1 THEN r.status ELSE d.status END,
        next_attempt_at = CASE r.one WHEN 1 THEN clock_timestamp() + make_interval(secs => r.delay)
                          ELSE d.next_attempt_at END,
        completed_at = CASE WHEN r.one = 1 AND r.status IN ('delivered', 'failed', 'cancelled')
                       THEN clock_timestamp() ELSE d.completed_at END,
        cause = CASE r.one WHEN 1 THEN 'schedule' ELSE d.cause END,
        lease_id = CASE r.one WHEN 1 THEN NULL ELSE d.lease_id END,
        lease_expires_at = CASE r.one WHEN 1 THEN NULL ELSE d.lease_expires_at END,
        last_status_code = CASE r.one WHEN 1 THEN r.code ELSE d.last_status_code END,
        last_error = CASE r.one WHEN 1 THEN r.error ELSE d.last_error END
    FROM (
        SELECT result.*, own.one FROM result, LATERAL (
            SELECT CASE WHEN b.status = 'delivering' AND b.lease_id = result.lease_id THEN 1 ELSE 0 END AS one
            FROM webhooks_delivery b WHERE b.id = result.delivery_id LIMIT 1
        ) AS own
        OFFSET 0
    ) AS r
    WHERE d.id = r.delivery_id
    RETURNING d.id, d.subscription_id, d.attempt_count, r.one = 1 AS held_lease, d.status, d.next_attempt_at,
        d.ordering_key, r.cause, r.started, r.duration, r.code, r.error, r.detail, r.body, r.exchange
), kept AS (
    INSERT INTO webhooks_deliveryattempt (
        delivery_id, number, cause, started_at, duration_ms, status_code, error, error_detail, response_body,
        sealed_exchange
    )
    SELECT id, attempt_count, cause, to_timestamp(started), duration, code, error, detail, body, exchange FROM changed
)
SELECT id AS delivery_id, subscription_id, attempt_count AS number, held_lease, status,
       extract(epoch FROM next_attempt_at)::float8 AS next_attempt_at, ordering_key
FROM changed
"""


# A delivery's next status, and the seconds until its next attempt if there is one.
_Step = tuple[DeliveryStatus, float | None]
_DELIVERED: _Step = (DeliveryStatus.DELIVERED, None)


class _RecordedAttempt(msgspec.Struct, frozen=True):
    """A row of RECORD_ATTEMPTS.  held_lease: the worker still held the lease, and the delivery has changed."""

    delivery_id: uuid.UUID
    subscription_id: uuid.UUID
    number: int
    held_lease: bool
    status: str
    next_attempt_at: float | None
    ordering_key: str | None


def record_results(results: Sequence[AttemptResult]) -> bool:
    """Store the results and commit; return whether something may be due that no claim could take.

    Of a result whose lease was lost only the attempt is stored.
    """
    batches = _transact(_without_repeats(results), not all(result.outcome.succeeded for result in results))
    for batch in batches:
        count_attempts(batch.attempts)
        log_attempts(batch.attempts)
    for batch in batches:
        for subscription_id, reason in batch.disabled.items():
            log.warning("subscription_disabled", subscription_id=str(subscription_id), reason=reason)
    return any(batch.made_room for batch in batches)


def record_each(results: Sequence[AttemptResult]) -> tuple[list[AttemptResult], bool]:
    """Store the results; one that the database refuses doesn't affect the others.

    Returns the results that could not be stored because of a transient fault, for the caller to repeat, and what
    `record_results` returns. A result that the database refuses even without the response's text is logged and dropped:
    its lease expires, which is recorded as a lost worker.
    """
    try:
        return [], record_results(results)
    except Exception as error:
        if is_transient(error):
            log.warning("record_failed", results=len(results), error=repr(error)[:300])
            return list(results), False
        log.error("record_batch_failed", results=len(results), error=repr(error)[:300])
    for position, result in enumerate(results):
        # Only the response's text comes from outside: leave it out, and keep the outcome.
        bare = replace(
            result.outcome, detail="The response could not be stored.", body="", retry_after=None, exchange=None
        )
        for version in (result, replace(result, outcome=bare)):
            try:
                record_results([version])
                break
            except Exception as error:
                if is_transient(error):
                    return list(results[position:]), True
                log.error("record_failed_alone", delivery_id=str(result.delivery.delivery_id), error=repr(error)[:300])
    return [], True


def storable(text: str) -> str:
    """Return `text` without what PostgreSQL's text can't hold: U+0000 and lone surrogates."""
    return text.encode("utf-8", "replace").decode().replace("\x00", "\ufffd")


def _without_repeats(results: Sequence[AttemptResult]) -> list[list[AttemptResult]]:
    """Return the results in batches, none of which has two of one delivery: a late one and the one after it."""
    batches: list[dict[uuid.UUID, AttemptResult]] = [{}]
    for result in results:
        for batch in batches:
            if result.delivery.delivery_id not in batch:
                batch[result.delivery.delivery_id] = result
                break
        else:
            batches.append({result.delivery.delivery_id: result})
    return [list(batch.values()) for batch in batches]


@dataclass(slots=True)
class Recorded:
    """What was stored of one batch.

    in_time, late: deliveries whose lease was still held, and those whose lease wasn't.  failed: those that have failed
    for good.
    keys: queues and ordering keys whose deliveries came back: finished, or to be tried again behind one that somebody
    has retried meanwhile.
    queues: what the results do to their queues.
    disabled: the subscriptions that were disabled, with the reasons.
    made_room: something may be due that no claim could take: a queue that was full has room again, or a delivery is due
    at once.
    """

    attempts: list[LoggedAttempt] = field(default_factory=list)
    in_time: set[uuid.UUID] = field(default_factory=set)
    late: set[uuid.UUID] = field(default_factory=set)
    failed: set[uuid.UUID] = field(default_factory=set)
    keys: set[tuple[uuid.UUID, str]] = field(default_factory=set)
    queues: dict[uuid.UUID, QueueUpdate] = field(default_factory=dict)
    disabled: dict[uuid.UUID, str] = field(default_factory=dict)
    made_room: bool = False

    def add(self, result: AttemptResult, row: _RecordedAttempt) -> None:
        """Add an attempt that was recorded."""
        self.attempts.append(_logged(result, row))
        if not row.held_lease:
            self.late.add(row.delivery_id)
            return
        self.in_time.add(row.delivery_id)
        if row.ordering_key is not None:
            self.keys.add((row.subscription_id, row.ordering_key))
        if row.status == DeliveryStatus.FAILED:
            self.failed.add(row.delivery_id)


def _transact(batches: Sequence[Sequence[AttemptResult]], may_disable: bool) -> list[Recorded]:
    """Store the batches in one transaction.

    may_disable: whether a subscription may have to be disabled in it, which the ORM does.  Otherwise all of it is one
    pipeline.
    """

    def record_and_disable(results: Sequence[AttemptResult]) -> Recorded:
        by_queue = _by_queue(results)
        with pipelined():
            recorded = _record(results, by_queue)
        recorded.disabled = disable_unwanted(recorded.queues, by_queue)
        return recorded

    if may_disable:
        return in_transaction(lambda: [record_and_disable(batch) for batch in batches])
    return in_pipelined_transaction(lambda: [_record(batch, _by_queue(batch)) for batch in batches])


def _by_queue(results: Sequence[AttemptResult]) -> dict[uuid.UUID, list[AttemptResult]]:
    by_queue: dict[uuid.UUID, list[AttemptResult]] = defaultdict(list)
    for result in results:
        by_queue[result.delivery.subscription_id].append(result)
    return by_queue


def _record(results: Sequence[AttemptResult], by_queue: Mapping[uuid.UUID, Sequence[AttemptResult]]) -> Recorded:
    """Store results of different deliveries: lock their queues, record the attempts, write the queues back.

    Within a transaction and a pipeline.  Others wait for the locks, so what can be done before them is: the attempts
    are encrypted; and if all results are successes, which are delivered whatever the state of their queues, the
    attempts are recorded in the round trip that locks.
    """
    by_delivery = {result.delivery.delivery_id: result for result in results}
    attempts = _attempt_columns(results)
    other, recording = server_cursor(), server_cursor(class_row(_RecordedAttempt))
    other.execute(_KEEP_PLANS)
    locking = begin_locking(by_queue)
    steps = [_DELIVERED] * len(results)
    are_successes = all(result.outcome.succeeded for result in results)
    if are_successes:
        recording.execute(RECORD_ATTEMPTS, {**attempts, **_step_columns(steps)})
    queues = {key: QueueUpdate(queue) for key, queue in locked_queues(locking).items()}
    if not are_successes:
        steps = [_next_step(result, queues[result.delivery.subscription_id].queue) for result in results]
        recording.execute(RECORD_ATTEMPTS, {**attempts, **_step_columns(steps)})
    recorded = Recorded(queues=queues)
    for row in recording.fetchall():
        recorded.add(by_delivery[row.delivery_id], row)
        if row.held_lease:
            queues[row.subscription_id].count_delivery(
                row.next_attempt_at if row.status == DeliveryStatus.PENDING else None
            )
    _count_outcomes(queues, by_queue, recorded.in_time)
    other.execute(UPDATE_QUEUES, queue_columns(queues))
    following = ordering_keys.unpark(recorded.keys, server_cursor(scalar_row)) if recorded.keys else set()
    if following:
        mark_due(following, cursor=other)
    other.execute(ADD_ATTEMPTS, attempt_columns(by_queue, recorded.late, recorded.failed))
    if recorded.failed:
        note(NoticeKind.DELIVERY_FAILED, _notes_of_failed(by_delivery[one] for one in recorded.failed), other)
    recorded.made_room = (
        bool(following)
        or any(update.queue.is_full for update in queues.values())
        or any(delay == 0 for _, delay in steps)
    )
    return recorded


def _count_outcomes(
    queues: Mapping[uuid.UUID, QueueUpdate],
    by_queue: Mapping[uuid.UUID, Sequence[AttemptResult]],
    in_time: Collection[uuid.UUID],
) -> None:
    """Count the outcomes into the queues; one that comes after its lease says nothing about the endpoint now."""
    policy = breaker_policy()
    for subscription_id, results in by_queue.items():
        timely = [result for result in results if result.delivery.delivery_id in in_time]
        queues[subscription_id].count_results(timely, policy)


def _next_step(result: AttemptResult, queue: LockedQueue) -> _Step:
    """Return the delivery's next status and the seconds until its next attempt, if there is one."""
    attempts_used = result.delivery.attempts_used + 1
    schedule = settings.DELIVERY_RETRY_SCHEDULE
    step = decide_next_step(result.outcome, attempts_used, schedule[: result.delivery.most_attempts])
    if step is NextStep.DELIVERED:
        return _DELIVERED
    if queue.is_deleted:
        return DeliveryStatus.CANCELLED, None
    gone = result.outcome.is_gone
    if step is NextStep.FAILED and not gone:
        return DeliveryStatus.FAILED, None
    # A 410 disables the subscription, so the delivery waits like everything else of it.
    delay = retry_delay(min(attempts_used, len(schedule) - 1), schedule, settings.DELIVERY_RETRY_JITTER)
    asked = retry_after_seconds(result.outcome, result.started_at, settings.RETRY_AFTER_MAX) or 0.0
    waits = queue.accepts_deliveries and not gone
    return (DeliveryStatus.PENDING if waits else DeliveryStatus.HELD), max(delay, asked)


def _step_columns(steps: Sequence[_Step]) -> dict[str, object]:
    """Return the parameters of RECORD_ATTEMPTS that say what becomes of the deliveries."""
    return {
        "statuses": plain_array(status.value for status, _ in steps),
        "delays": number_array(delay for _, delay in steps),
    }


def _attempt_columns(results: Sequence[AttemptResult]) -> dict[str, object]:
    """Return the other parameters of RECORD_ATTEMPTS."""
    return {
        "ids": plain_array(result.delivery.delivery_id for result in results),
        "leases": plain_array(result.delivery.lease_id for result in results),
        "codes": number_array(result.outcome.status_code for result in results),
        "errors": text_array(result.outcome.error_class for result in results),
        "details": text_array(storable(result.outcome.detail[:500]) for result in results),
        "bodies": text_array(storable(result.outcome.body) for result in results),
        "started": number_array(result.started_at for result in results),
        "durations": number_array(result.duration_ms for result in results),
        "causes": plain_array(result.delivery.cause for result in results),
        "exchanges": bytes_array(_sealed_exchange(result) for result in results),
    }


def _notes_of_failed(results: Iterable[AttemptResult]) -> dict[uuid.UUID, Note]:
    """Return the notes about deliveries that have failed for good with these attempts, by subscription."""
    notes: dict[uuid.UUID, Note] = {}
    for result in results:
        delivery, outcome = result.delivery, result.outcome
        one = notes.setdefault(delivery.subscription_id, Note(delivery.organization_id, 0))
        one.number += 1
        one.detail = failed_delivery(
            delivery.delivery_id, delivery.event_id, outcome.error_class, outcome.status_code, delivery.event_type
        )
    return notes


def _logged(result: AttemptResult, row: _RecordedAttempt) -> LoggedAttempt:
    delivery, outcome = result.delivery, result.outcome
    return LoggedAttempt(
        row.status if row.held_lease else LATE,
        delivery.delivery_id,
        row.number,
        delivery.event_id,
        delivery.subscription_id,
        delivery.organization_id,
        delivery.event_request_id,
        delivery.event_trace,
        outcome.failure,
        outcome.status_code,
        result.duration_ms,
        outcome.exchange,
        _latency(result) if row.held_lease and row.status == DeliveryStatus.DELIVERED else None,
    )


def _latency(result: AttemptResult) -> float | None:
    """Return the seconds since the event was accepted; what an operator sends again days later says nothing."""
    if result.delivery.cause != "schedule":
        return None
    return result.started_at - result.delivery.event_created_at.timestamp() + result.duration_ms / 1000


def _sealed_exchange(result: AttemptResult) -> bytes | None:
    exchange = result.outcome.exchange
    return seal_exchange(exchange, _sealer) if exchange is not None and result.delivery.keeps_exchange else None
