"""How several web processes share the connections of the clients."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from pathlib import Path

import pytest

from devstack.pids import children
from devstack.stack import Stack
from devstack.waiting import wait_until
from tests.system import log_of

pytestmark = pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="counts sockets in Linux's /proc")


def _connections(pid: int, port: int) -> int:
    """Return how many established connections to `port` a process has."""
    established = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[1].endswith(f":{port:04X}") and fields[3] == "01":
            established.add(f"socket:[{fields[9]}]")
    found = 0
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            found += os.readlink(entry) in established
    return found


def assert_even(shares: list[int]) -> None:
    """Check that no process has twice as many connections as another; without sharing, one has nearly all of them."""
    assert max(shares) <= 2 * min(shares), shares


@pytest.mark.slow
def test_the_processes_have_the_same_number_of_connections(stack: Stack) -> None:
    stack.start_web(workers=3)
    port, master = int(stack.url.rpartition(":")[2]), stack.web.process.pid
    wait_until(lambda: len(children(master)) == 3, "no three processes")

    def shares() -> list[int]:
        return sorted(_connections(pid, port) for pid in children(master))

    with contextlib.ExitStack() as clients:

        def connect(number: int) -> None:
            wanted = sum(shares()) + number
            for _ in range(number):
                clients.enter_context(socket.create_connection(("127.0.0.1", port), timeout=30))
            wait_until(lambda: sum(shares()) == wanted, "not all connections were accepted")

        def all_accept() -> bool:
            connect(1)
            return min(shares()) > 0

        wait_until(all_accept, "a process accepts nothing", pause=0.1)
        begun = max(shares())
        connect(2 * begun + 30)  # what those had that started first, and 30 that are to be shared
        assert_even(shares())

        victim = children(master)[0]
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: victim not in children(master) and len(children(master)) == 3, "it wasn't replaced")
        wait_until(all_accept, "the new process accepts nothing", pause=0.1)
        missing = max(shares()) - min(shares())
        connect(missing)
        assert_even(shares())
    stack.web.process.stop()
    assert "Traceback" not in log_of(stack, "web")
