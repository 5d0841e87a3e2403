"""`python -m bench [SCENARIO …]`: run scenarios, print one table, write .local/bench.json."""

from __future__ import annotations

import argparse
import sys
import time

from bench import figures
from bench.figures import Figure
from bench.scenarios import SCENARIOS
from bench.stack import HOME, Stack, stop_on_signals
from devstack.errors import DevstackError

OUTPUT = HOME.parent / "bench.json"


def main() -> int:
    """Return the exit code: 0 when every scenario ran, reached or not."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure the system, scenario by scenario.")
    parser.add_argument("scenario", nargs="*", help="which ones; all when none is named")
    parser.add_argument("--list", action="store_true", help="name the scenarios and stop")
    options = parser.parse_args()
    if options.list:
        for name, scenario in SCENARIOS.items():
            print(f"{name:12} {(scenario.__doc__ or '').strip().splitlines()[0]}")
        return 0
    unknown = [name for name in options.scenario if name not in SCENARIOS]
    if unknown:
        print(f"There is no scenario {', '.join(unknown)}; there are {', '.join(SCENARIOS)}.", file=sys.stderr)
        return 2
    found: list[Figure] = []
    stack = Stack()
    stop_on_signals()
    try:
        stack.start()
        for name in options.scenario or SCENARIOS:
            started = time.monotonic()
            print(f"{name} …", end=" ", file=sys.stderr, flush=True)
            stack.reset()
            found += SCENARIOS[name](stack)
            print(f"{time.monotonic() - started:.0f} s", file=sys.stderr)
            figures.write(found, OUTPUT)
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
    return 0


if __name__ == "__main__":
    sys.exit(main())
