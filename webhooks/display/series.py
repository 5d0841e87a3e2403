"""What the charts show, read from the rollups: figures over time, percentiles, and endpoints in order of a figure."""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from operator import add

from django.utils import timezone
from psycopg.rows import class_row

from core.db import server_cursor
from webhooks.models import Gauge
from webhooks.rollups import ACCEPTED, BOUNDS_MS, BUCKET_SUMS, BUCKETS, DELIVERED, NO_ID

# The sweep sums up a minute some seconds after its end; until then the minute isn't shown.
_SUMMED_UP_AFTER = datetime.timedelta(seconds=10)


@dataclass(frozen=True, slots=True)
class Span:
    """A time range.  step: minutes in a period of a chart.  ranking_step: in one of the rows that rank endpoints."""

    name: str
    label: str
    minutes: int
    step: int
    ranking_step: int

    @property
    def last(self) -> str:
        """What stands after "the last": `hour`, `6 hours`."""
        return self.label.removeprefix("1 ")


SPANS = {
    span.name: span
    for span in (
        Span("1h", "1 hour", 60, 1, 10),
        Span("6h", "6 hours", 360, 1, 60),
        Span("24h", "24 hours", 1440, 10, 60),
        Span("7d", "7 days", 10080, 60, 1440),
        Span("30d", "30 days", 43200, 1440, 1440),
    )
}


@dataclass(slots=True)
class Period:
    """One minute, ten minutes, or an hour.  is_observed: False where nothing was recorded: there was no worker."""

    at: datetime.datetime
    is_observed: bool = False
    accepted: int = 0
    gave_up: int = 0  # deliveries that failed for good: no attempts left
    outcomes: dict[str, int] = field(default_factory=dict)
    durations: list[int] = field(default_factory=lambda: [0] * BUCKETS)
    latencies: list[int] = field(default_factory=lambda: [0] * BUCKETS)
    gauge: Gauge | None = None

    @property
    def delivered(self) -> int:
        """Attempts that the endpoint accepted."""
        return self.outcomes.get(DELIVERED, 0)

    @property
    def attempts(self) -> int:
        """Attempts, whatever came of them."""
        return sum(self.outcomes.values())

    @property
    def failed(self) -> int:
        """Attempts that failed."""
        return self.attempts - self.delivered

    @property
    def success_rate(self) -> float | None:
        """Percent of attempts that were accepted; None without any attempt."""
        return 100 * self.delivered / self.attempts if self.attempts else None


@dataclass
class Series:
    """Numbers for everything, an organization, or a subscription over a span, in periods without gaps."""

    span: Span
    periods: list[Period]

    @cached_property
    def times(self) -> list[str]:
        """When each period began, as short as the span allows."""
        clock = "%b %d %H:%M" if self.span.minutes > 1440 else "%H:%M"
        form = "%b %d" if self.span.step >= 1440 else clock
        return [period.at.strftime(form) for period in self.periods]

    def total(self) -> Period:
        """Return all periods as one."""
        whole = Period(self.periods[0].at)
        for period in self.periods:
            whole.accepted += period.accepted
            whole.gave_up += period.gave_up
            for outcome, count in period.outcomes.items():
                whole.outcomes[outcome] = whole.outcomes.get(outcome, 0) + count
            whole.durations = list(map(add, whole.durations, period.durations))
            whole.latencies = list(map(add, whole.latencies, period.latencies))
        return whole


