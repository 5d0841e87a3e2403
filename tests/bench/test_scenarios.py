"""The benchmark can't rot: scenarios run on real processes at a tiny scale, and find everything delivered."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench import figures, scale
from bench.figures import Figure
from bench.scenarios import SCENARIOS
from devstack.processes import ROOT

# A scenario of each module, in two halves; the others are made of the same parts, and type-checked.
HALVES = (
    ["single", "latency", "fanout", "delivery", "plain-rq"],
    ["half-hanging", "big-tables", "churn", "workers", "memory"],
)


@pytest.mark.parametrize("chosen", HALVES, ids="-".join)
def test_scenarios_run_and_lose_nothing(tmp_path: Path, chosen: list[str]) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in {"DATABASE_URL", "REDIS_URL"}}
    done = subprocess.run(
        [sys.executable, "-m", "bench", "--tiny", str(tmp_path), *chosen],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "bench.json").read_text())
    assert {row["scenario"] for row in found} == set(chosen)
    assert all(set(row) == {"scenario", "metric", "value", "unit", "target", "ok"} for row in found)
    # Speed means nothing at this scale; losing or repeating something does.
    exact = [row for row in found if row["target"] in {"= 0", ">= 100"}]
    assert len(exact) >= 5
    assert [row for row in exact if not row["ok"]] == []


def test_each_size_that_the_tiny_scale_shrinks_is_there() -> None:
    for module, sizes in scale._SMALL.items():
        assert [name for name in sizes if not hasattr(module, name)] == []


def test_every_scenario_says_what_it_measures_and_the_page_does_too() -> None:
    page = (ROOT / "docs" / "performance.md").read_text()
    for name, scenario in SCENARIOS.items():
        assert (scenario.__doc__ or "").strip()
        assert f"| `{name}` |" in page


def test_a_figure_knows_whether_it_reaches_its_target(tmp_path: Path) -> None:
    reached = [Figure("s", "m", 10.0, "ms", target) for target in ("< 11", "<= 10", ">= 10", "> 9", "= 10")]
    missed = [Figure("s", "m", 10.0, "ms", target) for target in ("< 10", "<= 9", ">= 11", "> 10", "= 9")]
    assert [f.ok for f in (*reached, *missed)] == [True] * 5 + [False] * 5
    assert Figure("s", "m", float("nan"), "ms", "< 10").ok is False
    figures.write([*reached, Figure("s", "info", 1.0, "")], tmp_path / "bench.json")
    assert figures.read(tmp_path / "bench.json") == [*reached, Figure("s", "info", 1.0, "")]


def test_the_page_gets_the_table_between_its_marks_and_nothing_else_changes(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{figures.TABLE_STARTS}\nold\n{figures.TABLE_ENDS}\nafter\n")
    for value in (1.0, 2.0):
        figures.put_into_page([Figure("s", "m", value, "ms")], page)
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert "old" not in text
    assert text.count("| s ") == 1
    assert "2 ms" in text
