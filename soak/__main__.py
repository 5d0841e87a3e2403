"""`make soak`: SOAK_ROUNDS rounds (20), in the order that SOAK_SEED (1) decides; SOAK_PGBOUNCER=1 puts one between."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from pathlib import Path

from devstack.errors import DevstackError
from devstack.processes import ROOT
from devstack.stack import Stack, forget_settings_of_the_shell, stop_on_signals
from soak.result import conclude, write

# Short leases keep rounds short: what a killed worker held is taken back after six seconds.
SETTINGS = {
    "DELIVERY_TIMEOUT": "2s",
    "LEASE_MARGIN": "8s",
    "DELIVERY_RETRY_SCHEDULE": "0s," + ",".join(["500ms"] * 30),
    "BREAKER_BASE_DELAY": "200ms",
    "BREAKER_MAX_DELAY": "1s",
    "WORKER_SHUTDOWN_GRACE": "5s",
    "DB_POOL_TIMEOUT": "5s",
    "WEB_THREADS": "4",
    "GUNICORN_LOG_LEVEL": "warning",
}
# Each round begins when the load has gone on for a moment since the last one.
QUIET_SECONDS = (1.0, 4.0)
SHORT_QUIET_SECONDS = (0.5, 1.0)
SHORT_PACE = 0.4


def main() -> int:
    """Run the soak, print its table, write its result; 1 when a promise was broken.

    Read the arguments and plan the rounds, start the servers, run the rounds one after another, stop the servers
    whatever came of them, and write and print the result.
    """
    parser = argparse.ArgumentParser(prog="python -m soak", description="Hurt the system, and check what was promised.")
    parser.add_argument("round", nargs="*", help="a round's faults, such as WorkerClaiming or WorkerSending+WebMaster")
    parser.add_argument("--list", action="store_true", help="print the faults of each round that would run and stop")
    parser.add_argument("--short", action="store_true", help="wait less between the rounds, and post less")
    parser.add_argument("--home", type=Path, default=ROOT / ".local", help="the folder of the servers and the result")
    options = parser.parse_args()
    try:
        rounds, seed = int(os.environ.get("SOAK_ROUNDS", "20")), int(os.environ.get("SOAK_SEED", "1"))
    except ValueError:
        print("SOAK_ROUNDS and SOAK_SEED are whole numbers.", file=sys.stderr)
        return 2
    forget_settings_of_the_shell()
    stop_on_signals()
    stack = Stack(options.home / "soak", SETTINGS, pooled=os.environ.get("SOAK_PGBOUNCER", "") not in {"", "0"})
    # The faults know statements of the product, whose modules can't be imported before.
    stack.set_django_up()
    from soak.faults import named, plan
    from soak.run import Soak

    try:
        planned = [named(text) for text in options.round] or plan(rounds, seed)
    except KeyError as error:
        print(f"There is no fault {error}.", file=sys.stderr)
        return 2
    if options.list:
        for together in planned:
            print("+".join(fault.__name__ for fault in together))
        return 0
    try:
        stack.start()
        stack.empty()
        print(f"{len(planned)} rounds, SOAK_SEED={seed}\n")
        print(f"{'':>3}  {'fault':<75} {'in flight':>9} {'accepted':>9} {'recovered':>9}")
        load = (SHORT_QUIET_SECONDS, SHORT_PACE) if options.short else (QUIET_SECONDS, 1.0)
        outcome = Soak(stack, seed, lambda line: print(line, flush=True), *load).run(planned)
    except DevstackError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except Exception:
        traceback.print_exc()
        return 1
    finally:
        stack.stop()
    result = outcome.as_json()
    path = options.home / "soak.json"
    write(result, path)
    print()
    for name, value in result.items():
        if name not in {"table", "violations"}:
            print(f"{name.replace('_', ' '):<32} {value}")
    return conclude(outcome.report.violations, path)


if __name__ == "__main__":
    sys.exit(main())
