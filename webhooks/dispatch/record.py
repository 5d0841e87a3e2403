"""Recording results: attempts, deliveries, and queues in one transaction."""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import msgspec
import structlog
from django.conf import settings
from psycopg.rows import class_row, scalar_row

from core.arrays import number_array, plain_array, text_array
from core.db import KEEP_PLANS, in_transaction, is_transient, pipelined, server_cursor
from core.encryption import Sealer
from webhooks import order
from webhooks.destinations.exchange import seal_exchange
from webhooks.destinations.outcome import Outcome
from webhooks.dispatch.attempt_log import LATE, LoggedAttempt, count_attempts, log_attempt
from webhooks.dispatch.breaker import BreakerPolicy, EndpointHealth, after_failure, after_success
from webhooks.dispatch.delivery import AttemptResult
from webhooks.dispatch.retry import NextStep, decide_next_step, retry_after_seconds, retry_delay
from webhooks.models import Delivery, DeliveryStatus, NoticeKind
from webhooks.notices import Note, failed_delivery, note
from webhooks.queues import LockedQueue, lock_queues, locking_cursor, mark_due
from webhooks.rollups import ADD_ATTEMPTS, attempt_columns
from webhooks.subscriptions import disable_automatically

log = structlog.get_logger()

# For the one thread that records.
_sealer = Sealer()

GONE = "The endpoint returned 410 Gone."

# Every attempt is kept.  The delivery only changes while the lease is still the worker's own.
RECORD_ATTEMPTS = """
WITH result AS (
    SELECT * FROM unnest(
        %(ids)s::uuid[], %(leases)s::uuid[], %(statuses)s::text[], %(delays)s::float8[], %(codes)s::int[],
        %(errors)s::text[], %(details)s::text[], %(bodies)s::text[], %(started)s::float8[], %(durations)s::float8[],
        %(causes)s::text[], %(exchanges)b::bytea[]
    ) AS r(delivery_id, lease_id, status, delay, code, error, detail, body, started, duration, cause, exchange)
), changed AS (
    UPDATE webhooks_delivery d SET
        attempt_count = d.attempt_count + 1,
        attempts_used = d.attempts_used + own.one,
        status = CASE own.one WHEN 1 THEN r.status ELSE d.status END,
        next_attempt_at = CASE own.one WHEN 1 THEN clock_timestamp() + make_interval(secs => r.delay)
                          ELSE d.next_attempt_at END,
        completed_at = CASE WHEN own.one = 1 AND r.status IN ('delivered', 'failed', 'cancelled')
                       THEN clock_timestamp() ELSE d.completed_at END,
        cause = CASE own.one WHEN 1 THEN 'schedule' ELSE d.cause END,
        lease_id = CASE own.one WHEN 1 THEN NULL ELSE d.lease_id END,
        lease_expires_at = CASE own.one WHEN 1 THEN NULL ELSE d.lease_expires_at END,
        last_status_code = CASE own.one WHEN 1 THEN r.code ELSE d.last_status_code END,
        last_error = CASE own.one WHEN 1 THEN r.error ELSE d.last_error END
    FROM result r, webhooks_delivery b,
         LATERAL (SELECT CASE WHEN b.status = 'delivering' AND b.lease_id = r.lease_id THEN 1 ELSE 0 END AS one) AS own
    WHERE d.id = r.delivery_id AND b.id = d.id
    RETURNING d.id, d.subscription_id, d.attempt_count, own.one = 1 AS held_lease, d.status, d.next_attempt_at,
        d.ordering_key
), kept AS (
    INSERT INTO webhooks_deliveryattempt (
        delivery_id, number, cause, started_at, duration_ms, status_code, error, error_detail, response_body,
        sealed_exchange
    )
    SELECT r.delivery_id, changed.attempt_count, r.cause, to_timestamp(r.started), r.duration, r.code, r.error,
           r.detail, r.body, r.exchange
    FROM result r JOIN changed ON changed.id = r.delivery_id
)
SELECT id AS delivery_id, subscription_id, attempt_count AS number, held_lease, status,
       extract(epoch FROM next_attempt_at)::float8 AS next_attempt_at, ordering_key
FROM changed
"""


class _RecordedAttempt(msgspec.Struct, frozen=True):
    """A row of RECORD_ATTEMPTS.  held_lease: the delivery was still the worker's own, and has changed."""

    delivery_id: uuid.UUID
    subscription_id: uuid.UUID
    number: int
    held_lease: bool
    status: str
    next_attempt_at: float | None
    ordering_key: str | None


