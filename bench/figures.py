"""What a scenario found: figures with their targets, as a table and as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Figure:
    """One measured value.  target: e.g. `>= 1000` or `< 10`, in the same unit; empty for information only."""

    scenario: str
    metric: str
    value: float
    unit: str
    target: str = ""

    @property
    def ok(self) -> bool | None:
        """Return whether the target is reached; None without a target."""
        if not self.target:
            return None
        relation, _, bound_text = self.target.partition(" ")
        bound = float(bound_text)
        return {
            ">=": self.value >= bound,
            ">": self.value > bound,
            "<=": self.value <= bound,
            "<": self.value < bound,
            "=": self.value == bound,
        }[relation]

    def as_json(self) -> dict[str, Any]:
        """Return the figure as it stands in bench.json."""
        return {
            "scenario": self.scenario,
            "metric": self.metric,
            "value": self.value,  # not rounded: the page shows it as the terminal did
            "unit": self.unit,
            "target": self.target or None,
            "ok": self.ok,
        }


def plain(value: float) -> str:
    """Return a value as people write it."""
    if value != value:  # NaN: nothing was measured
        return "none"
    if abs(value) >= 1000 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.2f}" if abs(value) < 100 else f"{value:.1f}"


def as_rows(figures: Sequence[Figure]) -> list[tuple[str, str, str, str, str]]:
    """Return scenario, metric, value with unit, target, and whether it is reached, as text."""
    words = {True: "yes", False: "NO", None: ""}
    return [(f.scenario, f.metric, f"{plain(f.value)} {f.unit}".strip(), f.target, words[f.ok]) for f in figures]


TABLE_STARTS = "<!-- The table is written by `python -m bench --page`. -->"
TABLE_ENDS = "<!-- End of the table. -->"


def table(figures: Sequence[Figure]) -> str:
    """Return the figures as a Markdown table."""
    return as_table([("scenario", "metric", "value", "target", "ok"), *as_rows(figures)])


def as_table(rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table with aligned columns.  rows: the headings first."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def read(path: Path) -> list[Figure]:
    """Return the figures that `write` left in `path`."""
    rows = json.loads(path.read_text())
    return [Figure(r["scenario"], r["metric"], r["value"], r["unit"], r["target"] or "") for r in rows]


def put_into_page(figures: Sequence[Figure], page: Path) -> None:
    """Replace the table between the two marks of a Markdown page.  Raises ValueError when a mark is missing."""
    before, start, rest = page.read_text().partition(TABLE_STARTS)
    _, end, after = rest.partition(TABLE_ENDS)
    if not start or not end:
        raise ValueError(f"{page} has no place for the table")
    page.write_text(f"{before}{start}\n\n{table(figures)}\n\n{end}{after}")


def write(figures: Sequence[Figure], path: Path) -> None:
    """Write the figures to `path` as a JSON list."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([figure.as_json() for figure in figures], indent=1) + "\n")
