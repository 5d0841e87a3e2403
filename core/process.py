"""What a process that sends webhooks asks of the system and of the interpreter."""

from __future__ import annotations

import contextlib
import os
import resource
import sys
from pathlib import Path

from core import garbage_collection

# A tenth of the usual share where the processors don't suffice for all, as nice(2) has it.
NICENESS = 10


def prepare(sockets: int) -> None:
    """Make the process ready for up to `sockets` requests at a time.  Call it before any thread is started."""
    _raise_file_limit(sockets * 2 + 256)
    # Threads share the interpreter: a shorter turn keeps the event loop prompt beside a busy thread.
    sys.setswitchinterval(0.001)
    garbage_collection.settle()


def lower_priority() -> None:
    """Let others have the processor first when they want it; what nobody else wants is had as ever.

    For a process that leads a session of its own. By default Linux shares the processors out between sessions
    and only then looks at the niceness within each (sched(7), "The autogroup feature").
    """
    os.nice(NICENESS)
    with contextlib.suppress(OSError):  # not on this system, or switched off
        Path("/proc/self/autogroup").write_text(str(NICENESS))


def _raise_file_limit(wanted: int) -> None:
    """Allow as many open files as the system lets us: each request in flight is a socket."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
