"""`python -m bench [SCENARIO …]`: run scenarios, print one table, write .local/bench.json."""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from pathlib import Path

from bench import against, figures, scale
from bench.figures import Figure
from bench.scenarios import SCENARIOS, history
from bench.stack import HOME, BenchStack
from devstack.errors import DevstackError
from devstack.processes import OURS, ROOT
from devstack.stack import stop_on_signals

OUTPUT = HOME.parent / "bench.json"
PAGE = ROOT / "docs" / "performance.md"


def main() -> int:
    """Return the exit code: 0 when every scenario ran, whether or not it reached its targets."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure the system, scenario by scenario.")
    parser.add_argument("scenario", nargs="*", help="which ones; all when none is named")
    parser.add_argument("--list", action="store_true", help="name the scenarios and stop")
    parser.add_argument(
        "--page", type=Path, nargs="?", const=PAGE, help=f"put the last table into this page ({PAGE.name}) and stop"
    )
    parser.add_argument("--tiny", type=Path, metavar="HOME", help="run at a tiny scale, everything under this folder")
    parser.add_argument("--against", type=Path, metavar="CHECKOUT", help="compare with the code of another checkout")
    parser.add_argument(
        "--programs", type=Path, metavar="CHECKOUT", help="measure the web process and worker of another checkout"
    )
    parser.add_argument("--rounds", type=int, default=3, help="with --against: how often each of the two runs (3)")
    parser.add_argument("--rows", type=int, help=f"how many deliveries `history` makes ({history.ROWS:,})")
    parser.add_argument("--filled", action="store_true", help="`history`: measure what its last run has filled")
    options = parser.parse_args()
    if options.list:
        for name, scenario in SCENARIOS.items():
            print(f"{name:12} {(scenario.__doc__ or '').strip().splitlines()[0]}")
        return 0
    output = OUTPUT if options.tiny is None else options.tiny / "bench.json"
    if options.page:
        figures.put_into_page(figures.read(output), options.page)
        return 0
    unknown = [name for name in options.scenario if name not in SCENARIOS]
    if unknown:
        print(f"There is no scenario {', '.join(unknown)}; there are {', '.join(SCENARIOS)}.", file=sys.stderr)
        return 2
    chosen = options.scenario or list(SCENARIOS)
    for option, checkout in (("--against (AGAINST)", options.against), ("--programs", options.programs)):
        if checkout is not None and not (checkout / "bench" / "__main__.py").is_file():
            print(f"{option}: {checkout} is not a checkout; make one with git worktree.", file=sys.stderr)
            return 2
    if options.against is not None:
        return compare_with(options.against.absolute(), chosen, options.rounds, options.tiny)
    code, name = OURS, "bench"
    if options.programs is not None:
        code, name = against.code_of(options.programs.absolute()), "bench-programs"
    if options.tiny is not None:
        scale.shrink()
    history.ROWS = options.rows or history.ROWS
    history.IS_FILLED = options.filled
    if options.tiny is None:
        return run(chosen, BenchStack(HOME.with_name(name), code), output)
    stack = BenchStack(options.tiny / name, code)
    try:
        return run(chosen, stack, output)
    finally:
        stack.postgres.destroy()  # its data may lie outside the folder


def compare_with(other: Path, names: list[str], rounds: int, tiny: Path | None) -> int:
    """Print how this checkout does against the other one."""
    stop_on_signals()
    try:
        print(against.compare(names, other, rounds, tiny))
    except DevstackError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def run(names: list[str], stack: BenchStack, output: Path) -> int:
    """Run the scenarios one after the other; one that breaks doesn't keep the others from running."""
    found: list[Figure] = []
    broken = 0
    stop_on_signals()
    try:
        stack.start()
        for name in names:
            started = time.monotonic()
            print(f"{name} …", end=" ", file=sys.stderr, flush=True)
            if name != "history" or not history.IS_FILLED:
                stack.reset()
            try:
                found += SCENARIOS[name](stack)
            except Exception:
                broken += 1
                print("broke:", file=sys.stderr)
                traceback.print_exc()
            print(f"{time.monotonic() - started:.0f} s", file=sys.stderr)
            figures.write(found, output)
    except DevstackError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130
    finally:
        stack.stop()
        if found:
            print(figures.table(found))
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
