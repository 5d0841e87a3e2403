"""Restarts what was killed, as systemd or compose would, or tells what has ended."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from devstack import pids
from devstack.errors import last_line_of
from devstack.processes import Process

LOOK_SECONDS = 0.05
# What is left of a service whose main process died gets SIGTERM, and after this long SIGKILL.
LEFTOVER_SECONDS = 5.0
RESTART_SECONDS = 0.2


class Child(Protocol):
    """A process or a server.  returncode: None while it lives, and where another process had started it."""

    @property
    def name(self) -> str: ...
    @property
    def log(self) -> Path: ...
    @property
    def alive(self) -> bool: ...
    @property
    def returncode(self) -> int | None: ...


def how_it_ended(child: Child) -> str:
    """Return in one line which child has ended, how, and where its log is."""
    code = child.returncode
    if code is None:
        how = ""
    elif code < 0:
        how = f" (killed by {signal.Signals(-code).name})"
    else:
        how = f" (exit status {code})"
    return f"{child.name} has ended{how}. The last line of its log, {child.log}: {last_line_of(child.log)}"


class Supervised:
    """A process that is started again whenever it ends.  make: returns it, not started yet."""

    def __init__(self, make: Callable[[], Process]) -> None:
        self._make = make
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="supervisor", daemon=True)
        self.process = make()
        self.restarts = 0

    @property
    def pid(self) -> int:
        """Return the process id of the one that runs, or ran last."""
        return self.process.pid

    @property
    def alive(self) -> bool:
        """Return whether the process lives at the moment."""
        return self.process.alive

    def start(self) -> Supervised:
        """Start the process and the watch over it."""
        self.process.start()
        self._thread.start()
        return self

    def stop(self, timeout: float = 20.0) -> int | None:
        """End the watch and the process; return the exit code."""
        self.unwatch()
        code = self.process.stop(timeout)
        _end_group(self.process.pid)
        return code

    def unwatch(self) -> None:
        """Start the process no more."""
        self._stopping.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stopping.wait(LOOK_SECONDS):
            if self.process.alive:
                continue
            _end_group(self.process.pid)
            if self._stopping.wait(RESTART_SECONDS):
                return
            self.restarts += 1
            self.process = self._make().start()


def _end_group(leader: int) -> None:
    """End the processes that a dead one left behind in its session."""
    ends = time.monotonic() + LEFTOVER_SECONDS
    how = signal.SIGTERM
    while True:
        left = [pid for pid in pids.in_group(leader) if pids.alive(pid)]
        if not left:
            return
        if time.monotonic() >= ends:
            how = signal.SIGKILL
        with contextlib.suppress(ProcessLookupError):
            os.killpg(leader, how)
        time.sleep(0.05)