_UPDATE_QUEUES = """
UPDATE webhooks_subscriptionqueue q SET
    in_flight = q.in_flight - v.finished,
    concurrency_window = v.win,
    consecutive_failures = v.failures,
    breaker_trips = v.trips,
    paused_until = CASE WHEN v.pause > 0 THEN clock_timestamp() + make_interval(secs => v.pause) END,
    failing_since = CASE
        WHEN NOT v.failing THEN NULL
        WHEN v.succeeded THEN clock_timestamp()
        ELSE coalesce(q.failing_since, clock_timestamp())
    END,
    active_since = CASE WHEN v.succeeded AND q.failing_since IS NOT NULL THEN clock_timestamp()
                   ELSE q.active_since END,
    ready_since = CASE WHEN v.was_full OR (v.succeeded AND q.failing_since IS NOT NULL) THEN clock_timestamp()
                  ELSE q.ready_since END,
    last_failure_at = CASE WHEN v.error <> '' THEN clock_timestamp() ELSE q.last_failure_at END,
    last_error = CASE WHEN v.error <> '' THEN v.error ELSE q.last_error END,
    last_status_code = CASE WHEN v.error <> '' THEN v.code ELSE q.last_status_code END,
    recent_failures = (
        SELECT failures[greatest(1, cardinality(failures) - %(failures_kept)s + 1):]
        FROM (SELECT CASE WHEN v.succeeded THEN '{}' ELSE q.recent_failures END
                     || array_fill(clock_timestamp(), ARRAY[v.new_failures])) AS kept(failures)
    ),
    last_success_at = CASE WHEN v.succeeded THEN clock_timestamp() ELSE q.last_success_at END,
    next_due_at = least(q.next_due_at, to_timestamp(v.due))
FROM unnest(%(queues)s::uuid[], %(finished)s::int[], %(windows)s::int[], %(failures)s::int[], %(trips)s::int[],
            %(pauses)s::float8[], %(failing)s::bool[], %(new_failures)s::int[], %(succeeded)s::bool[],
            %(due)s::float8[], %(was_full)s::bool[], %(errors)s::text[], %(codes)s::int[])
     AS v(subscription_id, finished, win, failures, trips, pause, failing, new_failures, succeeded, due, was_full,
          error, code)
WHERE q.subscription_id = v.subscription_id
"""


class _QueueUpdate:
    """A queue under its lock, while the results of its deliveries are counted in."""

    def __init__(self, queue: LockedQueue) -> None:
        self.queue = queue
        self.health = EndpointHealth(
            queue.concurrency_window, queue.consecutive_failures, queue.breaker_trips, queue.paused_for
        )
        self.failing_for = queue.failing_for
        self.failures_in_period = queue.failures_in_period
        self.new_failures = 0
        self.is_failing = queue.failing_for is not None
        self.succeeded = False
        self.retry_after = 0.0
        self.finished = 0
        self.due: float | None = None
        self.last_failure: Outcome | None = None
        self.disable_reason = ""

    def count_row(self, row: _RecordedAttempt) -> None:
        """Count a recorded attempt in: a delivery that left the queue's hands, or comes back to it."""
        if not row.held_lease:
            return
        self.finished += 1
        if row.status == DeliveryStatus.PENDING and row.next_attempt_at is not None:
            self.due = row.next_attempt_at if self.due is None else min(self.due, row.next_attempt_at)

    def count_results(self, results: Sequence[AttemptResult], policy: BreakerPolicy) -> None:
        """Count the outcomes into the endpoint's health, in the order in which they came."""
        for result in results:
            outcome = result.outcome
            if outcome.succeeded:
                self.health = after_success(self.health, policy, self.queue.max_in_flight)
                self.succeeded, self.is_failing, self.failing_for = True, False, None
                self.failures_in_period = self.new_failures = 0
                continue
            self.last_failure = outcome
            if outcome.is_permanent:  # no request was made: nothing is known about the endpoint
                continue
            self.health = after_failure(self.health, policy, outcome.is_overload)
            self.is_failing = True
            self.failures_in_period += 1
            self.new_failures += 1
            asked = retry_after_seconds(outcome, result.started_at, settings.RETRY_AFTER_MAX)
            self.retry_after = max(self.retry_after, asked or 0.0)
            if outcome.is_gone:
                self.disable_reason = GONE
        failing_for = self.failing_for or 0.0
        # An endpoint that was left in peace for days is not disabled by the first failure after that.
        is_persistent = self.failures_in_period >= len(settings.DELIVERY_RETRY_SCHEDULE)
        if self.is_failing and is_persistent and failing_for >= settings.DISABLE_AFTER_FAILING_FOR:
            self.disable_reason = self.disable_reason or f"Every delivery failed for {failing_for / 86400:.1f} days."
        self.health = replace(self.health, window=min(self.health.window, max(self.queue.max_in_flight, 1)))


