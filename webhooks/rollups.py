"""Rollups: small tables for the console's charts, which therefore never scan deliveries or attempts.

Three kinds of rows, and who writes them:

- *a minute of a subscription*: in the transaction that records the attempts, so the numbers are as exact as the
  attempts themselves: a crash neither loses nor repeats any.  That transaction holds the lock on the subscription's
  queue, so no two workers ever wait for each other on such a row.  The minute is that of the recording.
- *a minute of an organization, of everything, and longer periods* (`STEPS`): the sweep computes them from the former,
  once a minute.  It replaces what is there, so doing it twice changes nothing.
- *gauges*: the sweep samples once a minute what is waiting and what is in flight.  They also tell a minute without
  deliveries from one without a worker: the latter has no gauge.

How long each step is kept is `STEPS`; the longest one, ROLLUP_RETENTION_DAYS.
"""

from __future__ import annotations

import datetime
import http
import uuid
from bisect import bisect_left
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from typing import Any

import structlog
from django.conf import settings
from psycopg.errors import QueryCanceled
from psycopg.rows import dict_row

from core.arrays import plain_array, text_array
from core.db import in_transaction, server_cursor
from core.ids import first_id_since
from core.redis import RedisUnavailable, call_redis
from core.workers import count_live_workers
from webhooks.dispatch.delivery import AttemptResult
from webhooks.stats import PAUSES, PauseReason

log = structlog.get_logger()

NO_ID = uuid.UUID(int=0)
# Not an attempt's outcome, but counted with them.
ACCEPTED = "accepted"
DELIVERED = "delivered"
WORKER_LOST = "worker_lost"

# Upper bounds of the buckets in milliseconds, for durations and latencies; the last bucket has none.
BOUNDS_MS = (
    5, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 30_000, 60_000, 300_000, 1_800_000, 7_200_000,
    86_400_000,
)  # fmt: skip
BUCKETS = len(BOUNDS_MS) + 1

# The length of a period in minutes, and how long its rows are kept (None: ROLLUP_RETENTION_DAYS).
STEPS: dict[int, datetime.timedelta | None] = {
    1: datetime.timedelta(hours=7),
    10: datetime.timedelta(hours=25),
    60: datetime.timedelta(days=8),
    1440: None,
}
# A minute is summed up this long after its end, and once more a minute later, for records that took long to commit.
CLOSED_AFTER_SECONDS = 5
SAMPLE_TIMEOUT_MS = 5000
DELETED_AT_A_TIME = 20_000

_KNOWN_STATUSES = frozenset(int(status) for status in http.HTTPStatus)


def _each(template: str) -> str:
    """Return an SQL array of `template` for each bucket."""
    return f"ARRAY[{', '.join(template.format(number) for number in range(1, BUCKETS + 1))}]"


_ZEROS = "{" + ",".join(["0"] * BUCKETS) + "}"
_ADD = f"""
ON CONFLICT (step, organization_id, subscription_id, at, outcome) DO UPDATE SET
    attempts = t.attempts + excluded.attempts,
    settled = t.settled + excluded.settled,
    duration_ms = t.duration_ms + excluded.duration_ms,
    durations = {_each("t.durations[{0}] + excluded.durations[{0}]")},
    latencies = CASE WHEN excluded.latencies = '{_ZEROS}' THEN t.latencies
                ELSE {_each("t.latencies[{0}] + excluded.latencies[{0}]")} END
"""
_REPLACE = """
ON CONFLICT (step, organization_id, subscription_id, at, outcome) DO UPDATE SET
    attempts = excluded.attempts, settled = excluded.settled, duration_ms = excluded.duration_ms,
    durations = excluded.durations, latencies = excluded.latencies
"""
# The statements below insert or update in one step from what they count, which the ORM can't.
_INSERT = """
INSERT INTO webhooks_rollup AS t (
    step, organization_id, subscription_id, at, outcome, attempts, settled, duration_ms, durations, latencies
)
"""
BUCKET_SUMS = _each("sum(durations[{0}])::int")
_SUMS = f"""
sum(attempts)::bigint, sum(settled)::bigint, sum(duration_ms), {BUCKET_SUMS}, {_each("sum(latencies[{0}])::int")}
"""

