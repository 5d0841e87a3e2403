"""Redis (or Valkey) behind a circuit breaker: short timeouts, and a pause after a failure.

Redis holds nothing that can't be lost, so every caller can do without it.  After a failure, the process leaves Redis
alone for a moment: in an outage, not every request may wait for a timeout.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog
from django_redis import get_redis_connection
from redis import Redis, sentinel
from redis.asyncio import sentinel as async_sentinel
from redis.exceptions import NoScriptError, RedisError

log = structlog.get_logger()
T = TypeVar("T")

PAUSE_SECONDS = 1.0
NO_PRIMARY = (sentinel.MasterNotFoundError, async_sentinel.MasterNotFoundError)


class RedisUnavailable(Exception):
    """Redis did not respond, or failed a moment ago.  reason: the error of that failure, if there is one."""

    def __init__(self, text: str, reason: BaseException | None = None) -> None:
        super().__init__(text)
        self.reason = reason


def describe_fault(error: BaseException) -> dict[str, str]:
    """Return the setting to look at after an error of Redis, and the reason, for a line in the log."""
    reason = str(error) or type(error).__name__
    if not isinstance(error, NO_PRIMARY):
        return {"setting": "REDIS_URL", "reason": reason[:300]}
    # redis-py shows each sentinel's client with all its options before what it failed with.
    what, _, clients = reason.partition(" : ")
    failures = sorted(set(re.findall(r"\)> - (.*?)(?=, <redis|$)", clients)))
    return {"setting": "REDIS_SENTINELS", "reason": ": ".join([what, *filter(None, [", ".join(failures)])])[:300]}


class CircuitBreaker:
    """Whether this process may use Redis now.

    closed: every call goes through.  open: calls fail at once, for PAUSE_SECONDS after a failure.  half-open: one
    thread probes whether Redis is back; the calls of the other threads fail at once.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._probe = threading.Lock()
        self._retry_at = 0.0  # by the monotonic clock; 0 is closed
        self._reason: BaseException | None = None  # why it is open

    @property
    def is_open(self) -> bool:
        """Return whether Redis has failed and hasn't been reached since."""
        return bool(self._retry_at)

    def open(self, seconds: float) -> None:
        """Leave Redis alone for `seconds`."""
        self._retry_at = time.monotonic() + seconds

    def reset(self) -> None:
        """Close the breaker: the next call goes through."""
        self._retry_at = 0.0
        self._reason = None

    def run(self, command: Callable[[], T]) -> T:
        """Return what `command`, which uses Redis, returns.  Raises RedisUnavailable when it fails or may not run."""
        if not self._retry_at:
            return self._attempt(command)
        if time.monotonic() < self._retry_at:
            raise RedisUnavailable("Redis failed a moment ago", self._reason)
        if not self._probe.acquire(blocking=False):
            raise RedisUnavailable("another thread is probing whether Redis is back", self._reason)
        try:
            result = self._attempt(command)
            self.reset()
            return result
        finally:
            self._probe.release()

    async def run_async(self, command: Callable[[], Awaitable[T]]) -> T:
        """Do as `run` does with a command of the event loop."""
        if not self._retry_at:
            return await self._attempt_async(command)
        if time.monotonic() < self._retry_at:
            raise RedisUnavailable("Redis failed a moment ago", self._reason)
        if not self._probe.acquire(blocking=False):
            raise RedisUnavailable("another thread is probing whether Redis is back", self._reason)
        try:
            result = await self._attempt_async(command)
            self.reset()
            return result
        finally:
            self._probe.release()

    async def _attempt_async(self, command: Callable[[], Awaitable[T]]) -> T:
        try:
            return await command()
        except NoScriptError:
            raise  # Redis works; the caller sends the script
        except (RedisError, OSError) as error:
            self.failed(error)
            raise RedisUnavailable(str(error)) from error

    def _attempt(self, command: Callable[[], T]) -> T:
        try:
            return command()
        except (RedisError, OSError) as error:
            self.failed(error)
            raise RedisUnavailable(str(error)) from error

    def failed(self, error: Exception) -> None:
        """Open the breaker after an error of Redis; log the first failure of an outage."""
        with self._lock:
            first = not self._retry_at
            self._reason = error
            self.open(PAUSE_SECONDS)
        if first:
            log.warning("redis_unavailable", **describe_fault(error))


breaker = CircuitBreaker()


def call_redis(command: Callable[[Redis], T]) -> T:
    """Return what `command` returns when it is given the client.

    Raises RedisUnavailable when Redis doesn't respond within half a second, or failed less than PAUSE_SECONDS ago.
    """
    return breaker.run(lambda: command(get_redis_connection("default")))
