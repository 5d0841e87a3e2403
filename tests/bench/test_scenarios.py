"""The benchmark can't rot: scenarios run on real processes at a tiny scale, and find everything delivered."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from devstack.processes import ROOT

# A busy machine may need long.
pytestmark = pytest.mark.timeout(400)
# Web, worker, receiver, and large tables; the others are made of the same parts, type-checked, and take minutes.
CHOSEN = ["single", "fanout", "delivery", "history"]
RELATIONS = {">=": float.__ge__, ">": float.__gt__, "<=": float.__le__, "<": float.__lt__, "=": float.__eq__}


def _bench(*arguments: str) -> str:
    """Run the benchmark and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "bench", *arguments], cwd=ROOT, env={"PATH": os.environ["PATH"]},
        capture_output=True, text=True, timeout=380, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.bench
def test_scenarios_run_and_lose_nothing(tmp_path: Path) -> None:
    printed = _bench("--tiny", str(tmp_path), *CHOSEN)
    found = json.loads((tmp_path / "bench.json").read_text())
    assert {row["scenario"] for row in found} == set(CHOSEN)
    assert all(set(row) == {"scenario", "metric", "value", "unit", "target", "ok"} for row in found)
    for row in found:
        relation, _, bound = (row["target"] or "").partition(" ")
        assert row["ok"] == (RELATIONS[relation](float(row["value"]), float(bound)) if bound else None), row
    # Speed means nothing at this scale; losing or repeating something does.
    exact = [row for row in found if row["target"] in {"= 0", ">= 100"}]
    assert len(exact) >= 5
    assert [row for row in exact if not row["ok"]] == []
    # The page gets the same table between its marks, and nothing else changes.
    page = tmp_path / "page.md"
    page.write_text((ROOT / "docs" / "performance.md").read_text())
    _bench("--tiny", str(tmp_path), "--page", str(page))
    before, table, after = _parts(ROOT / "docs" / "performance.md")
    assert _parts(page) == (before, printed.strip(), after)
    assert table != printed.strip()


def _parts(page: Path) -> tuple[str, str, str]:
    """Return what comes before the page's table, the table, and what comes after."""
    before, _, rest = page.read_text().partition("by `python -m bench --page`. -->")
    table, _, after = rest.partition("<!-- End of the table. -->")
    return before, table.strip(), after


def test_every_scenario_says_what_it_measures_and_the_page_does_too() -> None:
    page = (ROOT / "docs" / "performance.md").read_text()
    scenarios = dict(line.split(maxsplit=1) for line in _bench("--list").splitlines())
    assert len(scenarios) >= 10
    for name, description in scenarios.items():
        assert description
        assert f"| `{name}` |" in page


@pytest.mark.bench
def test_a_checkout_is_compared_with_another_one_round_by_round(tmp_path: Path) -> None:
    lines = _bench("fanout", "--tiny", str(tmp_path), "--against", str(ROOT), "--rounds", "1").splitlines()
    found = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert found[0] == ["scenario", "metric", "there", "here", "ratio", "lowest", "highest"]
    metrics = {row[1]: row for row in found[2:]}
    assert set(metrics) == {row["metric"] for row in json.loads((tmp_path / "here" / "bench.json").read_text())}
    for scenario, _, there, here, ratio, lowest, highest in metrics.values():
        assert scenario == "fanout"
        assert there
        assert here
        assert not ratio or float(lowest) <= float(ratio) <= float(highest)
    assert metrics["deliveries made, 1 subscription"][4]
    assert not metrics["missing, 1 subscription"][4], "nothing to divide by"


def _compare_with(other: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bench", "fanout", "--against", str(other)],
        cwd=ROOT, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_a_comparison_with_what_is_no_checkout_ends_with_one_line(tmp_path: Path) -> None:
    for other in (tmp_path, tmp_path / "missing"):
        done = _compare_with(other)
        assert done.returncode == 2
        assert done.stderr == f"--against (AGAINST): {other} is not a checkout; make one with git worktree.\n"


def test_a_comparison_with_a_checkout_that_fails_says_where(tmp_path: Path) -> None:
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "__main__.py").write_text("raise SystemExit('it is broken')\n")
    done = _compare_with(tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"The benchmark failed in {tmp_path}")