# In the order of the subscriptions, as their queues are locked.
ADD_ATTEMPTS = f"""
{_INSERT}
SELECT 1, organization_id, subscription_id, date_trunc('minute', statement_timestamp()), outcome, attempts, settled,
       duration_ms, durations::int[], latencies::int[]
FROM unnest(%(organizations)s::uuid[], %(subscriptions)s::uuid[], %(outcomes)s::text[], %(attempts)s::bigint[],
            %(settled)s::bigint[], %(duration_ms)s::float8[], %(durations)s::text[], %(latencies)s::text[])
     AS v(organization_id, subscription_id, outcome, attempts, settled, duration_ms, durations, latencies)
ORDER BY subscription_id, outcome
{_ADD}
"""  # noqa: S608 - constants of ours

# Attempts whose worker was lost: counted as failures without a duration.
_ADD_LOST = f"""
{_INSERT}
SELECT 1, organization_id, subscription_id, date_trunc('minute', statement_timestamp()), '{WORKER_LOST}', count(*),
       count(*) FILTER (WHERE status = 'failed'), 0, '{_ZEROS}', '{_ZEROS}'
FROM webhooks_delivery WHERE id = ANY(%s::uuid[])
GROUP BY organization_id, subscription_id ORDER BY subscription_id
{_ADD}
"""  # noqa: S608


def outcome_of(error: str, status_code: int | None) -> str:
    """Return the name under which an attempt is counted: `delivered`, `timeout`, `http_status 503`.

    Undefined statuses are counted together, so that an endpoint can't make a row for each number.
    """
    if not error:
        return DELIVERED
    if status_code is None:
        return error
    return f"{error} {status_code if status_code in _KNOWN_STATUSES else f'{status_code // 100}xx'}"


class _Tally:
    """The attempts of one subscription with one outcome."""

    __slots__ = ("attempts", "duration_ms", "durations", "latencies", "settled")

    def __init__(self) -> None:
        self.attempts = self.settled = 0
        self.duration_ms = 0.0
        self.durations = [0] * BUCKETS
        self.latencies = [0] * BUCKETS


def attempt_columns(
    by_queue: Mapping[uuid.UUID, Sequence[AttemptResult]], late: Collection[uuid.UUID], failed: Collection[uuid.UUID]
) -> dict[str, str]:
    """Return the parameters of ADD_ATTEMPTS.

    by_queue: the results of each subscription.  late: deliveries whose results came after their lease and changed
    nothing.  failed: those that have failed for good.  The latency is counted for what was delivered by the schedule:
    what an operator sends again days later says nothing about it.
    """
    # This runs for every delivery, so it avoids what is slow in Python, such as hashing UUIDs.
    rows: list[tuple[uuid.UUID, uuid.UUID, str, _Tally]] = []
    for subscription_id, results in by_queue.items():
        organization_id = results[0].delivery.organization_id
        tallies: dict[str, _Tally] = {}
        for result in results:
            delivery, outcome, duration_ms = result.delivery, result.outcome, result.duration_ms
            name = outcome_of(outcome.failure, outcome.status_code) if outcome.failure else DELIVERED
            tally = tallies.get(name)
            if tally is None:
                tally = tallies[name] = _Tally()
                rows.append((organization_id, subscription_id, name, tally))
            tally.attempts += 1
            tally.duration_ms += duration_ms
            tally.durations[bisect_left(BOUNDS_MS, duration_ms)] += 1
            if late and delivery.delivery_id in late:
                continue
            if outcome.failure:
                tally.settled += delivery.delivery_id in failed
                continue
            tally.settled += 1
            if delivery.cause == "schedule":
                latency = (result.started_at - delivery.event_created_at.timestamp()) * 1000 + duration_ms
                tally.latencies[bisect_left(BOUNDS_MS, latency)] += 1
    return {
        "organizations": plain_array(organization_id for organization_id, _, _, _ in rows),
        "subscriptions": plain_array(subscription_id for _, subscription_id, _, _ in rows),
        "outcomes": text_array(outcome for _, _, outcome, _ in rows),
        "attempts": plain_array(tally.attempts for _, _, _, tally in rows),
        "settled": plain_array(tally.settled for _, _, _, tally in rows),
        "duration_ms": plain_array(tally.duration_ms for _, _, _, tally in rows),
        "durations": text_array(plain_array(tally.durations) for _, _, _, tally in rows),
        "latencies": text_array(plain_array(tally.latencies) for _, _, _, tally in rows),
    }


