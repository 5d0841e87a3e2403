"""Log files of servers and processes."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import BinaryIO

LARGEST_BYTES = 10 * 1024 * 1024


def open_log(path: Path) -> BinaryIO:
    """Open a log file for appending, readable for its owner only.

    A file that has grown large is put aside as `<name>.1`, in the place of the one before.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        if path.stat().st_size > LARGEST_BYTES:
            path.replace(path.with_name(f"{path.name}.1"))
    path.touch(mode=0o600)
    return path.open("ab")
