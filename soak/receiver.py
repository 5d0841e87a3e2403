"""The subscriptions' receiver: it knows what it answered in full, and what was cut off before it could."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
import struct
import threading
from dataclasses import dataclass, field
from enum import StrEnum
from time import time
from typing import Any

from devstack.receiver import verify


class Kind(StrEnum):
    """How a subscription's receiver behaves."""

    STEADY = "steady"  # answers at once
    SLOW = "slow"  # takes up to a third of a second
    FLAKY = "flaky"  # 500s, resets, and answers that never come


@dataclass(slots=True)
class Taken:
    """One request that came.

    answered: a 200 was written.  refused: a 500 was.  cut: the sender went away before an answer.
    """

    path: str
    webhook_id: str
    token: str
    verified: bool
    answered: bool = False
    refused: bool = False
    cut: bool = False


@dataclass
class _Open:
    """A request that has no answer yet."""

    taken: Taken
    connection: _Connection
    status: int
    timer: asyncio.TimerHandle | None = field(default=None)


class _Connection(asyncio.Protocol):
    def __init__(self, receiver: SoakReceiver) -> None:
        self._receiver = receiver
        self._buffer = b""
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        self._receiver.lost(self)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = self._buffer[:end].decode("latin-1").split("\r\n")
            headers = {}
            for line in head[1:]:
                name, _, value = line.partition(":")
                headers[name.strip().lower()] = value.strip()
            length = int(headers.get("content-length", "0"))
            if len(self._buffer) < end + 4 + length:
                return
            body = self._buffer[end + 4 : end + 4 + length]
            self._buffer = self._buffer[end + 4 + length :]
            self._receiver.took(self, head[0].split(" ")[1], headers, body)


class SoakReceiver:
    """Listens on a port of its own in a thread.

    secrets: signing secret by path; kinds: behavior by path.  seed: decides what the flaky one does.
    """

    def __init__(self, seed: int) -> None:
        self.secrets: dict[str, str] = {}
        self.kinds: dict[str, Kind] = {}
        self.taken: list[Taken] = []
        self.port = 0
        self._seed = seed
        self._tries: dict[tuple[str, str], int] = {}
        self._open: dict[int, _Open] = {}
        self._holding = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ready = threading.Event()
        self._stop: asyncio.Event | None = None
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="receiver", daemon=True)

    # --- from other threads ---------------------------------------------------------------------------

    def start(self) -> None:
        """Listen; returns when the port is open."""
        self._thread.start()
        if not self._ready.wait(10):
            raise RuntimeError("the receiver did not start")

    def stop(self) -> None:
        """Stop listening."""
        if self._loop is not None and self._stop is not None:
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(10)

    def url(self, path: str) -> str:
        """Return the URL of a path."""
        return f"http://127.0.0.1:{self.port}{path}"

    def hold(self) -> None:
        """Answer nothing until `release`."""
        self._holding = True

    def release(self) -> None:
        """Answer what was held, and go on."""
        assert self._loop is not None
        self._holding = False
        self._loop.call_soon_threadsafe(self._answer_held)

    @property
    def unanswered(self) -> list[tuple[int, Taken]]:
        """Return the requests that wait for an answer now, each with its sender's port."""
        found = []
        for waiting in list(self._open.values()):
            transport = waiting.connection.transport
            if transport is not None and not transport.is_closing():
                found.append((transport.get_extra_info("peername")[1], waiting.taken))
        return found

    # --- on the receiver's own loop -------------------------------------------------------------------

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        server = await self._loop.create_server(lambda: _Connection(self), "127.0.0.1", 0, backlog=1024)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()

    def took(self, connection: _Connection, path: str, headers: dict[str, str], body: bytes) -> None:
        """Note a request and answer it as its path's kind does."""
        token = _token(body)
        webhook_id = headers.get("webhook-id", "")
        verified = path in self.secrets and verify(self.secrets[path], headers, body, time())
        taken = Taken(path, webhook_id, token, verified)
        self.taken.append(taken)
        number = self._tries[path, webhook_id] = self._tries.get((path, webhook_id), 0) + 1
        kind = self.kinds.get(path, Kind.STEADY)
        chance = random.Random(f"{self._seed} {path} {token} {number}").random()
        waiting = _Open(taken, connection, 200)
        delay = 0.0
        if kind is Kind.SLOW:
            delay = chance / 3
        elif kind is Kind.FLAKY and chance < 0.10:
            waiting.status = 500
        elif kind is Kind.FLAKY and chance < 0.14:
            self._reset(connection)
            return
        elif kind is Kind.FLAKY and chance < 0.155:
            return  # hangs until the sender gives up
        self._open[id(waiting)] = waiting
        if self._holding:
            return
        if delay:
            waiting.timer = asyncio.get_running_loop().call_later(delay, self._answer, waiting)
        else:
            self._answer(waiting)

    def lost(self, connection: _Connection) -> None:
        """Note that a connection ended; what it still waited for was cut off."""
        for key, waiting in list(self._open.items()):
            if waiting.connection is connection:
                waiting.taken.cut = True
                if waiting.timer is not None:
                    waiting.timer.cancel()
                del self._open[key]

    def _answer_held(self) -> None:
        for waiting in list(self._open.values()):
            if waiting.timer is None:
                self._answer(waiting)

    def _answer(self, waiting: _Open) -> None:
        self._open.pop(id(waiting), None)
        transport = waiting.connection.transport
        if transport is None or transport.is_closing():
            waiting.taken.cut = True
            return
        waiting.taken.answered = waiting.status == 200
        waiting.taken.refused = waiting.status == 500
        transport.write(f"HTTP/1.1 {waiting.status} Answer\r\ncontent-length: 2\r\n\r\nok".encode())

    @staticmethod
    def _reset(connection: _Connection) -> None:
        assert connection.transport is not None
        raw = connection.transport.get_extra_info("socket")
        with contextlib.suppress(OSError):
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.transport.abort()


def _token(body: bytes) -> str:
    try:
        data: Any = json.loads(body)["data"]
        return str(data["token"])
    except (ValueError, KeyError, TypeError):
        return ""
