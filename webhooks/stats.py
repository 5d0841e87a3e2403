"""Statistics for health and the console: what could be sent now, what waits for something else, what is in flight.

A delivery is *due* if it could be sent now: its time has come, and nothing is missing but a free worker.  What has to
wait for its endpoint, a limit, or a person is *paused*, for one of PauseReason.  So a dead or slow endpoint is never
mistaken for a lack of workers.
"""

from __future__ import annotations

import datetime
from enum import StrEnum
from typing import Any

from django.conf import settings
from django.db.models import Count, DurationField, ExpressionWrapper, F, Q, Sum
from django.db.models.functions import Now
from psycopg.rows import dict_row, scalar_row

from core.db import server_cursor
from webhooks.models import DestinationKind, Subscription, SubscriptionQueue, TaskLease
from webhooks.routing.fan_out import FAN_OUT_LOCK


class PauseReason(StrEnum):
    """Why deliveries whose time has come can't be sent now."""

    CIRCUIT_BREAKER = "circuit_breaker"  # open, or half-open: the next success lets all of them through
    RETRY_AFTER = "retry_after"  # the endpoint asked for a pause
    RATE_LIMIT = "rate_limit"  # the subscription's `deliveries_per_second`
    CONCURRENCY_LIMIT = "concurrency_limit"  # as many requests are in flight to the endpoint as it takes
    HELD = "held"  # the subscription is disabled, or a person holds the delivery
    SENDING_DISABLED = "sending_disabled"  # DISABLE_WEBHOOK_DELIVERY


# Conditions on a queue `q` of a subscription `s`.  The first that holds is the reason.  SQL, because they are shared by
# the counts below, which are LATERAL joins to a LIMIT, and by the sample of `webhooks.rollups`.
PAUSES = {
    PauseReason.CIRCUIT_BREAKER: "q.breaker_trips > 0",
    PauseReason.RETRY_AFTER: "coalesce(q.paused_until > statement_timestamp(), false)",
    # What a claim writes when the limit is used up: until the limit allows the next delivery, and for the moment until
    # that one is claimed.  Otherwise everything that waits would be due once for each delivery that the limit allows.
    PauseReason.RATE_LIMIT: (
        "s.deliveries_per_second IS NOT NULL AND (q.next_due_at > statement_timestamp()"
        " OR q.has_backlog AND q.next_due_at > statement_timestamp() - interval '5 seconds')"
    ),
    PauseReason.CONCURRENCY_LIMIT: (
        "q.in_flight >= least(q.concurrency_window, coalesce(s.max_in_flight, %(max_in_flight)s))"
    ),
}
_PAUSED = " OR ".join(f"({condition})" for condition in PAUSES.values())
_QUEUES = """webhooks_subscriptionqueue q JOIN webhooks_subscription s ON s.id = q.subscription_id"""

# What a queue's deliveries wait for if the queue isn't paused.
DUE = "due"


def _count_waiting() -> str:
    """Return the statement that counts what is due and, for each reason, what is paused.

    One pass over the queues says what each waits for.  Only the deliveries of those that wait for the same are counted
    together, each sum to its own bound.
    """
    reasons = " ".join(f"WHEN {condition} THEN '{reason}'" for reason, condition in PAUSES.items())
    # Queues in which nothing is due aren't read; those that wait for a rate limit say so themselves.
    earlier = " OR ".join(PAUSES[reason] for reason in (PauseReason.CIRCUIT_BREAKER, PauseReason.RETRY_AFTER))
    names = ", ".join(f"('{name}')" for name in (DUE, *PAUSES))
    # Written once for all reasons: PostgreSQL would plan each part for all partitions, which takes longer than running.
    return f"""
WITH waiting AS MATERIALIZED (
    SELECT q.subscription_id, CASE {reasons} ELSE '{DUE}' END AS reason FROM {_QUEUES}
    WHERE q.accepts_deliveries AND (
        q.next_due_at <= statement_timestamp()
        OR ({PAUSES[PauseReason.RATE_LIMIT]} AND NOT ({earlier}))
    )
)
SELECT reasons.name AS reason, counted.number FROM (VALUES {names}) AS reasons(name) CROSS JOIN LATERAL (
    SELECT count(*) AS number FROM (
        SELECT 1 FROM waiting CROSS JOIN LATERAL (
            SELECT 1 FROM webhooks_delivery d
            WHERE d.subscription_id = waiting.subscription_id AND d.status = 'pending'
              AND d.next_attempt_at <= statement_timestamp() LIMIT %(most)s
        ) AS deliveries
        WHERE waiting.reason = reasons.name LIMIT %(most)s
    ) AS found
) AS counted"""  # noqa: S608 - constants of ours


