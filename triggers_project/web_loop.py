"""The event loop of a web process: uvloop, except that the processes share new connections evenly.

All web processes listen on one socket.  asyncio and uvloop accept whatever waits there at once, so that the process
that wakes up first gets every connection of a client or proxy that opens several, and the other processes idle as long
as those are kept.  Here a process accepts one connection at a time, and leaves it to others that have fewer.
"""

from __future__ import annotations

import asyncio
import errno
import mmap
import socket
from collections.abc import Callable
from ssl import SSLContext
from typing import Any

import uvloop

# A process that has fewer connections may be busy: how long the others leave a new one to it, in steps of about 1 ms.
MOST_STEPS = 3
STEP_SECONDS = 0.001
# How long to leave the socket alone when the process or the system has no file descriptors or buffers left.
EXHAUSTED_SECONDS = 1.0
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class ConnectionCounts:
    """How many connections each web process has, in memory that gunicorn's processes share.

    Made in gunicorn's master; its workers inherit it.  Each of them writes only its own place, so that nothing needs a
    lock; what is read may be a moment old.
    """

    PLACES = 256  # a worker whose number is as much higher than another's would share its place

    def __init__(self) -> None:
        # 0 is a place whose process accepts nothing; else the number of connections and one.
        self._places = memoryview(mmap.mmap(-1, 4 * self.PLACES)).cast("i")
        self._own = 0

    def choose_place(self, age: int) -> None:
        """Choose the place of this process.  age: gunicorn's number of the worker."""
        self._own = age % self.PLACES

    def join(self) -> None:
        """Say that this process accepts connections from now on, and has none."""
        self._places[self._own] = 1

    def stop(self) -> None:
        """Say that this process accepts no more connections."""
        self._places[self._own] = 0

    def leave(self, age: int) -> None:
        """Say that a worker, however it ended, accepts no more."""
        self._places[age % self.PLACES] = 0

    def add(self, connections: int) -> None:
        """Count connections of this process that begin, or, below zero, that end."""
        self._places[self._own] += connections

    def another_has_fewer(self) -> bool:
        """Return whether another process has fewer connections than this one."""
        own = self._places[self._own]
        return any(0 < place < own for place in self._places.tolist())


counts = ConnectionCounts()


class SharedListener:
    """Accepts connections from a listening socket that other processes listen on, too."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        protocol_factory: Callable[[], asyncio.Protocol],
        sock: socket.socket,
        tls: SSLContext | None,
    ) -> None:
        self._loop = loop
        self._protocol_factory = protocol_factory
        self._socket = sock
        self._tls = tls
        self._is_closed = False
        self._steps = 0
        self._connecting: set[asyncio.Task[Any]] = set()
        sock.setblocking(False)
        counts.join()
        self._watch()

    def close(self) -> None:
        """Stop accepting.  The socket stays open."""
        if not self._is_closed:
            self._is_closed = True
            counts.stop()
            self._loop.remove_reader(self._socket)

    async def wait_closed(self) -> None:
        """Wait until the connections that were accepted last are served by their protocols."""
        if self._connecting:
            await asyncio.wait(self._connecting)

    def _watch(self) -> None:
        if not self._is_closed:
            self._loop.add_reader(self._socket, self._accept_if_its_turn)

    def _pause(self, seconds: float) -> None:
        self._loop.remove_reader(self._socket)
        self._loop.call_later(seconds, self._watch)

    def _accept_if_its_turn(self) -> None:
        if self._steps < MOST_STEPS and counts.another_has_fewer():
            self._steps += 1
            self._pause(STEP_SECONDS)
            return
        self._steps = 0
        try:
            connection, _ = self._socket.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return  # another process has it, or the client is gone
        except OSError as error:
            if error.errno not in _EXHAUSTED:
                raise
            self._pause(EXHAUSTED_SECONDS)
            return
        connection.setblocking(False)
        counts.add(1)
        task = self._loop.create_task(self._serve(connection))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _serve(self, connection: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._protocol_factory, connection, ssl=self._tls)
        except OSError:  # the client is gone, or doesn't speak TLS
            counts.add(-1)


class WebLoop(uvloop.Loop):
    """uvloop's loop; `create_server` serves one socket, which gunicorn's master has made."""

    async def create_server(  # type: ignore[override]
        self,
        protocol_factory: Callable[[], asyncio.Protocol],
        *,
        sock: socket.socket,
        ssl: SSLContext | None = None,
        backlog: int = 0,
    ) -> SharedListener:
        """Start accepting connections from `sock`.  backlog: not used; the socket listens already."""
        return SharedListener(self, protocol_factory, sock, ssl)
