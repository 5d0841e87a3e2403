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
from devstack.processes import OURS, ROOT, Code, Process

LOG = ROOT / ".local" / "against.log"
LONGEST_SECONDS = 24 * 3600.0

Row = tuple[str, str]  # scenario and metric


def compare(names: Sequence[str], other: Path, rounds: int, tiny: Path | None) -> str:
    """Run the scenarios in both checkouts, each with its own code, and return a table.  Raises DevstackError.

    The other checkout needs no more of its `python -m bench` than the names of the scenarios and a bench.json.  For
    scenarios that are younger than it, our benchmark measures its programs.
    """
    theirs: list[dict[Row, Figure]] = []
    ours: list[dict[Row, Figure]] = []
    for number in range(1, rounds + 1):
        for checkout, found, folder in ((other, theirs, "there"), (ROOT, ours, "here")):
            print(f"round {number} of {rounds}, in {checkout} …", file=sys.stderr, flush=True)
            measured = _measure(checkout, names, tiny and tiny / folder)
            found.append({(figure.scenario, figure.metric): figure for figure in measured})
    return table(theirs, ours)


def code_of(checkout: Path) -> Code:
    """Return the checkout's code, with its `.venv` if it has one."""
    python = checkout / ".venv" / "bin" / "python"
    return Code(checkout, str(python) if python.exists() else sys.executable)


def _measure(checkout: Path, names: Sequence[str], tiny: Path | None) -> list[Figure]:
    code, found = code_of(checkout), []
    known = [name for name in names if _knows(checkout, name)]
    younger = [name for name in names if name not in known]
    if known:
        found += _run(code, known, tiny, checkout)
    if younger:
        found += _run(OURS, ["--programs", str(checkout), *younger], tiny, checkout)
    return found


def _knows(checkout: Path, name: str) -> bool:
    module = SCENARIOS[name].__module__.rpartition(".")[2]
    return (checkout / "bench" / "scenarios" / f"{module}.py").exists()


def _run(code: Code, arguments: Sequence[str], tiny: Path | None, measured: Path) -> list[Figure]:
    """Run the benchmark of `code` and return what it found.  measured: the checkout that is measured."""
    output = (tiny or code.root / ".local") / "bench.json"
    output.unlink(missing_ok=True)
    command = [code.python, "-m", "bench", *arguments, *(["--tiny", str(tiny)] if tiny else [])]
    process = Process("bench", command, LOG, cwd=code.root).start()
    try:
        exit_code = process.wait(LONGEST_SECONDS)
    finally:
        process.stop()
    if exit_code or not output.exists():
        raise DevstackError(f"The benchmark failed in {measured} ({LOG}): {process.last_line()}")
    return figures.read(output)


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