COUNT_WAITING = _count_waiting()
# These stop counting at a LIMIT, and count entries of an index: the ORM selects the primary key in such a count, for
# which PostgreSQL reads the rows as well.
COUNT_HELD = "SELECT count(*) FROM (SELECT 1 FROM webhooks_delivery WHERE status = 'held' LIMIT %(most)s) AS held"
# By the part of the index that each organization has.
COUNT_RETRYING = """
SELECT count(*) FROM (
    SELECT 1 FROM orgs_organization o CROSS JOIN LATERAL (
        SELECT 1 FROM webhooks_delivery
        WHERE organization_id = o.id AND status = 'pending' AND NOT last_error = '' LIMIT %(most)s
    ) AS retrying LIMIT %(most)s
) AS counted
"""
# Since when it could be sent: not before the queue last waited for its endpoint or for its rate limit.  A queue's own
# `next_due_at` may be that of a delivery that has been sent since, so the first of those that wait is looked up.
OLDEST_DUE = f"""
SELECT extract(
    epoch FROM clock_timestamp() - min(greatest(first.due_at, due.ready_since, due.paused_until, due.allowed_at))
) FROM (
    SELECT q.subscription_id, q.ready_since, q.paused_until,
           CASE WHEN s.deliveries_per_second IS NOT NULL THEN q.next_due_at END AS allowed_at
    FROM {_QUEUES}
    WHERE q.accepts_deliveries AND q.next_due_at <= statement_timestamp() AND NOT ({_PAUSED})
    ORDER BY q.next_due_at LIMIT 200
) AS due CROSS JOIN LATERAL (
    SELECT d.next_attempt_at AS due_at FROM webhooks_delivery d
    WHERE d.subscription_id = due.subscription_id AND d.status = 'pending'
      AND d.next_attempt_at <= statement_timestamp()
    ORDER BY d.next_attempt_at LIMIT 1
) AS first
"""  # noqa: S608 - constants of ours
# What running fan-outs announce (`fan_out.ANNOUNCE_FAN_OUT`).
COUNT_IN_FAN_OUT = f"""
SELECT coalesce(sum(objid::bigint), 0) FROM pg_locks
WHERE locktype = 'advisory' AND classid = {FAN_OUT_LOCK} AND objsubid = 2 AND granted
  AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""  # noqa: S608 - a constant of ours

# To a LIMIT, as above.
COUNT_QUEUES = "SELECT count(*) FROM (SELECT 1 FROM webhooks_subscriptionqueue LIMIT %(most)s) AS queues"


def _one(statement: str, parameters: dict[str, Any] | None = None) -> float | None:
    with server_cursor(scalar_row) as cursor:
        number = cursor.execute(statement, parameters).fetchone()
    return None if number is None else float(number)


def _parameters(most: int = 0) -> dict[str, Any]:
    return {"most": most, "max_in_flight": settings.MAX_IN_FLIGHT_PER_SUBSCRIPTION}


def waiting_deliveries(most: int) -> tuple[int, dict[str, int]]:
    """Return how many deliveries could be sent now and wait for a worker, and how many are paused for each reason.

    Counting stops at `most`.
    """
    with server_cursor() as cursor:
        counts = {name: int(number) for name, number in cursor.execute(COUNT_WAITING, _parameters(most)).fetchall()}
    due = counts.pop(DUE)
    counts[PauseReason.HELD] = int(_one(COUNT_HELD, {"most": most}) or 0)
    switched_off = settings.DISABLE_WEBHOOK_DELIVERY
    counts[PauseReason.SENDING_DISABLED] = due if switched_off else 0
    return 0 if switched_off else due, {reason.value: counts[reason] for reason in PauseReason}


def retrying_deliveries(most: int) -> int:
    """Return how many deliveries have failed, or were given back to their inbox, and wait for another attempt.

    Counting stops at `most`.
    """
    return int(_one(COUNT_RETRYING, {"most": most}) or 0)


def deliveries_in_flight() -> int:
    """Return how many deliveries are claimed by a worker."""
    counted = SubscriptionQueue.objects.filter(in_flight__gt=0).aggregate(number=Sum("in_flight"))
    return int(counted["number"] or 0)


def events_in_fan_out() -> int:
    """Return how many events are being fanned out."""
    return int(_one(COUNT_IN_FAN_OUT) or 0)


def oldest_due_seconds() -> float:
    """Return how long the delivery that is due longest could have been sent, in seconds; 0 when none is due."""
    if settings.DISABLE_WEBHOOK_DELIVERY:
        return 0.0
    return max(0.0, _one(OLDEST_DUE, {"max_in_flight": settings.MAX_IN_FLIGHT_PER_SUBSCRIPTION}) or 0.0)


def breaker_states(most: int) -> dict[str, int]:
    """Return how many subscriptions' circuit breakers are in each state; of those that are closed, up to `most`."""
    # A queue whose breaker isn't closed has been failing since some time, which an index knows.
    tripped = SubscriptionQueue.objects.filter(failing_since__isnull=False, breaker_trips__gt=0).aggregate(
        number=Count("pk"), open=Count("pk", filter=Q(paused_until__gt=Now()))
    )
    number, are_open = tripped["number"], tripped["open"]
    queues = int(_one(COUNT_QUEUES, {"most": most}) or 0)
    return {"open": are_open, "half_open": number - are_open, "closed": max(0, queues - number)}


