"""A process whose machine has the wrong date, through libfaketime; its monotonic clock is left alone."""

from __future__ import annotations

import ctypes
import importlib.util
from pathlib import Path

from devstack.errors import DevstackError

RIGHT = "+0"


def _library() -> Path:
    spec = importlib.util.find_spec("libfaketime")  # found, never imported: it would patch this process
    if spec is None or not spec.submodule_search_locations:
        raise DevstackError("The package libfaketime is not installed; `make` installs what is needed.")
    library = Path(next(iter(spec.submodule_search_locations)), "vendor/libfaketime/src/libfaketime.so.1")
    try:
        ctypes.CDLL(str(library))
    except OSError as error:
        raise DevstackError(f"libfaketime can't be loaded on this machine: {error}") from error
    return library


class Clock:
    """The date of one process, which may be changed while it runs.  home: the stack's folder."""

    def __init__(self, home: Path) -> None:
        self._file = home / "clock"

    def environment(self) -> dict[str, str]:
        """Return what a process needs in its environment to have this date.  Raises DevstackError."""
        self.set(RIGHT)
        return {
            "LD_PRELOAD": str(_library()),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_CACHE_DURATION": "1",  # seconds until a change is noticed
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "DONT_FAKE_MONOTONIC": "1",
        }

    def set(self, offset: str) -> None:
        """Put the date off by `offset`, such as `+1h` or `-1h`."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        new = self._file.with_name(f"{self._file.name}.new")
        new.write_text(f"{offset}\n")
        new.replace(self._file)
