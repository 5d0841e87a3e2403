"""What a process that sends webhooks asks of the system and of the interpreter."""

from __future__ import annotations

import resource
import sys

from core import memory


def prepare(sockets: int) -> None:
    """Make the process ready for up to `sockets` requests at a time.  Call it before any thread is started."""
    _raise_file_limit(sockets * 2 + 256)
    # Threads share the interpreter: a shorter turn keeps the event loop prompt beside a busy thread.
    sys.setswitchinterval(0.001)
    memory.settle()


def _raise_file_limit(wanted: int) -> None:
    """Allow as many open files as the system lets us: each request in flight is a socket."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
