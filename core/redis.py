"""The connection to Redis or Valkey that requests use: short timeouts, and a pause after a failure.

Redis holds nothing that can't be lost, so every caller has something to do without it.  After a
failure the process leaves Redis alone for a moment: a dead Redis must not cost each request a
connect timeout.
"""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import structlog
from django_redis import get_redis_connection
from redis import Redis
from redis.exceptions import RedisError

log = structlog.get_logger()
T = TypeVar("T")
Ask = Callable[..., Any]

PAUSE_SECONDS = 1.0


class RedisUnavailable(Exception):
    """Redis did not answer, or did not a moment ago."""


class _Line:
    """A connection of one thread, for single commands.

    redis-py's client takes a connection from its pool for each command, measures that, and gives it back: for what
    every POST asks, that costs as much as asking. The connection is redis-py's, with the settings of the pool.
    """

    def __init__(self) -> None:
        pool = get_redis_connection("default").connection_pool
        self._connection = pool.connection_class(**pool.connection_kwargs)
        self._idle: select.poll | None = None

    def ask(self, *words: str | int) -> Any:
        """Return the answer to a command.  Raises RedisError (also what Redis answers as an error) or OSError."""
        connection = self._connection
        # What is idle has nothing to say but that it was closed.
        if self._idle is None or not connection.is_connected or self._idle.poll(0):
            self._connect()
        connection.send_packed_command(connection.pack_command(*words))
        return connection.read_response()

    def _connect(self) -> None:
        self._idle = None
        self._connection.disconnect()
        self._connection.connect()
        poll = select.poll()
        poll.register(self._connection._sock, select.POLLIN)
        self._idle = poll


class _Guard:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._probe = threading.Lock()
        self._retry_at = 0.0  # 0 while Redis answers
        self._own = threading.local()

    def call(self, command: Callable[[Redis], T]) -> T:
        return self._guarded(lambda: command(get_redis_connection("default")))

    def ask(self, question: Callable[[Ask], T]) -> T:
        return self._guarded(lambda: question(self._line().ask))

    def _line(self) -> _Line:
        try:
            line: _Line = self._own.line
        except AttributeError:
            line = self._own.line = _Line()
        return line

    def _guarded(self, command: Callable[[], T]) -> T:
        if not self._retry_at:
            return self._try(command)
        if time.monotonic() < self._retry_at:
            raise RedisUnavailable("Redis failed a moment ago")
        # One thread finds out whether Redis is back; the others must not wait for it, too.
        if not self._probe.acquire(blocking=False):
            raise RedisUnavailable("Redis is being asked whether it is back")
        try:
            result = self._try(command)
            self._retry_at = 0.0
            return result
        finally:
            self._probe.release()

    def _try(self, command: Callable[[], T]) -> T:
        try:
            return command()
        except (RedisError, OSError) as error:
            with self._lock:
                first = time.monotonic() >= self._retry_at
                self._retry_at = time.monotonic() + PAUSE_SECONDS
            if first:
                log.warning("redis_unavailable", error=type(error).__name__)
            raise RedisUnavailable(str(error)) from error


_guard = _Guard()


def call_redis(command: Callable[[Redis], T]) -> T:
    """Return what `command` makes of the connection.

    Raises RedisUnavailable when Redis doesn't answer within half a second, or failed less than
    PAUSE_SECONDS ago.
    """
    return _guard.call(command)


def ask_redis(question: Callable[[Ask], T]) -> T:
    """Return what `question` makes of a function that sends one command, given as its words, and returns the answer.

    The cheap way, for what every request asks.  Raises RedisUnavailable as `call_redis` does.
    """
    return _guard.ask(question)
