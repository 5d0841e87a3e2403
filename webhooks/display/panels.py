"""The charts and tables that the home and a subscription's page share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from django.utils.safestring import SafeString

from webhooks.display.causes import words_for
from webhooks.display.charts import Line, chart, percent
from webhooks.display.formatting import escape_each, format_duration
from webhooks.display.series import Period, Series, percentile
from webhooks.models import Gauge
from webhooks.rollups import DELIVERED

Table = dict[str, object]


def _seen(period: Period, value: float | None) -> float | None:
    return value if period.is_observed else None


def _reading(gauge: Gauge, name: str) -> int | None:
    """Return a figure of a gauge.  A rate limit is a reason to be paused, as among the home's figures."""
    value: int | None = getattr(gauge, name)
    return value if name != "paused" or value is None else value + (gauge.rate_limited or 0)


def _gauge(name: str) -> Line:
    def value(period: Period) -> float | None:
        return None if period.gauge is None else _reading(period.gauge, name)

    return Line(name.replace("_", " "), f"gauge-{name.replace('_', '-')}", value)


def _per_minute(series: Series, name: str) -> Line:
    step = series.span.step
    return Line(
        {
            "delivered": "delivered",
            "failed": "failed attempts",
            "accepted": "events accepted",
            "gave_up": "deliveries without attempts left",
        }[name],
        name.replace("_", "-"),
        lambda period: _seen(period, getattr(period, name) / step),
    )


def _failures(series: Series) -> list[Line]:
    return [_per_minute(series, "failed"), _per_minute(series, "gave_up")]


_SUCCESS = Line("success rate", "delivered", lambda period: _seen(period, period.success_rate))


def _oldest_due(period: Period) -> float | None:
    if period.gauge is None or period.gauge.due is None:
        return None
    return (period.gauge.oldest_due_seconds or 0.0) * 1000


def _load(period: Period) -> float | None:
    gauge = period.gauge
    if gauge is None or gauge.in_flight is None or not gauge.places:
        return None
    return min(100.0, 100 * gauge.in_flight / gauge.places)


_OLDEST = Line("has waited", "gauge-oldest", _oldest_due)
_LOAD = Line("places taken", "gauge-workers", _load)


def _percentiles(of: str) -> list[Line]:
    return [
        Line(label, style, lambda period, share=share: percentile(getattr(period, of), share))  # type: ignore[misc]
        for label, style, share in (("p50", "p50", 0.5), ("p95", "p95", 0.95))
    ]


def delivery_charts(series: Series) -> list[SafeString]:
    """Return what an endpoint's page shows over time: attempts, success rate, how long attempts took, latency."""
    return [
        chart("Attempts per minute", series, [_per_minute(series, "delivered"), *_failures(series)]),
        chart("Success rate of attempts", series, [_SUCCESS], percent, 100.0),
        chart("Response time", series, _percentiles("durations"), format_duration),
        chart("From accepted to received", series, _percentiles("latencies"), format_duration),
    ]


def home_charts(series: Series, *, of_all: bool) -> list[SafeString]:
    """Return the home's charts.  of_all: whether they show all organizations, and so the workers, too."""
    deliveries = [_per_minute(series, name) for name in ("accepted", "delivered")]
    waiting = [_gauge(name) for name in ("due", "retrying", "paused", "held")]
    charts = [
        chart("Deliveries per minute", series, deliveries),
        chart("Failures per minute", series, _failures(series)),
        chart("Success rate of attempts", series, [_SUCCESS], percent, 100.0),
        chart("From accepted to received", series, _percentiles("latencies"), format_duration),
        chart("Waiting deliveries", series, waiting),
        chart("Oldest delivery that is due", series, [_OLDEST], format_duration),
        chart("Requests in flight", series, [_gauge("in_flight")]),
    ]
    if of_all:
        charts.append(chart("Load of the workers", series, [_LOAD], percent, 100.0))
        charts.append(chart("Live workers", series, [_gauge("workers")]))
    return charts


