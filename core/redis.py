"""The connection to Redis or Valkey that requests use: short timeouts, and a pause after a failure.

Redis holds nothing that can't be lost, so every caller has something to do without it.  After a
failure the process leaves Redis alone for a moment: a dead Redis must not cost each request a
connect timeout.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

import structlog
from django_redis import get_redis_connection
from redis import Redis
from redis.exceptions import RedisError

log = structlog.get_logger()
T = TypeVar("T")

PAUSE_SECONDS = 1.0


class RedisUnavailable(Exception):
    """Redis did not answer, or did not a moment ago."""


class _Guard:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._probe = threading.Lock()
        self._retry_at = 0.0  # 0 while Redis answers

    def call(self, command: Callable[[Redis], T]) -> T:
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

    def _try(self, command: Callable[[Redis], T]) -> T:
        try:
            return command(get_redis_connection("default"))
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
