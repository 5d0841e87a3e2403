"""Runs the benchmark of the checkout in the current folder with those of our scenarios that it doesn't have yet.

`python bench/lend.py FILE:FUNCTION=NAME … -- ARGUMENTS`; `bench.against` calls it.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any


def main() -> int:
    """Add the scenarios to the other checkout's, and run its benchmark."""
    sys.path[0] = str(Path.cwd())
    from bench import __main__ as bench
    from bench.scenarios import SCENARIOS

    split = sys.argv.index("--")
    for lent in sys.argv[1:split]:
        place, _, name = lent.partition("=")
        file, _, function = place.rpartition(":")
        spec = importlib.util.spec_from_file_location(f"lent_{function}", file)
        if spec is None or spec.loader is None:
            raise SystemExit(f"{file} can't be loaded")
        module: Any = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        SCENARIOS.setdefault(name, getattr(module, function))
    sys.argv = ["bench", *sys.argv[split + 1 :]]
    return bench.main()


if __name__ == "__main__":
    sys.exit(main())