def breaker_policy() -> BreakerPolicy:
    """Return the policy that the settings describe."""
    return BreakerPolicy(
        settings.INITIAL_CONCURRENCY_WINDOW,
        settings.BREAKER_THRESHOLD,
        settings.BREAKER_BASE_DELAY,
        settings.BREAKER_MAX_DELAY,
    )


def record_results(results: Sequence[AttemptResult]) -> bool:
    """Store the results, committed when this returns; tell whether something may be due that no claim could take.

    A result whose lease was lost adds its attempt and changes nothing else.
    """
    batches = in_transaction(lambda: [_record(batch) for batch in _without_repeats(results)])
    for _, _, attempts in batches:
        count_attempts(attempts)
        for attempt in attempts:
            log_attempt(attempt)
    for disabled, _, _ in batches:
        for subscription_id, reason in disabled.items():
            log.warning("subscription_disabled", subscription_id=str(subscription_id), reason=reason)
    return any(made_room for _, made_room, _ in batches)


def record_each(results: Sequence[AttemptResult]) -> tuple[list[AttemptResult], bool]:
    """Store the results; one that can't be stored as it is holds back none of the others.

    Returns those that are not stored because of the database or the moment, for the caller to try again, and what
    `record_results` tells.  A result that the database refuses even without the endpoint's words is logged and
    dropped: its lease runs out, which is recorded as a lost worker.
    """
    try:
        return [], record_results(results)
    except Exception as error:
        if is_transient(error):
            log.warning("record_failed", results=len(results), error=repr(error)[:300])
            return list(results), False
        log.error("record_batch_failed", results=len(results), error=repr(error)[:300])
    for position, result in enumerate(results):
        # The endpoint's words are the only part that isn't ours: leave them out, keep what they mean.
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


def _record(results: Sequence[AttemptResult]) -> tuple[dict[uuid.UUID, str], bool, list[LoggedAttempt]]:
    """Store results of different deliveries: lock their queues, record the attempts, write the queues back.

    Returns the subscriptions that were disabled, with the reasons; whether something may be due that no claim could
    take: a queue that was full has room again, or a delivery is due at once; and the attempts.
    """
    by_queue: dict[uuid.UUID, list[AttemptResult]] = defaultdict(list)
    for result in results:
        by_queue[result.delivery.subscription_id].append(result)
    policy = breaker_policy()
    with (
        locking_cursor() as locking,
        server_cursor(class_row(_RecordedAttempt)) as recording,
        server_cursor() as updating,
        server_cursor() as counting,
        server_cursor(scalar_row) as ordering,
        pipelined(),
    ):
        updating.execute(KEEP_PLANS)
        queues = {key: _QueueUpdate(queue) for key, queue in lock_queues(by_queue, locking).items()}
        steps = [_next_step(result, queues[result.delivery.subscription_id].queue) for result in results]
        recording.execute(RECORD_ATTEMPTS, _attempt_columns(results, steps))
        in_time = set()
        by_delivery = {result.delivery.delivery_id: result for result in results}
        attempts = []
        late, failed = set(), set()
        # Queues and ordering keys whose deliveries came back: finished, or to be tried again behind one that somebody
        # has retried meanwhile.
        keys: set[tuple[uuid.UUID, str]] = set()
        for row in recording.fetchall():
            queues[row.subscription_id].count_row(row)
            attempts.append(_logged(by_delivery[row.delivery_id], row))
            if row.held_lease:
                in_time.add(row.delivery_id)
                if row.ordering_key is not None:
                    keys.add((row.subscription_id, row.ordering_key))
                if row.status == DeliveryStatus.FAILED:
                    failed.add(row.delivery_id)
            else:
                late.add(row.delivery_id)
        for subscription_id, queue_results in by_queue.items():
            # A result that comes after its lease says nothing about the endpoint now.
            timely = [result for result in queue_results if result.delivery.delivery_id in in_time]
            queues[subscription_id].count_results(timely, policy)
        updating.execute(_UPDATE_QUEUES, _queue_columns(queues))
        following = order.unpark(keys, ordering) if keys else set()
        if following:
            mark_due(following, cursor=updating)
        counting.execute(ADD_ATTEMPTS, attempt_columns(by_queue, late, failed))
        if failed:
            note(NoticeKind.DELIVERY_FAILED, _notes_of_failed(by_delivery[one] for one in failed), counting)
    disabled = _disable(queues, by_queue)
    made_room = any(update.queue.is_full for update in queues.values()) or any(delay == 0 for _, delay in steps)
    made_room = made_room or bool(following)
    return disabled, made_room, attempts


