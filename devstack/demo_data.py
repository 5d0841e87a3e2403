# ruff: noqa: E501
"""A busy installation's rows, made by SQL: what the console's pages are measured and pictured with.

Needs Django to be set up on the database that is to be filled.
"""

from __future__ import annotations

import datetime
import uuid
from dataclasses import dataclass
from typing import Any

from devstack.sql import uuid7

# Names and addresses that must not break a page.
LONG_NAME = "The Northern and Eastern Counties Agricultural, Horticultural and Dairy Produce Cooperative Society " * 2
HOSTILE = '"><img class=hostile src=x onerror="alert(1)">'
LONG_TYPE = "com.example." + "x" * 221
TYPES = ("order.created", "order.paid", "invoice.sent", "user.signed_up", "parcel.shipped")


@dataclass(frozen=True, slots=True)
class Demo:
    """What was made.  dead: a subscription whose endpoint refuses connections.  slow: one that is slow."""

    organization: uuid.UUID
    dead: uuid.UUID
    slow: uuid.UUID
    disabled: uuid.UUID
    healthy: uuid.UUID


_EVENTS = f"""
INSERT INTO events_event (id, organization_id, type, data, dedup_id, status, failed_attempts, last_error, due_at,
                          created_at, processed_at)
SELECT {uuid7("at - clock_timestamp()")}, s.organizations[k], CASE WHEN n %% 997 = 0 THEN %(long_type)s ELSE (%(types)s::text[])[1 + n %% 5] END,
       '{{"id": ' || n || ', "customer": "C-' || n %% 5000 || '", "total": "' || (n::bigint * 7919) %% 90000 / 100.0 || '"}}',
       CASE WHEN n %% 10 = 0 THEN 'order-' || n END, 'processed', 0, '', at, at, at
FROM (SELECT n, now() - (%(count)s - n) * (make_interval(hours => 24 * %(days)s) / %(count)s) AS at, 1 + n %% %(subscriptions)s AS k
      FROM generate_series(1, %(count)s) AS n) AS e,
     (SELECT %(organizations)s::uuid[] AS organizations) AS s
"""
# Every event's number stands in its data.  `state` is '' where nothing is the matter.
_DELIVERIES = f"""
INSERT INTO webhooks_delivery (id, organization_id, event_id, subscription_id, status, next_attempt_at, cause,
                               attempts_used, attempt_count, last_status_code, last_error, completed_at, created_at)
SELECT {uuid7("created_at - clock_timestamp()")}, organization_id, id, subscription,
       CASE state WHEN '' THEN 'delivered' WHEN 'due' THEN 'pending' WHEN 'retrying' THEN 'pending' ELSE state END,
       CASE state WHEN 'due' THEN now() - interval '10 seconds' WHEN 'held' THEN now()
                  WHEN 'retrying' THEN now() + (1 + n %% 300) * interval '1 minute' END,
       'schedule',
       CASE state WHEN 'failed' THEN 8 WHEN 'retrying' THEN 3 WHEN '' THEN 1 ELSE 0 END,
       CASE state WHEN 'failed' THEN 8 WHEN 'retrying' THEN 3 WHEN '' THEN 1 ELSE 0 END,
       CASE state WHEN 'failed' THEN 503 WHEN '' THEN 200 END,
       CASE state WHEN 'failed' THEN 'http_status' WHEN 'retrying' THEN 'timeout' ELSE '' END,
       CASE WHEN state IN ('', 'failed') THEN created_at + interval '40 ms' END, created_at
FROM (
    SELECT e.*, s.subscriptions[1 + k] AS subscription,
           CASE WHEN %(backlogs)s AND k %% 21 = 7 AND created_at > now() - interval '1 day' THEN 'retrying'
                WHEN %(backlogs)s AND k %% 21 = 8 AND created_at > now() - interval '10 days' THEN 'due'
                WHEN %(backlogs)s AND k %% 21 = 11 AND created_at > now() - interval '10 days' THEN 'held'
                WHEN n %% %(failed_every)s = 0 THEN 'failed' ELSE '' END AS state
    FROM (SELECT id, organization_id, created_at, n, n %% %(subscriptions)s AS k
          FROM (SELECT *, substring(data FROM 8 FOR strpos(data, ',') - 8)::int AS n FROM events_event) AS numbered
         ) AS e,
         (SELECT %(ids)s::uuid[] AS subscriptions) AS s
) AS e
WHERE subscription <> %(dead)s
"""
_ATTEMPTS = """
INSERT INTO webhooks_deliveryattempt (delivery_id, number, cause, started_at, duration_ms, status_code, error,
                                      error_detail, response_body)
SELECT id, number, 'schedule', created_at + number * interval '1 second', 3 + number * 17, last_status_code, last_error,
       CASE WHEN last_error = '' THEN '' ELSE 'The endpoint responded with 503 Service Unavailable.' END,
       CASE WHEN last_error = '' THEN 'ok' ELSE 'Service Unavailable' END
FROM webhooks_delivery, generate_series(1, least(attempt_count, 3)) AS number WHERE status IN ('delivered', 'failed')
"""
_NEXT_DUE = """
UPDATE webhooks_subscriptionqueue q SET next_due_at = first.at
FROM (SELECT subscription_id, min(next_attempt_at) AS at FROM webhooks_delivery WHERE status = 'pending' GROUP BY 1)
     AS first
WHERE q.subscription_id = first.subscription_id AND q.next_due_at IS NULL
"""
_WAITING = f"""
INSERT INTO webhooks_delivery (id, organization_id, event_id, subscription_id, status, next_attempt_at, cause,
                               attempts_used, attempt_count, last_status_code, last_error, created_at)
SELECT {uuid7("e.created_at - clock_timestamp()")}, %(organization)s, e.id, %(subscription)s, %(status)s,
       now() + interval '7 minutes', 'schedule', 2, 2, NULL, 'connection_refused', e.created_at
FROM events_event e WHERE e.organization_id = %(organization)s ORDER BY e.created_at DESC LIMIT %(count)s
ON CONFLICT DO NOTHING
"""