def count_lost_attempts(delivery_ids: list[uuid.UUID]) -> None:
    """Count the attempts whose worker was lost, in the caller's transaction, which has locked the queues."""
    with server_cursor() as cursor:
        cursor.execute(_ADD_LOST, (delivery_ids,))


# --- what the sweep does once a minute --------------------------------------------------------------------------------

# The last minute that is over, by the database's clock, and the last one that was sampled.  SQL, because the ORM reads
# the clock only beside a row.
_FIND_MINUTE = f"""
SELECT date_trunc('minute', statement_timestamp() - make_interval(secs => {CLOSED_AFTER_SECONDS})) AS minute,
       (SELECT max(at) FROM webhooks_gauge WHERE step = 1 AND organization_id = %s) AS last
"""  # noqa: S608

# Which of the gauges' columns a reason of `webhooks.stats` belongs to.
_STATES = " ".join(
    f"WHEN {condition} THEN '{'rate_limited' if reason is PauseReason.RATE_LIMIT else 'paused'}'"
    for reason, condition in PAUSES.items()
)
# What waits, by organization.  Counts index entries: of pending deliveries, of those that are retrying, and of held
# ones.  What waits in inboxes isn't due, because no worker sends it.  What is retrying is counted as
# `stats.COUNT_RETRYING` does: while its endpoint is paused, it is among the paused, too.
_SAMPLE = f"""
WITH pending AS MATERIALIZED (
    SELECT subscription_id, count(*) AS ready FROM webhooks_delivery
    WHERE status = 'pending' AND next_attempt_at <= statement_timestamp() GROUP BY subscription_id
), retrying AS MATERIALIZED (
    SELECT organization_id, count(*) AS retrying FROM webhooks_delivery
    WHERE status = 'pending' AND NOT last_error = '' GROUP BY organization_id
), held AS MATERIALIZED (
    SELECT subscription_id, count(*) AS held FROM webhooks_delivery WHERE status = 'held' GROUP BY subscription_id
), queue AS (
    SELECT q.organization_id, q.in_flight, coalesce(p.ready, 0) AS ready, 0 AS retrying, coalesce(h.held, 0) AS held,
           CASE WHEN NOT q.accepts_deliveries THEN 'held' WHEN %(sending_disabled)s THEN 'paused' {_STATES}
                ELSE 'due' END AS state,
           CASE WHEN p.ready > 0 THEN
               extract(epoch FROM statement_timestamp() - greatest(q.next_due_at, q.ready_since, q.paused_until))
           END AS age
    FROM webhooks_subscriptionqueue q JOIN webhooks_subscription s ON s.id = q.subscription_id
    LEFT JOIN pending p ON p.subscription_id = s.id AND NOT q.is_fetched
    LEFT JOIN held h ON h.subscription_id = s.id
    WHERE p.ready > 0 OR h.held > 0 OR q.in_flight > 0
    UNION ALL
    SELECT organization_id, 0, 0, retrying, 0, NULL, NULL FROM retrying
)
INSERT INTO webhooks_gauge (
    step, organization_id, at, due, retrying, paused, rate_limited, held, in_flight, oldest_due_seconds, workers, places
)
SELECT 1, coalesce(organization_id, %(no_id)s), %(at)s,
       coalesce(sum(ready) FILTER (WHERE state = 'due'), 0), coalesce(sum(retrying), 0),
       coalesce(sum(ready) FILTER (WHERE state = 'paused'), 0),
       coalesce(sum(ready) FILTER (WHERE state = 'rate_limited'), 0),
       coalesce(sum(held), 0) + coalesce(sum(ready) FILTER (WHERE state = 'held'), 0),
       coalesce(sum(in_flight), 0), greatest(0, max(age) FILTER (WHERE state = 'due')),
       CASE WHEN organization_id IS NULL THEN %(workers)s::int END,
       CASE WHEN organization_id IS NULL THEN %(places)s::int END
FROM queue GROUP BY GROUPING SETS ((organization_id), ())
ON CONFLICT DO NOTHING
"""  # noqa: S608 - constants of ours
# A minute whose sample took too long: the workers are noted, and the rest stays empty.
_NOTE_UNSAMPLED = """
INSERT INTO webhooks_gauge (step, organization_id, at, workers, places)
VALUES (1, %(no_id)s, %(at)s, %(workers)s, %(places)s) ON CONFLICT DO NOTHING
"""

