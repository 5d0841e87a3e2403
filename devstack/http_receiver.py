"""The HTTP receiver of the demo, the tests, the benchmark and the soak: in a thread, or as a separate process.

Plain asyncio protocols with keep-alive and no parsing beyond need, so that it is never what limits a measurement.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import hashlib
import hmac
import json
import socket
import struct
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from devstack.processes import Process
from devstack.sockets import free_port
from devstack.waiting import wait_until

TOLERANCE_SECONDS = 300
HANG_SECONDS = 30.0
_CHUNK = b"x" * 16384


@dataclass(eq=False)
class Received:
    """One request: where, with what, from which port, and when (`monotonic` and `wall` seconds).

    status: what was returned for it, 0 if nothing was yet.  cut: the sender went away before.
    """

    path: str
    head: bytes
    body: bytes
    port: int
    monotonic: float
    wall: float
    status: int = 0
    cut: bool = False

    @cached_property
    def headers(self) -> dict[str, str]:
        """Return the headers, names in lower case."""
        lines = (line.partition(":") for line in self.head.decode("latin-1").split("\r\n")[1:])
        return {name.strip().lower(): value.strip() for name, _, value in lines}

    @cached_property
    def document(self) -> Any:
        """Return the body as JSON.  Raises ValueError."""
        return json.loads(self.body)


@dataclass(frozen=True)
class Response:
    """What to return, and after how many seconds.

    reset: reset the connection instead.  endless: go on sending the body until the sender has had enough.
    """

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b"ok"
    delay: float = 0.0
    reset: bool = False
    endless: bool = False

    @cached_property
    def raw(self) -> bytes:
        """Return the bytes of the response."""
        head = f"HTTP/1.1 {self.status} Answer\r\n"
        head += "" if self.endless else f"content-length: {len(self.body)}\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in self.headers.items())
        return head.encode("latin-1") + b"\r\n" + self.body


OK = Response()
Behavior = Callable[[Received, int], Response]


def always_ok(request: Received, number: int) -> Response:
    """Return 200 for everything."""
    return OK


def verify(secret: str, request: Received) -> bool:
    """Return whether a Standard Webhooks signature (`v1`) is right and its time within five minutes of the arrival."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    timestamp = request.headers.get("webhook-timestamp", "")
    if not timestamp.isdigit() or abs(request.wall - int(timestamp)) > TOLERANCE_SECONDS:
        return False
    signed = f"{request.headers.get('webhook-id', '')}.{timestamp}.".encode() + request.body
    expected = "v1," + base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()
    return any(hmac.compare_digest(expected, given) for given in request.headers.get("webhook-signature", "").split())


class _Connection(asyncio.Protocol):
    """One connection.  waiting: its requests without a response, each with the response and its timer."""

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self._buffer = b""
        self._port = 0
        self._flooding = False
        self.transport: asyncio.Transport | None = None
        self.waiting: dict[Received, tuple[Response, asyncio.TimerHandle | None]] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._port = transport.get_extra_info("peername")[1]
        self._receiver.connections += 1
        self._receiver.connected.add(self)

    def connection_lost(self, error: Exception | None) -> None:
        self._receiver.connected.discard(self)
        self.transport = None
        for request, (_, timer) in self.waiting.items():
            request.cut = True
            if timer is not None:
                timer.cancel()
        self.waiting.clear()

    def data_received(self, data: bytes) -> None:
        self._buffer = self._buffer + data if self._buffer else data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = self._buffer[:end]
            _, found, rest = head.lower().partition(b"\r\ncontent-length:")
            stop = end + 4 + (int(rest.split(b"\r\n", 1)[0]) if found else 0)
            if len(self._buffer) < stop:
                return
            body, self._buffer = self._buffer[end + 4 : stop], self._buffer[stop:]
            path = head.split(b" ", 2)[1].decode("latin-1")
            request = Received(path, head, body, self._port, time.monotonic(), time.time())
            self._receiver.take(self, request)

    def respond(self, request: Received, response: Response) -> None:
        """Return the response to a request, unless the sender is gone."""
        self.waiting.pop(request, None)
        if self.transport is None or self.transport.is_closing():
            request.cut = True
        elif response.reset:
            raw = self.transport.get_extra_info("socket")
            with contextlib.suppress(OSError):
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.transport.abort()
        else:
            request.status = response.status
            self.transport.write(response.raw)
            if response.endless:
                self.resume_writing()

    def pause_writing(self) -> None:
        self._flooding = False

    def resume_writing(self) -> None:
        self._flooding = True
        while self._flooding and self.transport is not None and not self.transport.is_closing():
            self.transport.write(_CHUNK)


