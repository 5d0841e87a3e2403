"""Charts as SVG that the server draws: they need no script, no inline style, and follow the page's colors."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

from webhooks.display.formatting import escape_each
from webhooks.display.series import Period, Series

WIDTH, HEIGHT = 400, 140
LEFT, RIGHT, TOP, BOTTOM = 48, 6, 8, 20
# A chart names the values under the pointer in at most this many strips.
STRIPS = 180


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a chart.  style: its CSS class.  value: of a period; None where there is nothing to show."""

    name: str
    style: str
    value: Callable[[Period], float | None]


def count(value: float) -> str:
    """Return a number as short as it is read on an axis."""
    if value >= 10_000:
        return f"{value / 1000:,.0f}k" if value < 10_000_000 else f"{value / 1_000_000:,.0f}M"
    return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:.1f}"


def percent(value: float) -> str:
    """Return a percentage; only what is really all of it is 100%."""
    if 0 < value < 0.1:
        return "< 0.1%"
    return f"{value:.0f}%" if value in {0, 50, 100} else f"{math.floor(value * 10) / 10:.1f}%"


def chart(
    title: str,
    series: Series,
    lines: Sequence[Line],
    show: Callable[[float], str] = count,
    top: float | None = None,
) -> SafeString:
    """Return a figure with a chart: grid, times, lines, legend, and the strips that show a period's values.

    show: a value as text.  top: the highest value of the axis, if that is fixed.
    """
    periods = series.periods
    values = [[line.value(period) for period in periods] for line in lines]
    present = [value for column in values for value in column if value is not None]
    highest = top if top is not None else _round_up(max(present, default=0))
    x = _positions(len(periods))

    def y(value: float) -> float:
        return round(TOP + (HEIGHT - TOP - BOTTOM) * (1 - min(value, highest) / highest), 1)

    grid = format_html_join(
        "",
        '<line class="grid" x1="{}" x2="{}" y1="{}" y2="{}"/><text class="axis" x="{}" y="{}">{}</text>',
        (
            # An axis of nothing would be made up.
            (LEFT, WIDTH - RIGHT, y(value), y(value), LEFT - 6, y(value) + 4, show(value) if present else "")
            for value in (0, highest / 2, highest)
        ),
    )
    if not present:
        middle = ((LEFT + WIDTH - RIGHT) // 2, y(highest / 2) - 6)
        grid += format_html('<text class="nothing" x="{}" y="{}">no figures in this time</text>', *middle)
    times = format_html_join(
        "",
        '<text class="time" x="{}" y="{}">{}</text>',
        ((x[number], HEIGHT - 4, series.times[number]) for number in _labelled(len(periods))),
    )
    drawn = format_html_join(
        "", "{}", ((_path(line.style, column, x, y),) for line, column in zip(lines, values, strict=True))
    )
    legend = format_html_join(
        "",
        '<li><span class="key {}"></span>{} <b>{}</b></li>',
        ((line.style, line.name, _last(column, show)) for line, column in zip(lines, values, strict=True)),
    )
    said = "; ".join(f"{line.name}: {_spread(column, show)}" for line, column in zip(lines, values, strict=True))
    return format_html(
        '<figure class="chart"><figcaption>{}<ul class="legend">{}</ul></figcaption>'
        '<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}{}{}{}{}</svg></figure>',
        title, legend, WIDTH, HEIGHT, f"{title}. {said}.", _gaps(periods, x), grid, times, drawn,
        _strips(series, lines, values, show),
    )  # fmt: skip


def _round_up(value: float) -> float:
    """Return a round number that isn't below `value`."""
    if value <= 0:
        return 1.0
    size = 10.0 ** math.floor(math.log10(value))
    return next(size * step for step in (1, 2, 4, 5, 10) if size * step >= value)


@lru_cache(maxsize=16)  # all charts of a page have as many periods
def _positions(number: int) -> list[float]:
    width = (WIDTH - LEFT - RIGHT) / max(number, 1)
    return [round(LEFT + width * (position + 0.5), 1) for position in range(number)]


def _labelled(number: int) -> list[int]:
    return sorted({round((number - 1) * part / 4 + (number - 1) / 8) for part in range(4)}) if number else []


def _path(style: str, column: Sequence[float | None], x: Sequence[float], y: Callable[[float], float]) -> SafeString:
    """Return a line that is broken where there is no value; a value that stands alone is a dot."""
    runs: list[list[tuple[float, float]]] = [[]]
    for position, value in zip(x, column, strict=True):
        if value is None:
            runs.append([])
        else:
            runs[-1].append((position, y(value)))
    dots = format_html_join(
        "", '<circle class="dot {}" cx="{}" cy="{}" r="2"/>', ((style, *run[0]) for run in runs if len(run) == 1)
    )
    path = " ".join("M" + " L".join(f"{a} {b}" for a, b in run) for run in runs if len(run) > 1)
    return format_html('{}<path class="line {}" d="{}"/>', dots, style, path) if path else dots


def _gaps(periods: Sequence[Period], x: Sequence[float]) -> SafeString:
    """Return bands over the periods that weren't observed."""
    half = (WIDTH - LEFT - RIGHT) / max(len(periods), 1) / 2
    bands: list[list[float]] = []
    for position, period in zip(x, periods, strict=True):
        if period.is_observed:
            continue
        if bands and position - half <= bands[-1][1] + 0.2:
            bands[-1][1] = position + half
        else:
            bands.append([position - half, position + half])
    return format_html_join(
        "",
        '<rect class="gap" x="{}" y="{}" width="{}" height="{}"><title>No worker was running.</title></rect>',
        ((round(a, 1), TOP, round(b - a, 1), HEIGHT - TOP - BOTTOM) for a, b in bands),
    )


@lru_cache(maxsize=16)
def _places_of_strips(number: int) -> list[tuple[range, SafeString]]:
    """Return for each strip its periods, of `number` in all, and the tag that opens it."""
    together = max(1, math.ceil(number / STRIPS))
    width = (WIDTH - LEFT - RIGHT) / max(number, 1)
    return [
        (
            range(first, min(first + together, number)),
            format_html(
                '<rect class="strip" x="{}" y="{}" width="{}" height="{}">',
                round(at - width / 2, 1), TOP, round(width * together, 1), HEIGHT - TOP - BOTTOM,
            ),
        )
        for first, at in list(enumerate(_positions(number)))[::together]
    ]  # fmt: skip


def _strips(
    series: Series, lines: Sequence[Line], values: Sequence[Sequence[float | None]], show: Callable[[float], str]
) -> SafeString:
    """Return invisible strips whose tooltips name the values."""
    named = list(zip((line.name for line in lines), values, strict=True))

    def text(number: int) -> str:
        if not series.periods[number].is_observed:
            return f"{series.times[number]}: no worker was running"
        shown = [f"{name} {'-' if (value := column[number]) is None else show(value)}" for name, column in named]
        return f"{series.times[number]}: {', '.join(shown)}"

    places = _places_of_strips(len(series.periods))
    titles = escape_each(["\n".join(map(text, numbers)) for numbers, _ in places])
    return SafeString(
        "".join(f"{tag}<title>{title}</title></rect>" for (_, tag), title in zip(places, titles, strict=True))
    )


def _last(column: Sequence[float | None], show: Callable[[float], str]) -> str:
    value = next((value for value in reversed(column[-3:]) if value is not None), None)
    return "-" if value is None else show(value)


def _spread(column: Sequence[float | None], show: Callable[[float], str]) -> str:
    present = [value for value in column if value is not None]
    if not present:
        return "no figures"
    return f"now {_last(column, show)}, lowest {show(min(present))}, highest {show(max(present))}"