def _bounds(span: Span, step: int) -> tuple[datetime.datetime, datetime.datetime]:
    """Return the first period of `step` minutes in the span, and the end of the last minute that is summed up."""
    now = timezone.now() - _SUMMED_UP_AFTER
    end = now.replace(second=0, microsecond=0)
    start = end - datetime.timedelta(minutes=span.minutes)
    length = step * 60
    return datetime.datetime.fromtimestamp(start.timestamp() // length * length, datetime.UTC), end


def _each_period(start: datetime.datetime, end: datetime.datetime, step: int) -> Iterator[datetime.datetime]:
    """Yield the beginnings of the periods from `start` up to `end`."""
    while start < end:
        yield start
        start += datetime.timedelta(minutes=step)


# SQL, because the ORM reads times, of which Python would parse thousands, and the histograms of what has no latencies.
_READ = f"""
SELECT ((extract(epoch FROM at) - extract(epoch FROM %(start)s::timestamptz)) / %(seconds)s)::int AS position,
       outcome, attempts, settled, durations, CASE WHEN outcome = '{DELIVERED}' THEN latencies END AS latencies
FROM webhooks_rollup
WHERE step = %(step)s AND organization_id = %(organization)s AND subscription_id = %(subscription)s
  AND at >= %(start)s AND at < %(end)s
"""  # noqa: S608 - constants of ours


@dataclass(frozen=True, slots=True)
class _RolledUp:
    """A row of _READ.  position: of its period.  latencies: None but for what was delivered."""

    position: int
    outcome: str
    attempts: int
    settled: int
    durations: list[int]
    latencies: list[int] | None


def read_series(span: Span, organization_id: uuid.UUID = NO_ID, subscription_id: uuid.UUID = NO_ID) -> Series:
    """Return the numbers of a subscription, of an organization if none is given, or else of everything.

    Reads two index ranges, whatever the size of the tables.
    """
    start, end = _bounds(span, span.step)
    periods = {at: Period(at) for at in _each_period(start, end, span.step)}
    listed = list(periods.values())
    window = {
        "step": span.step, "organization": organization_id, "subscription": subscription_id, "start": start, "end": end,
        "seconds": span.step * 60,
    }  # fmt: skip
    with server_cursor(class_row(_RolledUp)) as cursor:
        # Not prepared: as below, a plan for any step and time could be a worse one.
        for row in cursor.execute(_READ, window, prepare=False):
            period = listed[row.position]
            if row.outcome == ACCEPTED:
                period.accepted += row.attempts
                continue
            period.is_observed = True
            period.gave_up += row.settled if row.outcome != DELIVERED else 0
            period.outcomes[row.outcome] = period.outcomes.get(row.outcome, 0) + row.attempts
            period.durations = list(map(add, period.durations, row.durations))
            if row.latencies is not None:
                period.latencies = list(map(add, period.latencies, row.latencies))
    gauges = Gauge.objects.filter(
        step=span.step, organization_id__in={NO_ID, organization_id}, at__gte=start, at__lt=end
    )
    for gauge in gauges:
        period = periods[gauge.at]
        period.is_observed = True
        # An organization without its own row had nothing waiting in that minute.
        if gauge.organization_id == organization_id:
            period.gauge = gauge
        elif period.gauge is None and gauge.due is not None:
            period.gauge = Gauge(due=0, retrying=0, paused=0, rate_limited=0, held=0, in_flight=0)
    return Series(span, listed)


def percentile(buckets: Sequence[int], share: float) -> float | None:
    """Return a percentile in milliseconds, from counts in the rollups' buckets; None without any count.

    share: such as 0.95.  Exact to the width of a bucket, within which it interpolates.
    """
    total = sum(buckets)
    if not total:
        return None
    wanted = share * total
    below = 0
    for number, count in enumerate(buckets):
        if count and below + count >= wanted:
            lower = BOUNDS_MS[number - 1] if number else 0
            upper = BOUNDS_MS[number] if number < len(BOUNDS_MS) else lower
            return lower + (upper - lower) * (wanted - below) / count
        below += count
    return float(BOUNDS_MS[-1])


@dataclass(frozen=True, slots=True)
class EndpointStats:
    """One subscription over a span.  mean_ms and p95_ms: how long its attempts took."""

    subscription_id: uuid.UUID
    attempts: int
    failed: int
    mean_ms: float
    p95_ms: float | None


# SQL, because the ORM can't rank the result of one pass twice.  One pass over the rows of the span without their
# histograms; those are read for the few that are shown.  The periods are listed because PostgreSQL takes step and time
# for independent, and would expect a range to hold much more.  It does so with organizations and subscriptions, too,
# and would sort all rows on the disk if they were grouped by both.
_RANK = f"""
WITH ranked AS MATERIALIZED (
    SELECT subscription_id, sum(attempts) AS attempts,
           coalesce(sum(attempts) FILTER (WHERE outcome <> '{DELIVERED}'), 0) AS failed,
           sum(duration_ms) / sum(attempts) AS mean_ms
    FROM webhooks_rollup
    WHERE step = %(step)s AND at = ANY(%(periods)s::timestamptz[]) AND subscription_id <> %(no_id)s
      AND (%(organization)s::uuid = %(no_id)s OR organization_id = %(organization)s)
    GROUP BY subscription_id
), shown AS (
    (SELECT 'slowest' AS ranking, * FROM ranked ORDER BY mean_ms DESC LIMIT %(most)s)
    UNION ALL
    (SELECT 'failing', * FROM ranked WHERE failed > 0 ORDER BY failed DESC LIMIT %(most)s)
)
SELECT ranking, subscription_id, attempts::bigint AS attempts, failed::bigint AS failed, mean_ms, (
    SELECT {BUCKET_SUMS} FROM webhooks_rollup r
    WHERE r.step = %(step)s AND r.organization_id = s.organization_id
      AND r.subscription_id = shown.subscription_id AND r.at = ANY(%(periods)s::timestamptz[])
) AS durations FROM shown JOIN webhooks_subscription s ON s.id = subscription_id
"""  # noqa: S608 - constants of ours


@dataclass(frozen=True, slots=True)
class _Ranked:
    """A row of _RANK.  ranking: `slowest` or `failing`."""

    ranking: str
    subscription_id: uuid.UUID
    attempts: int
    failed: int
    mean_ms: float
    durations: list[int]


@dataclass(frozen=True, slots=True)
class Rankings:
    """The subscriptions whose attempts took longest on average, and those with the most failed attempts."""

    slowest: list[EndpointStats]
    failing: list[EndpointStats]


def rank_endpoints(span: Span, organization_id: uuid.UUID = NO_ID, most: int = 5) -> Rankings:
    """Return the endpoints that stand out, of an organization or of all."""
    start, end = _bounds(span, span.ranking_step)
    window = {
        "step": span.ranking_step, "periods": list(_each_period(start, end, span.ranking_step)),
        "organization": organization_id, "no_id": NO_ID, "most": most,
    }  # fmt: skip
    rankings = Rankings([], [])
    with server_cursor(class_row(_Ranked)) as cursor:
        # Not prepared: the plan that PostgreSQL would keep for any step and time reads the whole table.
        for row in cursor.execute(_RANK, window, prepare=False).fetchall():
            p95_ms = percentile(row.durations, 0.95)
            stats = EndpointStats(row.subscription_id, row.attempts, row.failed, row.mean_ms, p95_ms)
            (rankings.slowest if row.ranking == "slowest" else rankings.failing).append(stats)
    rankings.slowest.sort(key=lambda stats: -stats.mean_ms)
    rankings.failing.sort(key=lambda stats: -stats.failed)
    return rankings