class Receiver:
    """A receiver in a thread of this process; use as a context manager.

    behavior: decides each response from the request and its number on that path (from 1).  keep: whether
    requests are kept in `requests`; the count always is.
    """

    def __init__(
        self, behavior: Behavior = always_ok, *, host: str = "127.0.0.1", port: int = 0, keep: bool = True
    ) -> None:
        self.behavior = behavior
        self.host = host
        self.port = port
        self.keep = keep
        self.requests: list[Received] = []
        self.count = 0
        self.connections = 0
        self.connected: set[_Connection] = set()
        self._numbers: dict[str, int] = {}
        self._holding = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._ready = threading.Event()
        self._stop: asyncio.Event | None = None

    # --- from other threads ---------------------------------------------------------------------------

    def url(self, path: str = "/") -> str:
        """Return the receiver's URL for `path`."""
        return f"http://{self.host}:{self.port}{path}"

    def of(self, path: str) -> list[Received]:
        """Return the requests that came to `path`."""
        return [request for request in list(self.requests) if request.path == path]

    def wait_for(self, count: int, path: str | None = None, timeout: float = 30.0) -> list[Received]:
        """Wait until `count` requests came (to `path`) and return them.  Raises TimeoutError."""

        def found() -> list[Received]:
            return list(self.requests) if path is None else self.of(path)

        wait_until(lambda: len(found()) >= count, f"no {count} requests came to {path or 'the receiver'}", timeout)
        return found()

    def hold(self) -> None:
        """Return nothing until `release`."""
        self._holding = True

    def release(self) -> None:
        """Return what was held, and go on."""
        assert self._loop is not None
        self._holding = False
        self._loop.call_soon_threadsafe(self._respond_to_held)

    @property
    def unanswered(self) -> list[Received]:
        """Return the requests that wait for their response now."""
        return [request for connection in list(self.connected) for request in list(connection.waiting)]

    def start(self) -> None:
        """Listen; returns when the port is open."""
        self._thread = threading.Thread(target=lambda: asyncio.run(self.serve()), name="receiver", daemon=True)
        self._thread.start()
        if not self._ready.wait(10):
            raise RuntimeError("the receiver did not start")

    def stop(self) -> None:
        """Close every connection and stop listening."""
        if self._loop is not None and self._stop is not None and self._thread is not None:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(timeout=10)

    def __enter__(self) -> Receiver:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    # --- on the receiver's own loop -------------------------------------------------------------------

    async def serve(self) -> None:
        """Listen until `stop`, on the running loop."""
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        server = await self._loop.create_server(lambda: _Connection(self), self.host, self.port, backlog=1024)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()
        for connection in list(self.connected):
            if connection.transport is not None:
                connection.transport.abort()
        # The loop tells each connection of its end in the next round.
        await asyncio.sleep(0)

    def take(self, connection: _Connection, request: Received) -> None:
        """Count a request in and return its response, now or later."""
        number = self._numbers[request.path] = self._numbers.get(request.path, 0) + 1
        self.count += 1
        if self.keep:
            self.requests.append(request)
        response = self.behavior(request, number)
        if response.delay:
            assert self._loop is not None
            timer = self._loop.call_later(response.delay, self._respond, connection, request, response)
            connection.waiting[request] = (response, timer)
        else:
            self._respond(connection, request, response)

    def _respond(self, connection: _Connection, request: Received, response: Response) -> None:
        if self._holding:
            connection.waiting[request] = (response, None)
        else:
            connection.respond(request, response)

    def _respond_to_held(self) -> None:
        for connection in list(self.connected):
            for request, (response, timer) in list(connection.waiting.items()):
                if timer is None:
                    self._respond(connection, request, response)


# --- as a separate process ----------------------------------------------------------------------------

# Path, webhook id, and seconds since the epoch of a request that came.
Arrival = tuple[str, str, float]


class ReceiverProcess:
    """A receiver that shares no interpreter with who measures; use as a context manager.

    The path decides what a request gets: `/ok/…` 200 at once, `/slow/MS/…` 200 after MS milliseconds, `/hang/…`
    200 after 30 s, `/endless/…` a 200 whose body never ends.
    """

    def __init__(self, log: Path, host: str = "127.0.0.1") -> None:
        self.host = host
        self.port = free_port()
        command = [sys.executable, "-m", "devstack.http_receiver", "--host", host, "--port", str(self.port)]
        self._process = Process("receiver", command, log)

    def __enter__(self) -> ReceiverProcess:
        self._process.start().wait_for_url(self.url("/_count"))
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()

    def url(self, path: str) -> str:
        """Return the URL of `path`."""
        return f"http://{self.host}:{self.port}{path}"

    def _get(self, path: str) -> Any:
        with urllib.request.urlopen(self.url(path), timeout=30) as answer:
            return json.loads(answer.read())

    def count(self) -> int:
        """Return how many webhooks came so far."""
        return int(self._get("/_count"))

    def take(self) -> list[Arrival]:
        """Return what came since the last time."""
        return [(path, event_id, at) for path, event_id, at in self._get("/_taken")]


class _ByPath:
    """The process's behavior; `/_taken` and `/_count` tell what came."""

    def __init__(self) -> None:
        self._count = 0
        self._taken: list[Arrival] = []

    def __call__(self, request: Received, number: int) -> Response:
        _, kind, *rest = request.path.split("/")
        if kind == "_taken":
            taken, self._taken = self._taken, []
            return Response(body=json.dumps(taken).encode())
        if kind == "_count":
            return Response(body=str(self._count).encode())
        at = request.head.lower().find(b"webhook-id: ")
        self._count += 1
        self._taken.append((request.path, request.head[at + 12 : at + 48].decode() if at >= 0 else "", request.wall))
        if kind == "ok":
            return OK
        if kind == "endless":
            return Response(body=b"", endless=True)
        return Response(delay=float(rest[0]) / 1000 if kind == "slow" else HANG_SECONDS)


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    options = parser.parse_args()
    asyncio.run(Receiver(_ByPath(), host=options.host, port=options.port, keep=False).serve())


if __name__ == "__main__":
    main()
