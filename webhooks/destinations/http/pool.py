"""Connections that wait for their next request."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque

from webhooks.destinations.http.connection import Connection

IDLE_SECONDS = 30.0


class Pool:
    """Idle connections by origin; the one used last is used first, so that the others can expire.

    limit: how many are kept in all; beyond that, the one that has been idle longest is closed.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._by_origin: dict[str, deque[Connection]] = {}
        self._idle: OrderedDict[Connection, tuple[str, float]] = OrderedDict()  # in the order of their coming
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        return len(self._idle)

    def take(self, origin: str) -> Connection | None:
        """Return a connection to `origin` on which nothing has come since its last response, or None."""
        waiting = self._by_origin.get(origin)
        while waiting:
            connection = waiting.pop()
            del self._idle[connection]
            connection.when_closed = None
            if not waiting:
                del self._by_origin[origin]
            if connection.is_silent():
                return connection
            connection.abort()
        return None

    def put(self, origin: str, connection: Connection) -> None:
        """Keep a connection whose response has ended."""
        if self._limit <= 0:
            connection.abort()
            return
        if len(self._idle) >= self._limit:
            self._drop_oldest()
        now = asyncio.get_running_loop().time()
        connection.has_been_kept = True
        connection.when_closed = self._remove
        self._idle[connection] = origin, now
        self._by_origin.setdefault(origin, deque()).append(connection)
        if self._timer is None:
            self._set_timer(now + IDLE_SECONDS)

    def close(self) -> None:
        """Close them all."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._idle:
            self._drop_oldest()

    def _remove(self, connection: Connection) -> None:
        origin, _ = self._idle.pop(connection)
        connection.when_closed = None
        waiting = self._by_origin[origin]
        waiting.remove(connection)
        if not waiting:
            del self._by_origin[origin]

    def _drop_oldest(self) -> None:
        connection = next(iter(self._idle))
        self._remove(connection)  # the oldest of all is the first of its origin, too
        connection.abort()

    def _set_timer(self, when: float) -> None:
        self._timer = asyncio.get_running_loop().call_at(when, self._drop_expired)

    def _drop_expired(self) -> None:
        self._timer = None
        now = asyncio.get_running_loop().time()
        while self._idle:
            _, since = next(iter(self._idle.values()))
            if now < since + IDLE_SECONDS:
                self._set_timer(since + IDLE_SECONDS)
                break
            self._drop_oldest()
