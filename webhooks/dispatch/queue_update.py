"""What a batch of results does to each queue: its window, its circuit breaker, its history of failures, what is due."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace

from django.conf import settings

from core.arrays import number_array, plain_array, text_array
from webhooks.destinations.outcome import Outcome
from webhooks.dispatch.breaker import BreakerPolicy, EndpointHealth, after_failure, after_success
from webhooks.dispatch.delivery import AttemptResult
from webhooks.dispatch.retry import retry_after_seconds
from webhooks.models import DisabledCause
from webhooks.queues import LockedQueue

# SQL, because each queue gets its own values, from arrays.
UPDATE_QUEUES = """
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


class QueueUpdate:
    """The state of a locked queue while the results of its deliveries are added."""

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
        # Why the subscription is to be disabled.
        self.disabled_cause: DisabledCause | None = None
        self.disabled_reason = ""

    def count_delivery(self, due: float | None) -> None:
        """Count in a delivery that left the queue's hands or, if it is due again, comes back to it."""
        self.finished += 1
        if due is not None:
            self.due = due if self.due is None else min(self.due, due)

    def count_results(self, results: Sequence[AttemptResult], policy: BreakerPolicy) -> None:
        """Add the outcomes to the endpoint's health, in the order in which they came."""
        for result in results:
            outcome = result.outcome
            if outcome.succeeded:
                self.health = after_success(self.health, policy, self.queue.max_in_flight)
                self.succeeded, self.is_failing, self.failing_for = True, False, None
                self.failures_in_period = self.new_failures = 0
                continue
            self.last_failure = outcome
            if outcome.is_permanent:  # no request was made, so it says nothing about the endpoint
                continue
            self.health = after_failure(self.health, policy, outcome.is_overload)
            self.is_failing = True
            self.failures_in_period += 1
            self.new_failures += 1
            asked = retry_after_seconds(outcome, result.started_at, settings.RETRY_AFTER_MAX)
            self.retry_after = max(self.retry_after, asked or 0.0)
            if outcome.is_gone:
                self.disabled_cause, self.disabled_reason = DisabledCause.GONE, "The endpoint returned 410 Gone."
        failing_for = self.failing_for or 0.0
        # After days without a request, the first failure doesn't disable an endpoint.
        is_persistent = self.failures_in_period >= len(settings.DELIVERY_RETRY_SCHEDULE)
        is_too_long = self.is_failing and is_persistent and failing_for >= settings.DISABLE_AFTER_FAILING_FOR
        if is_too_long and self.disabled_cause is None:
            self.disabled_cause = DisabledCause.ALWAYS_FAILED
            self.disabled_reason = f"Every delivery failed for {failing_for / 86400:.1f} days."
        self.health = replace(self.health, window=min(self.health.window, max(self.queue.max_in_flight, 1)))


def breaker_policy() -> BreakerPolicy:
    """Return the policy that the settings describe."""
    return BreakerPolicy(
        settings.INITIAL_CONCURRENCY_WINDOW,
        settings.BREAKER_THRESHOLD,
        settings.BREAKER_BASE_DELAY,
        settings.BREAKER_MAX_DELAY,
    )


def queue_columns(queues: Mapping[uuid.UUID, QueueUpdate]) -> dict[str, object]:
    """Return the parameters of UPDATE_QUEUES."""
    updates = queues.values()
    kept = len(settings.DELIVERY_RETRY_SCHEDULE)
    return {
        "failures_kept": kept,
        "new_failures": plain_array(min(update.new_failures, kept) for update in updates),
        "queues": plain_array(queues),
        "finished": plain_array(update.finished for update in updates),
        "windows": plain_array(update.health.window for update in updates),
        "failures": plain_array(update.health.consecutive_failures for update in updates),
        "trips": plain_array(update.health.breaker_trips for update in updates),
        "pauses": plain_array(max(update.health.pause, update.retry_after) for update in updates),
        "failing": plain_array(update.is_failing for update in updates),
        "succeeded": plain_array(update.succeeded for update in updates),
        "due": number_array(update.due for update in updates),
        "was_full": plain_array(update.queue.is_full for update in updates),
        "errors": text_array(update.last_failure.error_class if update.last_failure else "" for update in updates),
        "codes": number_array(update.last_failure.status_code if update.last_failure else None for update in updates),
    }
