"""`make soak`: SOAK_ROUNDS rounds (20), in the order that SOAK_SEED (1) decides."""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from pathlib import Path

from devstack.errors import DevstackError
from devstack.processes import ROOT
from soak.stack import Stack

HOME = Path(os.environ.get("SOAK_HOME", ROOT / ".local"))
RESULT = HOME / "soak.json"


def main() -> int:
    """Run the soak, print its table, write its result; 1 when a promise was broken."""
    try:
        rounds, seed = int(os.environ.get("SOAK_ROUNDS", "20")), int(os.environ.get("SOAK_SEED", "1"))
    except ValueError:
        print("SOAK_ROUNDS and SOAK_SEED are whole numbers.", file=sys.stderr)
        return 2
    _forget_settings_of_the_shell()
    signal.signal(signal.SIGTERM, _end)
    stack = Stack(HOME / "soak")
    try:
        stack.start()
        stack.set_django_up()
        # The faults know the statements of the product, whose modules need Django to be set up.
        from soak.faults import plan
        from soak.run import SETTINGS, Soak

        stack.env.update(SETTINGS)
        print(f"{rounds} rounds, SOAK_SEED={seed}\n")
        print(f"{'':>3}  {'fault':<75} {'in flight':>9} {'accepted':>9} {'recovered':>9}")
        outcome = Soak(stack, seed, lambda line: print(line, flush=True)).run(plan(rounds, seed))
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
    RESULT.write_text(json.dumps(result, indent=2) + "\n")
    print()
    for name, value in result.items():
        if name not in {"table", "violations"}:
            print(f"{name.replace('_', ' '):<32} {value}")
    for violation in outcome.verdict.violations:
        print(f"\nBROKEN  {violation}")
    print(f"\n{'A promise was broken' if outcome.verdict.violations else 'Every promise was kept'}; {RESULT}")
    return 1 if outcome.verdict.violations else 0


def _forget_settings_of_the_shell() -> None:
    """A setting of the shell must not change what is tested."""
    from triggers_project.options import OPTIONS

    for option in OPTIONS:
        os.environ.pop(option.name, None)


def _end(signum: int, frame: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