# Accepted events of each organization and minute.
_COUNT_ACCEPTED = f"""
{_INSERT}
SELECT 1, organization_id, %(no_id)s, date_trunc('minute', created_at), '{ACCEPTED}', count(*), 0, 0,
       '{_ZEROS}', '{_ZEROS}'
FROM events_event WHERE id >= %(first_id)s AND created_at >= %(since)s AND created_at < %(until)s
GROUP BY organization_id, date_trunc('minute', created_at)
{_REPLACE}
"""  # noqa: S608
# Each organization's minutes, from those of its subscriptions.
_SUM_ORGANIZATIONS = f"""
{_INSERT}
SELECT 1, organization_id, %(no_id)s, at, outcome, {_SUMS} FROM webhooks_rollup
WHERE step = 1 AND at >= %(since)s AND at < %(until)s AND subscription_id <> %(no_id)s
GROUP BY organization_id, at, outcome
{_REPLACE}
"""  # noqa: S608
# The minutes of everything, from those of the organizations.
_SUM_ALL = f"""
{_INSERT}
SELECT 1, %(no_id)s, %(no_id)s, at, outcome, {_SUMS} FROM webhooks_rollup
WHERE step = 1 AND at >= %(since)s AND at < %(until)s AND subscription_id = %(no_id)s AND organization_id <> %(no_id)s
GROUP BY at, outcome
{_REPLACE}
"""  # noqa: S608
# From one step to the next longer one: every period that has any of the minutes is computed again from all it has.
_SUM_PERIODS = f"""
{_INSERT}
SELECT %(step)s, organization_id, subscription_id, date_bin(%(length)s, at, 'epoch'::timestamptz), outcome, {_SUMS}
FROM webhooks_rollup WHERE step = %(from_step)s AND at >= date_bin(%(length)s, %(since)s, 'epoch'::timestamptz)
  AND at < %(until)s
GROUP BY 2, 3, 4, 5
{_REPLACE}
"""  # noqa: S608
_GAUGE_NAMES = (
    "due", "retrying", "paused", "rate_limited", "held", "in_flight", "oldest_due_seconds", "workers", "places",
)  # fmt: skip
# Gauges of a longer step are the highest of the shorter one.
_TOP_GAUGES = f"""
INSERT INTO webhooks_gauge (step, organization_id, at, {", ".join(_GAUGE_NAMES)})
SELECT %(step)s, organization_id, date_bin(%(length)s, at, 'epoch'::timestamptz),
       {", ".join(f"max({name})" for name in _GAUGE_NAMES)}
FROM webhooks_gauge WHERE step = %(from_step)s AND at >= date_bin(%(length)s, %(since)s, 'epoch'::timestamptz)
GROUP BY 2, 3
ON CONFLICT (step, organization_id, at) DO UPDATE SET {", ".join(f"{name} = excluded.{name}" for name in _GAUGE_NAMES)}
"""  # noqa: S608
# SQL, because the ORM's DELETE has no LIMIT: a bounded number at a time, so that no transaction becomes long.
_DELETE_OLD = """
DELETE FROM {table} WHERE ctid = ANY (ARRAY (
    SELECT ctid FROM {table} WHERE step = %s AND at < statement_timestamp() - %s::interval LIMIT %s
))
"""