def _buckets(**counts: str) -> str:
    """Return an SQL array with counts in the rollups' buckets; `b3` is the fourth."""
    return f"ARRAY[{', '.join(counts.get(f'b{number}', '0') for number in range(18))}]"


_REFUSED_ATTEMPTS = """
INSERT INTO webhooks_deliveryattempt (delivery_id, number, cause, started_at, duration_ms, status_code, error,
                                      error_detail, response_body)
SELECT id, number, 'schedule', now() - (3 - number) * interval '5 minutes' - (random() * 300) * interval '1 second', 1.2,
       NULL, 'connection_refused', 'The endpoint refused the connection.', ''
FROM webhooks_delivery, generate_series(1, 2) AS number WHERE subscription_id = %(dead)s AND status = 'pending'
"""
# A day's swing, some noise, and for each subscription its own level.  No worker was there for twelve minutes.  In the
# order in which workers write them: what stands side by side on the disk decides how long reading a period takes.
_ROLLUPS = f"""
INSERT INTO webhooks_rollup (step, organization_id, subscription_id, at, outcome, attempts, settled, duration_ms,
                             durations, latencies)
SELECT %(step)s, s.organization_id, s.id, p.at, o.outcome, o.number,
       CASE WHEN o.outcome = 'delivered' THEN o.number ELSE 0 END,
       o.number * CASE WHEN s.id = %(slow)s THEN 2100 ELSE 8 + s.n %% 40 END,
       CASE WHEN s.id = %(slow)s THEN {_buckets(b7="o.number / 2", b8="o.number - o.number / 2")}
            ELSE {_buckets(b0="o.number / 5", b1="o.number - o.number / 5 - o.number / 20", b3="o.number / 20")} END,
       CASE WHEN o.outcome <> 'delivered' THEN {_buckets()}
            ELSE {_buckets(b1="o.number / 3", b2="o.number - o.number / 3 - o.number / 12", b4="o.number / 12")} END
FROM (SELECT id, organization_id, row_number() OVER (ORDER BY id) AS n
      FROM webhooks_subscription WHERE id <> %(disabled)s) AS s,
     LATERAL (SELECT at, extract(epoch FROM at) / 86400 * 2 * pi() AS turn
              FROM generate_series(%(since)s::timestamptz, %(until)s::timestamptz - interval '1 minute',
                                   make_interval(mins => %(step)s)) AS at) AS p,
     LATERAL (VALUES
         ('delivered', (%(step)s * (12 + 6 * sin(p.turn) + 3 * sin(p.turn * 37 + s.n)))::int),
         ('http_status 503',
          CASE WHEN s.n %% 9 = 0 THEN %(step)s * (1 + (extract(minute FROM p.at)::int + s.n) %% 3) ELSE 0 END),
         ('timeout', CASE WHEN s.n %% 31 = 0 THEN %(step)s ELSE 0 END),
         ('connection_refused', CASE WHEN s.id = %(dead)s THEN %(step)s * 2 ELSE 0 END)
     ) AS o(outcome, number)
WHERE o.number > 0 AND (s.id <> %(dead)s OR o.outcome = 'connection_refused')
  AND NOT (%(step)s = 1 AND p.at >= %(until)s::timestamptz - interval '37 minutes'
           AND p.at < %(until)s::timestamptz - interval '25 minutes')
ORDER BY p.at
ON CONFLICT DO NOTHING
"""
_ACCEPTED = """
INSERT INTO webhooks_rollup (step, organization_id, subscription_id, at, outcome, attempts, settled, duration_ms,
                             durations, latencies)
SELECT step, organization_id, subscription_id, at, 'accepted', attempts + 7, 0, 0, array_fill(0, ARRAY[18]),
       array_fill(0, ARRAY[18])
FROM webhooks_rollup WHERE step = %(step)s AND subscription_id = %(no_id)s AND outcome = 'delivered'
"""
_GAUGES = """
INSERT INTO webhooks_gauge (step, organization_id, at, due, retrying, paused, rate_limited, held, in_flight,
                            oldest_due_seconds, workers, places)
SELECT %(step)s, %(no_id)s, at, (40 + 30 * sin(extract(epoch FROM at) / 700))::int, 300 + (extract(epoch FROM at)::int / 60) %% 50,
       2200, 0, 1400, (20 + 12 * sin(extract(epoch FROM at) / 900))::int, 0.4, 2, 1024
FROM generate_series(%(since)s::timestamptz, %(until)s::timestamptz - interval '1 minute',
                     make_interval(mins => %(step)s)) AS at
WHERE NOT (%(step)s = 1 AND at >= %(until)s::timestamptz - interval '37 minutes' AND at < %(until)s::timestamptz - interval '25 minutes')
ON CONFLICT DO NOTHING
"""


