"""A lean HTTP/1.1 client on asyncio protocols: cheap enough never to be what limits a measurement."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit


@dataclass
class Outcome:
    """What a run of requests brought.  latencies: in seconds.  responded: when the response for an event came."""

    statuses: Counter[int] = field(default_factory=Counter)
    latencies: list[float] = field(default_factory=list)
    seconds: float = 0.0
    responded: dict[str, float] = field(default_factory=dict)

    @property
    def requests(self) -> int:
        """Return how many requests were sent."""
        return sum(self.statuses.values())

    def share(self, *statuses: int) -> float:
        """Return which share of the requests was answered with one of `statuses`."""
        return sum(self.statuses[status] for status in statuses) / max(1, self.requests)


# Receives an answer's status and body, and when its request was sent.
OnAnswer = Callable[[int, bytes, float], None]


class Connection(asyncio.Protocol):
    """One kept connection, one request at a time."""

    def __init__(self, host: str, port: int) -> None:
        self._address = (host, port)
        self._transport: asyncio.Transport | None = None
        self._buffer = b""
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None

    async def request(self, data: bytes) -> tuple[int, bytes]:
        """Send `data` and return status and body; status 0 for a connection that broke."""
        loop = asyncio.get_running_loop()
        if self._transport is None or self._transport.is_closing():
            try:
                await loop.create_connection(lambda: self, *self._address)
            except OSError:
                return 0, b""
        assert self._transport is not None
        self._answer = loop.create_future()
        self._transport.write(data)
        return await self._answer

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """asyncio's callback."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._buffer = b""

    def connection_lost(self, error: Exception | None) -> None:
        """asyncio's callback: an unanswered request has failed."""
        self._transport = None
        self._finish(0, b"")

    def data_received(self, data: bytes) -> None:
        """asyncio's callback."""
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self._buffer[:end].lower()
        at = head.find(b"content-length:")
        length = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
        if len(self._buffer) < end + 4 + length:
            return
        body = self._buffer[end + 4 : end + 4 + length]
        self._buffer = self._buffer[end + 4 + length :]
        # A stream has begun, which is all that is asked of it.
        is_stream = b"content-type: text/event-stream" in head
        if (is_stream or b"connection: close" in head) and self._transport is not None:
            self._transport.close()
        self._finish(int(head[9:12]), body)

    def _finish(self, status: int, body: bytes) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result((status, body))


class Api:
    """Builds requests for the API at `url` with `key`."""

    def __init__(self, url: str, key: str) -> None:
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname:
            raise ValueError("the benchmark's client speaks plain http://host:port only")
        self.host = parts.hostname
        self.port = parts.port or 80
        self._prefix = parts.path.rstrip("/")
        self._fixed = f"Host: {parts.netloc}\r\nX-API-Key: {key}\r\nContent-Type: application/json\r\n".encode()

    def build(self, method: str, path: str, body: bytes = b"") -> bytes:
        """Return the bytes of a request."""
        head = f"{method} {self._prefix}{path} HTTP/1.1\r\nContent-Length: {len(body)}\r\n".encode()
        return head + self._fixed + b"\r\n" + body

    def connection(self) -> Connection:
        """Return a connection, opened at its first request."""
        return Connection(self.host, self.port)


async def flat_out(api: Api, requests: Iterator[bytes], connections: int, on_answer: OnAnswer | None = None) -> Outcome:
    """Send `requests` as fast as `connections` connections get answers."""
    outcome = Outcome()

    async def work() -> None:
        connection = api.connection()
        for data in requests:
            sent = time.time()
            started = time.perf_counter()
            status, body = await connection.request(data)
            outcome.latencies.append(time.perf_counter() - started)
            outcome.statuses[status] += 1
            if on_answer is not None:
                on_answer(status, body, sent)
        connection.close()

    started = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(connections)))
    outcome.seconds = time.perf_counter() - started
    return outcome


async def paced(
    api: Api, requests: Iterator[bytes], rate: float, connections: int, on_answer: OnAnswer | None = None
) -> Outcome:
    """Send `requests` at `rate` a second whatever the responses are (open loop).

    A latency counts from the time at which the request was due, so that a request which had to wait
    for a free connection shows that wait.
    """
    outcome = Outcome()
    idle: asyncio.Queue[Connection] = asyncio.Queue()
    for _ in range(connections):
        idle.put_nowait(api.connection())
    started, started_wall = time.perf_counter(), time.time()

    async def send(data: bytes, due: float) -> None:
        connection = await idle.get()
        status, body = await connection.request(data)
        idle.put_nowait(connection)
        outcome.latencies.append(time.perf_counter() - due)
        outcome.statuses[status] += 1
        if on_answer is not None:
            on_answer(status, body, started_wall + due - started)

    tasks = set()
    for position, data in enumerate(requests):
        due = started + position / rate
        wait = due - time.perf_counter()
        if wait > 0:
            await asyncio.sleep(wait)
        task = asyncio.create_task(send(data, due))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    while tasks:
        await asyncio.wait(set(tasks))
    outcome.seconds = time.perf_counter() - started
    while not idle.empty():
        idle.get_nowait().close()
    return outcome
