"""What can be known about processes that may not be our children: alive or not, their arguments, their children."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterable
from pathlib import Path

from devstack.waiting import wait_until

_PROC = Path("/proc/self/stat").exists()


def alive(pid: int) -> bool:
    """Return whether the process runs; one that has ended but wasn't waited for does not."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)
    if _PROC:
        try:
            state = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0]
        except (OSError, IndexError):
            return False
        return state not in {"Z", "X"}
    shown = _ps(pid, "stat")
    return bool(shown) and not shown.startswith("Z")


def arguments(pid: int) -> list[str]:
    """Return the arguments that the process was started with; empty when it is gone."""
    if _PROC:
        try:
            return [os.fsdecode(part) for part in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0") if part]
        except OSError:
            return []
    return _ps(pid, "args").split(" ")


def children(pid: int) -> list[int]:
    """Return the process ids of the direct children."""
    if _PROC:
        found: list[int] = []
        for task in _tasks(pid):
            with contextlib.suppress(OSError, ValueError):
                found += [int(text) for text in (task / "children").read_text().split()]
        return found
    done = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False)
    return [int(text) for text in done.stdout.split()]


def in_group(leader: int) -> list[int]:
    """Return the process ids of a process group, of which the leader may be gone."""
    if _PROC:
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError, IndexError):
                    fields = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()
                    if int(fields[2]) == leader:
                        found.append(int(entry.name))
        return found
    done = subprocess.run(["pgrep", "-g", str(leader)], capture_output=True, text=True, check=False)
    return [int(text) for text in done.stdout.split()]


def wait_until_gone(pids: Iterable[int], seconds: float) -> bool:
    """Wait until none of the processes runs.  False when one still does after `seconds`."""
    watched = list(pids)
    with contextlib.suppress(TimeoutError):
        return wait_until(lambda: not any(alive(pid) for pid in watched), timeout=seconds)
    return False


def _tasks(pid: int) -> list[Path]:
    try:
        return list(Path(f"/proc/{pid}/task").iterdir())
    except OSError:
        return []


def _ps(pid: int, column: str) -> str:
    done = subprocess.run(["ps", "-o", f"{column}=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return done.stdout.strip()