def fill(
    deliveries: int,
    organizations: int = 300,
    subscriptions: int = 1000,
    *,
    hostile: bool = False,
    days: int = 1,
    backlogs: bool = False,
) -> Demo:
    """Fill an empty database with `days` of deliveries and the rollups of a month.

    First the organizations and subscriptions; then events with their deliveries and attempts, what waits, and when
    the queues are due; last, for each step of the charts, the rollups and gauges.

    hostile: whether names and addresses try to break out of the page.  backlogs: whether one organization is large, and
    much has failed, waits, and is held, beyond the few failing endpoints that are always there.
    """
    from django.db import connection
    from django.utils import timezone

    from webhooks import rollups

    now = timezone.now().replace(second=0, microsecond=0)
    owners = _make_organizations(organizations, hostile=hostile)
    rows = _make_subscriptions(owners, subscriptions, now, hostile=hostile, backlogs=backlogs)
    dead, slow, disabled, healthy = rows[:4]
    values: dict[str, Any] = {
        "long_type": LONG_TYPE, "types": list(TYPES), "count": deliveries, "subscriptions": subscriptions,
        "organizations": [row.organization_id for row in rows], "ids": [row.pk for row in rows],
        "days": days, "backlogs": backlogs, "failed_every": 41 if backlogs else 211,
    }  # fmt: skip
    with connection.cursor() as cursor:
        values["dead"] = dead.pk
        cursor.execute(_EVENTS, values)
        cursor.execute(_DELIVERIES, values)
        cursor.execute(_ATTEMPTS)
        for row, status, number in ((dead, "pending", 100_000 if backlogs else 2200), (disabled, "held", 1400)):
            cursor.execute(
                _WAITING,
                {"organization": row.organization_id, "subscription": row.pk, "status": status, "count": number},
            )
        cursor.execute(_REFUSED_ATTEMPTS, values)
        cursor.execute(_NEXT_DUE)
        # Some minutes ahead, which no page shows yet: so that the lines don't end while somebody looks.
        until = now + datetime.timedelta(minutes=5)
        named: dict[str, Any] = {
            "dead": dead.pk,
            "slow": slow.pk,
            "disabled": disabled.pk,
            "no_id": rollups.NO_ID,
            "until": until,
        }
        for step, back in ((1440, datetime.timedelta(days=30)), (60, datetime.timedelta(days=8)), (10, datetime.timedelta(hours=25)),
                           (1, datetime.timedelta(hours=6, minutes=50))):  # fmt: skip
            length = step * 60
            since = datetime.datetime.fromtimestamp((now - back).timestamp() // length * length, datetime.UTC)
            cursor.execute(_ROLLUPS, {**named, "step": step, "since": since})
            cursor.execute(_GAUGES, {**named, "step": step, "since": since})
            _sum_up(step, since, until)
            cursor.execute(_ACCEPTED, {**named, "step": step})
    return Demo(owners[0].pk, dead.pk, slow.pk, disabled.pk, healthy.pk)


def _make_organizations(number: int, *, hostile: bool) -> list[Any]:
    from orgs.models import Organization

    words = ("Acme", "Globex", "Initech", "Umbra", "Hooli", "Vandelay", "Wonka", "Stark", "Tyrell", "Soylent")
    owners = Organization.objects.bulk_create(
        Organization(name=f"{words[n % 10]} {n // 10 + 1}" if n else "Acme") for n in range(number)
    )
    if number > 2:
        owners[1].name = LONG_NAME[:200]
        owners[2].name = HOSTILE if hostile else owners[2].name
        Organization.objects.bulk_update(owners[1:3], ["name"])
    return owners


def _make_subscriptions(
    owners: list[Any], number: int, now: datetime.datetime, *, hostile: bool, backlogs: bool
) -> list[Any]:
    """Make subscriptions with their queues, and return them; the first are dead, slow, disabled, and healthy.

    First all of them alike, then what makes the first ones special, in their rows and in their queues.
    """
    from core.encryption import encrypt
    from webhooks.models import DisabledCause, Subscription, SubscriptionQueue

    secret = encrypt("whsec_" + "A" * 32)
    rows = Subscription.objects.bulk_create(
        Subscription(
            organization=owners[0 if n < 4 or (backlogs and n % 5 == 0) else n % len(owners)], url=f"https://hooks-{n}.example.com/v1/incoming/{n}",
            event_types=["*"], encrypted_secret=secret, description=f"Endpoint {n}",
        )
        for n in range(number)
    )  # fmt: skip
    dead, slow, disabled, _healthy = rows[:4]
    dead.url = "https://billing.acme.example/webhooks/triggers"
    slow.url = "https://slow.acme.example/hook"
    if hostile:
        rows[4].url = f"https://example.com/?q={HOSTILE}"
    disabled.is_active, disabled.disabled_at = False, now - datetime.timedelta(days=3)
    disabled.disabled_cause, disabled.disabled_reason = DisabledCause.GONE, "The endpoint returned 410 Gone."
    held = [row for n, row in enumerate(rows) if backlogs and n % 21 == 11]
    for row in held:
        row.is_active, row.disabled_at = False, disabled.disabled_at
        row.disabled_cause, row.disabled_reason = DisabledCause.BY_REQUEST, "Disabled by request: under maintenance"
    Subscription.objects.bulk_update(
        [dead, slow, disabled, rows[4], *held], ["url", "is_active", "disabled_at", "disabled_cause", "disabled_reason"]
    )
    SubscriptionQueue.objects.bulk_create(
        SubscriptionQueue(
            subscription=row, organization_id=row.organization_id, concurrency_window=16,
            accepts_deliveries=row.is_active, last_success_at=now,
        )
        for row in rows
    )  # fmt: skip
    SubscriptionQueue.objects.filter(pk=dead.pk).update(
        failing_since=now - datetime.timedelta(hours=26), consecutive_failures=412, breaker_trips=9,
        concurrency_window=1, paused_until=now + datetime.timedelta(days=1), last_success_at=now - datetime.timedelta(hours=26),
        next_due_at=now + datetime.timedelta(days=1), last_error="connection_refused", last_failure_at=now,
    )  # fmt: skip
    SubscriptionQueue.objects.filter(pk=rows[9].pk).update(
        failing_since=now - datetime.timedelta(minutes=8),
        consecutive_failures=3,
        last_failure_at=now,
        last_error="http_status",
        last_status_code=503,
    )
    return rows


def _sum_up(step: int, since: datetime.datetime, until: datetime.datetime) -> None:
    """Sum up a step's rows of subscriptions as the sweep sums up minutes."""
    from core.db import server_cursor
    from webhooks import rollups

    window = {"since": since, "until": until, "no_id": rollups.NO_ID}
    with server_cursor() as direct:
        for statement in (rollups._SUM_ORGANIZATIONS, rollups._SUM_ALL):
            direct.execute(
                statement.replace("SELECT 1,", f"SELECT {step},").replace("step = 1 ", f"step = {step} "), window
            )