def keep_rollups() -> bool:
    """Once a minute: sample the gauges, sum up what is new, delete what is old.  Return whether it was time."""
    with server_cursor(dict_row) as cursor:
        (found,) = cursor.execute(_FIND_MINUTE, (NO_ID,)).fetchall()
    minute, last = found["minute"], found["last"]
    if last is not None and last >= minute:
        return False
    # Before the sample, which marks this minute as done: after a crash, the next sweep starts again.
    sum_up(_since(minute, last), minute)
    _sample(minute)
    _each_step(_TOP_GAUGES, _since(minute, last), minute)
    _delete_old()
    return True


def _since(minute: datetime.datetime, last: datetime.datetime | None) -> datetime.datetime:
    """Return the first minute to sum up: those since the last time, and that one's last minute once more."""
    earliest = minute - datetime.timedelta(hours=6)  # minutes are kept a little longer
    return earliest if last is None else max(earliest, last - datetime.timedelta(minutes=2))


def sum_up(since: datetime.datetime, until: datetime.datetime) -> None:
    """Compute the rows of organizations, of everything, and of longer periods, from `since` up to `until`."""
    window = {"first_id": first_id_since(since), "since": since, "until": until, "no_id": NO_ID}
    for statement in (_COUNT_ACCEPTED, _SUM_ORGANIZATIONS, _SUM_ALL):
        in_transaction(lambda sql=statement: _run(sql, window))  # type: ignore[misc]
    _each_step(_SUM_PERIODS, since, until)


def _each_step(statement: str, since: datetime.datetime, until: datetime.datetime) -> None:
    """Run a statement for each step that is computed from the one before it, when that one has a new period.

    So the longest steps, which read most, are computed least often; a new period of theirs may be late by that much.
    """
    for from_step, step in pairwise(STEPS):
        length = from_step * 60
        if since.timestamp() // length == until.timestamp() // length:
            return
        window = {
            "since": since, "until": until, "step": step, "from_step": from_step,
            "length": datetime.timedelta(minutes=step),
        }  # fmt: skip
        in_transaction(lambda given=window: _run(statement, given))  # type: ignore[misc]


def _sample(at: datetime.datetime) -> None:
    """Write the gauges of a minute; what takes too long to count is left out, and the console shows a gap."""
    try:
        workers: int | None = call_redis(count_live_workers)
    except RedisUnavailable:
        workers = None
    places = None if workers is None else workers * settings.MAX_CONCURRENT_DELIVERIES
    values = {
        "no_id": NO_ID,
        "at": at,
        "workers": workers,
        "places": places,
        "max_in_flight": settings.MAX_IN_FLIGHT_PER_SUBSCRIPTION,
        "sending_disabled": settings.DISABLE_WEBHOOK_DELIVERY,
    }

    def count() -> None:
        with server_cursor() as cursor:
            cursor.execute(f"SET LOCAL statement_timeout = {SAMPLE_TIMEOUT_MS}")
            cursor.execute(_SAMPLE, values)

    try:
        in_transaction(count)
    except QueryCanceled:
        log.warning("gauges_not_sampled", seconds=SAMPLE_TIMEOUT_MS / 1000)
        in_transaction(lambda: _run(_NOTE_UNSAMPLED, values))


def _delete_old() -> None:
    for step, kept in STEPS.items():
        age = kept or datetime.timedelta(days=settings.ROLLUP_RETENTION_DAYS)
        for table in ("webhooks_rollup", "webhooks_gauge"):
            statement = _DELETE_OLD.format(table=table)
            in_transaction(lambda sql=statement, given=(step, age): _run(sql, (*given, DELETED_AT_A_TIME)))  # type: ignore[misc]


def _run(statement: str, parameters: Mapping[str, Any] | Sequence[Any]) -> None:
    with server_cursor() as cursor:
        cursor.execute(statement, parameters)
