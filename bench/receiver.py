"""The webhook receiver of the benchmark, as a process of its own: plain protocols, no parsing beyond need.

The path decides what a request meets: `/ok/…` an instant 200, `/slow/MS/…` a 200 after MS milliseconds,
`/hang/…` a 200 after 30 s, `/endless/…` a 200 whose body never ends.  `GET /_taken` hands over who came
when since the last time; `GET /_count` tells how many came.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
import urllib.request
from collections import Counter
from pathlib import Path

from devstack.processes import Process
from devstack.sockets import free_port

HANG_SECONDS = 30.0
_OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
_ENDLESS = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n\r\n"
_CHUNK = b"x" * 16384


class _Record:
    def __init__(self) -> None:
        self.count = 0
        self.taken: list[tuple[str, str, float]] = []

    def hand_over(self) -> bytes:
        taken, self.taken = self.taken, []
        return json.dumps(taken).encode()


class _Connection(asyncio.Protocol):
    def __init__(self, record: _Record) -> None:
        self._record = record
        self._buffer = b""
        self._transport: asyncio.Transport | None = None
        self._endless = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._endless = False

    def data_received(self, data: bytes) -> None:
        self._buffer = self._buffer + data if self._buffer else data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = self._buffer[:end].lower()
            at = head.find(b"content-length: ")
            length = int(head[at + 16 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
            if len(self._buffer) < end + 4 + length:
                return
            self._buffer = self._buffer[end + 4 + length :]
            self._answer(head)

    def _answer(self, head: bytes) -> None:
        path = head.split(b" ", 2)[1].decode()
        if path.startswith("/_"):
            body = self._record.hand_over() if path == "/_taken" else str(self._record.count).encode()
            self._write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
            return
        at = head.find(b"webhook-id: ")
        self._record.count += 1
        self._record.taken.append((path, head[at + 12 : at + 48].decode() if at >= 0 else "", time.time()))
        kind, _, rest = path[1:].partition("/")
        if kind == "ok":
            self._write(_OK)
        elif kind == "endless":
            self._write(_ENDLESS)
            self._endless = True
            self._flood()
        else:
            delay = float(rest.split("/")[0]) / 1000 if kind == "slow" else HANG_SECONDS
            asyncio.get_running_loop().call_later(delay, self._write, _OK)

    def _write(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def pause_writing(self) -> None:
        self._endless = False

    def resume_writing(self) -> None:
        self._endless = True
        self._flood()

    def _flood(self) -> None:
        while self._endless and self._transport is not None and not self._transport.is_closing():
            self._transport.write(_CHUNK)


class ReceiverProcess:
    """A running receiver; use as a context manager.  host: the address of this machine that it listens on."""

    def __init__(self, log: Path, host: str = "127.0.0.1") -> None:
        self.host = host
        self.port = free_port()
        command = [sys.executable, "-m", "bench.receiver", "--host", host, "--port", str(self.port)]
        self._process = Process("receiver", command, log)

    def __enter__(self) -> ReceiverProcess:
        self._process.start().wait_for_url(self.url("/_count"))
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()

    @property
    def pid(self) -> int:
        """Return the process id."""
        return self._process.pid

    def url(self, path: str) -> str:
        """Return the URL of `path`."""
        return f"http://{self.host}:{self.port}{path}"

    def _get(self, path: str) -> bytes:
        with urllib.request.urlopen(self.url(path), timeout=30) as answer:
            body: bytes = answer.read()
            return body

    def count(self) -> int:
        """Return how many webhooks came so far."""
        return int(self._get("/_count"))

    def take(self) -> list[tuple[str, str, float]]:
        """Return (path, webhook id, seconds since the epoch) of what came since the last time."""
        return [(path, event_id, at) for path, event_id, at in json.loads(self._get("/_taken"))]


def duplicates(taken: list[tuple[str, str, float]]) -> int:
    """Return how many webhooks came more than once to the same path."""
    return sum(count - 1 for count in Counter((path, event_id) for path, event_id, _ in taken).values())


async def _serve(host: str, port: int) -> None:
    record = _Record()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Connection(record), host, port, backlog=1024)
    await server.serve_forever()


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    options = parser.parse_args()
    asyncio.run(_serve(options.host, options.port))


if __name__ == "__main__":
    main()
