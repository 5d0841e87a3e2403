"""What a run leaves: its result as JSON, the promises that were broken, and the exit status."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def write(result: Mapping[str, Any], path: Path) -> None:
    """Write the result as JSON."""
    path.write_text(json.dumps(result, indent=2) + "\n")


def conclude(violations: Sequence[str], path: Path) -> int:
    """Print each promise that was broken and where the result is; return the exit status."""
    for violation in violations:
        print(f"\nBROKEN  {violation}")
    print(f"\n{'A promise was broken' if violations else 'Every promise was kept'}; {path}")
    return 1 if violations else 0