def sweep_age_seconds() -> float | None:
    """Return how long ago a worker's last sweep ended, in seconds; 0 during one, None if there has been none."""
    age = ExpressionWrapper(Now() - F("expires_at"), output_field=DurationField())
    found = TaskLease.objects.filter(task="sweep").annotate(age=age).values_list("age", flat=True).first()
    # While a round runs, the lease on it ends in the future.
    return None if found is None else max(0.0, found.total_seconds())


# The end of a certificate is text in the one form that `client_certificates` writes, so it needs no parsing here.
COUNT_CERTIFICATES = """
SELECT min(client_certificate_details ->> 'expires_at') AS first,
       count(*) FILTER (WHERE client_certificate_details ->> 'expires_at' <= to_char(
           (statement_timestamp() + make_interval(days => %(days)s)) AT TIME ZONE 'UTC',
           'YYYY-MM-DD"T"HH24:MI:SS"+00:00"'
       )) AS ending
FROM webhooks_subscription
WHERE client_certificate_details IS NOT NULL AND deleted_at IS NULL AND is_active
"""


def client_certificates(days: int) -> tuple[float | None, int]:
    """Return when the first client certificate of an active subscription ends, in seconds since the epoch.

    The second number is how many end within `days` or have ended.
    """
    with server_cursor(dict_row) as cursor:
        (row,) = cursor.execute(COUNT_CERTIFICATES, {"days": days}).fetchall()
    first = row["first"]
    return None if first is None else datetime.datetime.fromisoformat(first).timestamp(), int(row["ending"])


# The oldest event of each inbox is read once; only inboxes in which something waits are counted.  What is leased has a
# separate index.
COUNT_INBOXES = """
WITH waiting AS MATERIALIZED (
    SELECT s.id, first.next_attempt_at AS since FROM webhooks_subscription s CROSS JOIN LATERAL (
        SELECT next_attempt_at FROM webhooks_delivery d
        WHERE d.subscription_id = s.id AND d.status = 'pending' AND d.next_attempt_at <= statement_timestamp()
        ORDER BY d.next_attempt_at LIMIT 1
    ) AS first
    WHERE s.kind = 'inbox' AND s.deleted_at IS NULL AND s.is_active
)
SELECT (
    SELECT count(*) FROM (
        SELECT 1 FROM waiting CROSS JOIN LATERAL (
            SELECT 1 FROM webhooks_delivery d WHERE d.subscription_id = waiting.id AND d.status = 'pending'
              AND d.next_attempt_at <= statement_timestamp() LIMIT %(most)s
        ) AS deliveries LIMIT %(most)s
    ) AS counted
) AS waiting, (
    SELECT count(*) FROM (
        SELECT 1 FROM webhooks_delivery WHERE status = 'pending' AND lease_id IS NOT NULL
          AND next_attempt_at > statement_timestamp() LIMIT %(most)s
    ) AS leased
) AS leased, (SELECT greatest(0, extract(epoch FROM statement_timestamp() - min(since))) FROM waiting) AS oldest
"""


def inbox_events(most: int) -> tuple[dict[str, int], float]:
    """Return how many events of inboxes wait to be fetched, and how many are leased, each counted to `most`.

    The second value is how long the one that waits longest could have been fetched, in seconds; 0 if none waits.
    """
    # Without an inbox, PostgreSQL needn't plan that for all partitions.
    if not Subscription.objects.filter(kind=DestinationKind.INBOX).exists():
        return {"waiting": 0, "leased": 0}, 0.0
    with server_cursor(dict_row) as cursor:
        (row,) = cursor.execute(COUNT_INBOXES, {"most": most}).fetchall()
    return {"waiting": row["waiting"], "leased": row["leased"]}, float(row["oldest"] or 0)