def _disable(
    queues: Mapping[uuid.UUID, _QueueUpdate], by_queue: Mapping[uuid.UUID, Sequence[AttemptResult]]
) -> dict[uuid.UUID, str]:
    """Disable the subscriptions whose results ask for it; return those that were disabled, with the reasons."""
    disabled = {}
    for key, update in queues.items():
        if update.disable_reason and update.queue.accepts_deliveries:
            if disable_automatically(key, update.disable_reason, is_gone=update.disable_reason == GONE):
                disabled[key] = update.disable_reason
            else:
                _go_on(key, by_queue[key])
    return disabled


def _go_on(subscription_id: uuid.UUID, results: Sequence[AttemptResult]) -> None:
    """Let deliveries that were held because their subscription would be disabled go on: it wasn't."""
    ids = [result.delivery.delivery_id for result in results]
    Delivery.objects.filter(pk__in=ids, status=DeliveryStatus.HELD).update(status=DeliveryStatus.PENDING)
    mark_due([subscription_id])


def _next_step(result: AttemptResult, queue: LockedQueue) -> tuple[DeliveryStatus, float | None]:
    """Return the delivery's next status and, if it is tried again, the seconds until then."""
    attempts_used = result.delivery.attempts_used + 1
    schedule = settings.DELIVERY_RETRY_SCHEDULE
    step = decide_next_step(result.outcome, attempts_used, schedule[: result.delivery.most_attempts])
    if step is NextStep.DELIVERED:
        return DeliveryStatus.DELIVERED, None
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


def _attempt_columns(
    results: Sequence[AttemptResult], steps: Sequence[tuple[DeliveryStatus, float | None]]
) -> dict[str, object]:
    """Return the parameters of RECORD_ATTEMPTS."""
    return {
        "ids": plain_array(result.delivery.delivery_id for result in results),
        "leases": plain_array(result.delivery.lease_id for result in results),
        "statuses": plain_array(status.value for status, _ in steps),
        "delays": number_array(delay for _, delay in steps),
        "codes": number_array(result.outcome.status_code for result in results),
        "errors": text_array(_error_class(result.outcome) for result in results),
        "details": text_array(storable(result.outcome.detail[:500]) for result in results),
        "bodies": text_array(storable(result.outcome.body) for result in results),
        "started": number_array(result.started_at for result in results),
        "durations": number_array(result.duration_ms for result in results),
        "causes": plain_array(result.delivery.cause for result in results),
        "exchanges": [_sealed_exchange(result) for result in results],
    }


def _notes_of_failed(results: Iterable[AttemptResult]) -> dict[uuid.UUID, Note]:
    """Return what to note of attempts with which their deliveries have failed for good, by subscription."""
    notes: dict[uuid.UUID, Note] = {}
    for result in results:
        delivery, outcome = result.delivery, result.outcome
        one = notes.setdefault(delivery.subscription_id, Note(delivery.organization_id, 0))
        one.number += 1
        one.detail = failed_delivery(
            delivery.delivery_id, delivery.event_id, _error_class(outcome), outcome.status_code, delivery.event_type
        )
    return notes


def _error_class(outcome: Outcome | None) -> str:
    return outcome.failure.value if outcome is not None and outcome.failure is not None else ""


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


def _queue_columns(queues: Mapping[uuid.UUID, _QueueUpdate]) -> dict[str, object]:
    """Return the parameters of _UPDATE_QUEUES."""
    updates = queues.values()
    kept = len(settings.DELIVERY_RETRY_SCHEDULE)
    return {
        "failures_kept": kept,
        "new_failures": [min(update.new_failures, kept) for update in updates],
        "queues": list(queues),
        "finished": [update.finished for update in updates],
        "windows": [update.health.window for update in updates],
        "failures": [update.health.consecutive_failures for update in updates],
        "trips": [update.health.breaker_trips for update in updates],
        "pauses": [max(update.health.pause, update.retry_after) for update in updates],
        "failing": [update.is_failing for update in updates],
        "succeeded": [update.succeeded for update in updates],
        "due": [update.due for update in updates],
        "was_full": [update.queue.is_full for update in updates],
        "errors": [_error_class(update.last_failure) for update in updates],
        "codes": [update.last_failure.status_code if update.last_failure else None for update in updates],
    }