@dataclass(frozen=True, slots=True)
class CauseRow:
    """How often attempts failed for one cause.  share: of the failed ones, in percent."""

    words: str
    attempts: str
    share: str


def failures_by_cause(total: Period) -> list[CauseRow]:
    """Return why attempts failed, the most frequent cause first."""
    failed = {name: number for name, number in total.outcomes.items() if name != DELIVERED}
    return [
        CauseRow(words_for(name), f"{number:,}", percent(100 * number / total.failed))
        for name, number in sorted(failed.items(), key=lambda item: -item[1])
    ]


_OF_ATTEMPTS = (
    "attempts", "delivered", "failed attempts", "no attempts left", "success rate", "response time p50",
    "response time p95", "accepted to received p50", "accepted to received p95",
)  # fmt: skip
_NO_WORKER = "no figures: no worker was running"


def _ms(value: float | None) -> str:
    return "-" if value is None else format_duration(value)


def _attempt_cells(period: Period) -> list[str]:
    """Return what _OF_ATTEMPTS names."""
    rate = period.success_rate
    return [
        f"{period.attempts:,}", f"{period.delivered:,}", f"{period.failed:,}", f"{period.gave_up:,}",
        "-" if rate is None else percent(rate),
        *(_ms(percentile(of, share)) for of in (period.durations, period.latencies) for share in (0.5, 0.95)),
    ]  # fmt: skip


def _gauge_cells(period: Period) -> list[str]:
    names = ("due", "retrying", "paused", "held", "in_flight", "workers")
    values = [period.gauge and _reading(period.gauge, name) for name in names]
    return ["-" if value is None else f"{value:,}" for value in values]


@dataclass(frozen=True, slots=True)
class TableRow:
    """A period's figures, as cells of a table.  gap: why there are none where cells are missing."""

    at: str
    cells: SafeString
    gap: str = ""


def _table(series: Series, first: Sequence[str], cells: Callable[[Period], list[str]], head: Sequence[str]) -> Table:
    """Return a table, the newest period first: what the charts show, for those who can't see them.

    first: the cell beside the time, if there is one, which a gap has, too.  cells: the others, which head names.  span:
    over how many columns a gap says why it is one.
    """
    rows: list[TableRow] = []
    for period in reversed(series.periods):
        at, begins = period.at.strftime("%Y-%m-%d %H:%M"), [f"{period.accepted:,}"] if first else []
        shown = escape_each(begins + cells(period) if period.is_observed else begins)
        in_cells = SafeString("".join(f"<td>{text}</td>" for text in shown))
        rows.append(TableRow(at, in_cells, "" if period.is_observed else _NO_WORKER))
    return {"head": ["period (UTC)", *first, *head], "rows": rows, "span": len(head)}


def table(series: Series) -> Table:
    """Return all figures of an organization, or of all, as a table."""
    gauges = ("due", "retrying", "paused", "held", "in flight", "workers")
    return _table(
        series, ("accepted",), lambda period: _attempt_cells(period) + _gauge_cells(period), (*_OF_ATTEMPTS, *gauges)
    )


def endpoint_table(series: Series) -> Table:
    """Return the figures of one endpoint as a table: without those that only an organization has."""
    return _table(series, (), _attempt_cells, _OF_ATTEMPTS)


def _number(count: int, one: str, several: str) -> str:
    return f"{count:,} {one if count == 1 else several}"


def headline(series: Series) -> list[tuple[str, str, str]]:
    """Return the figures of the whole span, each with a name and a note."""
    total = series.total()
    rate = total.success_rate
    return [
        (f"{total.accepted:,}", "events accepted", ""),
        (f"{total.delivered:,}", "delivered", _number(total.attempts, "attempt", "attempts")),
        (
            "-" if rate is None else percent(rate),
            "success rate",
            f"{_number(total.failed, 'failed attempt', 'failed attempts')},"
            f" {_number(total.gave_up, 'delivery', 'deliveries')} without attempts left",
        ),
        (_ms(percentile(total.latencies, 0.5)), "accepted to received, p50", ""),
        (_ms(percentile(total.latencies, 0.95)), "accepted to received, p95", ""),
    ]
