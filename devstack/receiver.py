"""A webhook receiver: for the demo, the tests, the benchmarks and the soak.

Plain asyncio protocols with keep-alive, so that it is never what limits a measurement.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import hashlib
import hmac
import json
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

TOLERANCE_SECONDS = 300


@dataclass(frozen=True)
class Received:
    """One request: where, with what, and when (`monotonic` and `wall` seconds)."""

    path: str
    headers: dict[str, str]
    body: bytes
    monotonic: float
    wall: float


@dataclass(frozen=True)
class Response:
    """What to answer, and after how many seconds."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b"ok"
    delay: float = 0.0


Behavior = Callable[[Received, int], Response]


def always_ok(request: Received, number: int) -> Response:
    """Answer 200 to everything."""
    return Response()


def verify(secret: str, headers: Mapping[str, str], body: bytes, now: float) -> bool:
    """Tell whether a Standard Webhooks signature (`v1`) is right and its time within five minutes."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    timestamp = headers.get("webhook-timestamp", "")
    if not timestamp.isdigit() or abs(now - int(timestamp)) > TOLERANCE_SECONDS:
        return False
    signed = f"{headers.get('webhook-id', '')}.{timestamp}.".encode() + body
    expected = "v1," + base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()
    return any(hmac.compare_digest(expected, given) for given in headers.get("webhook-signature", "").split())


class _Connection(asyncio.Protocol):
    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self._buffer = b""
        self._transport: asyncio.Transport | None = None
        self._waiting: set[asyncio.TimerHandle] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._receiver.connections += 1
        self._receiver.connected.add(transport)

    def connection_lost(self, error: Exception | None) -> None:
        if self._transport is not None:
            self._receiver.connected.discard(self._transport)
        for handle in self._waiting:
            handle.cancel()

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
            self._answer(Received(head[0].split(" ")[1], headers, body, time.monotonic(), time.time()))

    def _answer(self, request: Received) -> None:
        response = self._receiver.handle(request)
        if not response.delay:
            self._write(response)
            return
        handle = asyncio.get_running_loop().call_later(response.delay, self._write, response)
        self._waiting.add(handle)

    def _write(self, response: Response) -> None:
        assert self._transport is not None
        head = f"HTTP/1.1 {response.status} Answer\r\ncontent-length: {len(response.body)}\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in response.headers.items())
        if not self._transport.is_closing():
            self._transport.write(head.encode("latin-1") + b"\r\n" + response.body)


class Receiver:
    """A receiver in a thread of this process; use as a context manager.

    behavior: decides each answer from the request and its number on that path (from 1).  keep: whether
    requests are kept in `requests`; the count always is.
    """

    def __init__(self, behavior: Behavior = always_ok, *, port: int = 0, keep: bool = True) -> None:
        self.behavior = behavior
        self.keep = keep
        self.requests: list[Received] = []
        self.count = 0
        self.connections = 0
        self.connected: set[asyncio.Transport] = set()
        self.port = port
        self.on_request: Callable[[Received], None] | None = None
        self._numbers: dict[str, int] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._ready = threading.Event()
        self._stop: asyncio.Event | None = None

    def url(self, path: str = "/") -> str:
        """Return the receiver's URL for `path`."""
        return f"http://127.0.0.1:{self.port}{path}"

    def handle(self, request: Received) -> Response:
        """Count the request in and return its answer."""
        number = self._numbers[request.path] = self._numbers.get(request.path, 0) + 1
        self.count += 1
        if self.keep:
            self.requests.append(request)
        if self.on_request is not None:
            self.on_request(request)
        return self.behavior(request, number)

    def of(self, path: str) -> list[Received]:
        """Return the requests that came to `path`."""
        return [request for request in list(self.requests) if request.path == path]

    def wait_for(self, count: int, path: str | None = None, timeout: float = 30.0) -> list[Received]:
        """Wait until `count` requests came (to `path`) and return them.  Raises TimeoutError."""
        ends = time.monotonic() + timeout
        while time.monotonic() < ends:
            found = list(self.requests) if path is None else self.of(path)
            if len(found) >= count:
                return found
            time.sleep(0.01)
        raise TimeoutError(f"{count} requests were expected, {self.count} came")

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

    async def serve(self) -> None:
        """Listen until `stop`, on the running loop."""
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        server = await self._loop.create_server(lambda: _Connection(self), "127.0.0.1", self.port, backlog=1024)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()
        for transport in list(self.connected):
            transport.abort()
        # The loop tells each connection of its end in the next round.
        await asyncio.sleep(0)

    def __enter__(self) -> Receiver:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()


def main() -> None:
    """Run a receiver that tells of each webhook in one line of JSON."""
    parser = argparse.ArgumentParser(description="A webhook receiver that verifies signatures and answers 200.")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--secret", help="whsec_… of the subscription")
    options = parser.parse_args()

    def tell(request: Received) -> None:
        line: dict[str, Any] = {
            "path": request.path,
            "id": request.headers.get("webhook-id"),
            "bytes": len(request.body),
        }
        if options.secret:
            line["verified"] = verify(options.secret, request.headers, request.body, request.wall)
        print(json.dumps(line), flush=True)

    receiver = Receiver(port=options.port, keep=False)
    receiver.on_request = tell
    receiver.start()
    print(json.dumps({"listening": receiver.url()}), flush=True)
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        receiver.stop()
        sys.exit(0)


if __name__ == "__main__":
    main()
