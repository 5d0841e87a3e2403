"""Saves each Redis command of a POST about half of its cost, redis-py's pool and metrics; `make bench SCENARIO=single`.

redis-py's client takes a connection from its pool for each command, measures that, and gives it back.  Here each
thread keeps a connection of its own, made by redis-py with the settings of the pool.
"""

from __future__ import annotations

import select
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from django_redis import get_redis_connection

from core.redis import breaker

T = TypeVar("T")
Execute = Callable[..., Any]


class ThreadConnection:
    """A connection to Redis of one thread, for single commands.  It reconnects when the server has closed it."""

    def __init__(self) -> None:
        pool = get_redis_connection("default").connection_pool
        self._connection = pool.connection_class(**pool.connection_kwargs)
        self._idle: select.poll | None = None

    def execute(self, *words: str | int) -> Any:
        """Return the reply to a command.  Raises RedisError (also for an error reply) or OSError."""
        connection = self._connection
        # An idle connection has nothing to read except its end.
        if self._idle is None or not connection.is_connected or self._idle.poll(0):
            self._connect()
        connection.send_packed_command(connection.pack_command(*words))
        # A reply that comes too late must not be taken for the next command's.
        return connection.read_response(disconnect_on_error=True)

    def _connect(self) -> None:
        self._idle = None
        self._connection.disconnect()
        self._connection.connect()
        poll = select.poll()
        poll.register(self._connection._sock, select.POLLIN)
        self._idle = poll


_own = threading.local()


def _connection_of_this_thread() -> ThreadConnection:
    try:
        connection: ThreadConnection = _own.connection
    except AttributeError:
        connection = _own.connection = ThreadConnection()
    return connection


def with_redis(work: Callable[[Execute], T]) -> T:
    """Return what `work` returns when it is given a function that runs one command, given as its words.

    Raises RedisUnavailable as `core.redis.call_redis` does.
    """
    return breaker.run(lambda: work(_connection_of_this_thread().execute))
