"""How a process that sends webhooks sets up the operating system and the interpreter."""

from __future__ import annotations

import contextlib
import os
import resource
import sys
from pathlib import Path
from typing import NamedTuple

from core.garbage_collection import freeze_gc

# On a saturated machine this leaves a process about a tenth of the usual share; see sched(7).
NICENESS = 10


def prepare(sockets: int) -> None:
    """Set the process up for `sockets` concurrent requests.  Call it before any thread is started."""
    _raise_file_limit(sockets * 2 + 256)
    # Threads share the interpreter: switching more often keeps the event loop responsive beside a busy thread.
    sys.setswitchinterval(0.001)
    freeze_gc()


def lower_priority() -> None:
    """Leave the processor to other processes that want it; an idle machine is used as fully as before.

    For a process that leads its session.  By default Linux divides the processors between sessions first and applies
    the niceness only within each (sched(7), "The autogroup feature").
    """
    os.nice(NICENESS)
    with contextlib.suppress(OSError):  # unsupported here, or switched off
        Path("/proc/self/autogroup").write_text(str(NICENESS))


class ProcessorTime(NamedTuple):
    """How long all threads of this process have run, and how long they have waited for a processor, in seconds."""

    ran: float
    waited: float


def processor_time() -> ProcessorTime | None:
    """Return how long the threads of this process have run and waited; None where the system doesn't say.

    From Linux' /proc/self/task/*/schedstat (Documentation/scheduler/sched-stats.rst).  Threads that have ended aren't
    counted.
    """
    ran = waited = 0
    try:
        for name in os.listdir("/proc/self/task"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
                numbers = Path(f"/proc/self/task/{name}/schedstat").read_text().split()
                ran, waited = ran + int(numbers[0]), waited + int(numbers[1])
    except OSError:
        return None
    return ProcessorTime(ran / 1e9, waited / 1e9) if ran else None


def _raise_file_limit(wanted: int) -> None:
    """Raise the soft limit on open files to `wanted`, or as far as the hard limit allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
