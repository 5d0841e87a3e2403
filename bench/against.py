"""The same scenarios in this checkout and in another one, in turn, so that both meet the same machine."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from bench import figures
from bench.figures import Figure
from bench.scenarios import SCENARIOS
from devstack.errors import DevstackError
from devstack.processes import ROOT, Process

LOG = ROOT / ".local" / "against.log"
LONGEST_SECONDS = 24 * 3600.0

Row = tuple[str, str]  # scenario and metric


def compare(names: Sequence[str], other: Path, rounds: int, tiny: Path | None) -> str:
    """Run the scenarios in both checkouts, each with its own code, and return a table.  Raises DevstackError.

    The other checkout needs no more of its `python -m bench` than the names of the scenarios and a bench.json.  It may
    be older than a scenario, and borrows it then.
    """
    theirs: list[dict[Row, Figure]] = []
    ours: list[dict[Row, Figure]] = []
    for number in range(1, rounds + 1):
        for checkout, found, folder in ((other, theirs, "there"), (ROOT, ours, "here")):
            print(f"round {number} of {rounds}, in {checkout} …", file=sys.stderr, flush=True)
            measured = _measure(checkout, names, tiny and tiny / folder)
            found.append({(figure.scenario, figure.metric): figure for figure in measured})
    return table(theirs, ours)


def _measure(checkout: Path, names: Sequence[str], tiny: Path | None) -> list[Figure]:
    python = checkout / ".venv" / "bin" / "python"
    command = [str(python) if python.exists() else sys.executable, *_entry(checkout, names), *names]
    output = (tiny or checkout / ".local") / "bench.json"
    output.unlink(missing_ok=True)
    process = Process("bench", command + (["--tiny", str(tiny)] if tiny else []), LOG, cwd=checkout).start()
    try:
        code = process.wait(LONGEST_SECONDS)
    finally:
        process.stop()
    if code or not output.exists():
        raise DevstackError(f"The benchmark failed in {checkout} ({LOG}): {process.last_line()}")
    return figures.read(output)


def _entry(checkout: Path, names: Sequence[str]) -> list[str]:
    """Return how the checkout's benchmark is started: with our scenarios for those that it doesn't have."""
    lent = []
    for name in names:
        scenario = SCENARIOS[name]
        module = scenario.__module__.rpartition(".")[2]
        if not (checkout / "bench" / "scenarios" / f"{module}.py").exists():
            lent.append(f"{ROOT}/bench/scenarios/{module}.py:{scenario.__name__}={name}")
    return [f"{ROOT}/bench/lend.py", *lent, "--"] if lent else ["-m", "bench"]


def table(theirs: Sequence[dict[Row, Figure]], ours: Sequence[dict[Row, Figure]]) -> str:
    """Return the medians of both sides, and this checkout's share of the other's: median, lowest, and highest round.

    A figure that one side doesn't have is left empty there.
    """
    rows = [("scenario", "metric", "there", "here", "ratio", "lowest", "highest")]
    for row in dict.fromkeys(row for found in (*theirs, *ours) for row in found):
        sides = [[found[row] for found in side if row in found] for side in (theirs, ours)]
        medians = [
            f"{figures.plain(median([f.value for f in side]))} {side[0].unit}".strip() if side else "" for side in sides
        ]
        ratios = [our.value / their.value for their, our in zip(*sides, strict=False) if their.value]
        shown = [f"{ratio:.2f}" for ratio in (median(ratios), min(ratios), max(ratios))] if ratios else [""] * 3
        rows.append((*row, medians[0], medians[1], shown[0], shown[1], shown[2]))
    return figures.as_table(rows)
