"""Redis for an event loop, behind the circuit breaker of the process."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, cast

import hiredis
import redis.asyncio
from django.conf import settings
from redis.asyncio import ConnectionPool
from redis.asyncio.connection import AbstractConnection, parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import (
    Sentinel,
    SentinelConnectionPool,
    SentinelManagedConnection,
    SentinelManagedSSLConnection,
)
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import MasterDownError, ReadOnlyError, RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from core.redis import breaker
from core.redis_connections import SENTINEL_SECONDS, sentinel_options

LISTEN_SECONDS = 10.0
RECONNECT_SECONDS = 1.0
_WENT_AWAY = (ReadOnlyError, MasterDownError, RedisConnectionError)


_OPTIONS: Any = settings.CACHES["default"]["OPTIONS"]
# In C, where redis-py's own is in Python.  Its annotation allows for one word only.
_pack: Callable[[tuple[str | int | float, ...]], bytes] = cast(Any, hiredis.pack_command)


def _pool(socket_timeout: float | None) -> ConnectionPool:
    """Return a pool of connections to the server or primary that `core.redis_connections` connects to.

    socket_timeout: for each write and read, in seconds.
    """
    url = settings.REDIS_URL
    options = {
        "socket_connect_timeout": _OPTIONS["SOCKET_CONNECT_TIMEOUT"],
        "socket_timeout": socket_timeout,
        "retry": Retry(NoBackoff(), 0),
    }
    if not settings.REDIS_SENTINELS:
        return ConnectionPool.from_url(url, **options)
    sentinel = Sentinel(
        settings.REDIS_SENTINELS, sentinel_kwargs={**sentinel_options(url), "retry": Retry(NoBackoff(), 0)}
    )
    return SentinelConnectionPool.from_url(
        url,
        connection_class=SentinelManagedSSLConnection if url.startswith("rediss:") else SentinelManagedConnection,
        service_name=parse_url(url)["host"],
        sentinel_manager=sentinel,
        **options,
    )


class AsyncRedis:
    """Connections to Redis for the event loop that it is used in, as many as there are calls at a time.

    redis-py's pool makes them, and they are kept here: taking one from it for each command costs as much processor time
    as the command.  The time for a call is limited here.  redis-py would limit each write by a task of its own, which
    takes two more turns of the loop, and each read.
    """

    def __init__(self) -> None:
        self._pool = _pool(None)
        self._client = redis.asyncio.Redis(connection_pool=_pool(_OPTIONS["SOCKET_TIMEOUT"]))
        self._idle: list[AbstractConnection] = []

    async def run(self, commands: Sequence[Sequence[str | int | float]]) -> list[Any]:
        """Return the replies to several commands, each given as its words, sent in one round trip.

        After a connection error they are sent once more, so each must be safe to run twice.  Raises RedisUnavailable as
        `core.redis.call_redis` does, and NoScriptError for an EVALSHA of an unknown script.
        """

        async def send() -> list[Any]:
            connection = self._idle.pop() if self._idle else self._pool.make_connection()
            try:
                try:
                    return await _send(connection, commands)
                except _WENT_AWAY:
                    # That the server went away or became a replica while the connection was idle is noticed only now.
                    await connection.disconnect()
                    return await _send(connection, commands)
            except (ReadOnlyError, MasterDownError) as error:
                raise RedisConnectionError(f"the server is no longer the primary: {error}") from error
            finally:
                self._idle.append(connection)  # one that was closed is opened again when it is used

        return await breaker.run_async(send)

    async def messages(self, channel: str) -> AsyncIterator[bytes]:
        """Yield what is published on a channel, and an empty message after each connect, because some may have been
        missed.

        Never ends, and reconnects after an error.
        """
        while True:
            pubsub = self._client.pubsub(ignore_subscribe_messages=True)
            try:
                await pubsub.subscribe(channel)
                yield b""
                while True:
                    message = await pubsub.get_message(timeout=LISTEN_SECONDS)
                    if message is not None:
                        yield message["data"]
                    else:
                        await pubsub.ping()  # a server that went away without a word is noticed
            except (RedisError, OSError, TimeoutError):
                await asyncio.sleep(RECONNECT_SECONDS)
            finally:
                with contextlib.suppress(RedisError, OSError):
                    await pubsub.aclose()

    async def close(self) -> None:
        for connection in self._idle:
            await connection.disconnect()
        await self._client.connection_pool.disconnect()
        await self._client.aclose()


async def _send(connection: AbstractConnection, commands: Sequence[Sequence[str | int | float]]) -> list[Any]:
    """Send commands on a connection and return their replies; raise the first error among them.

    After any other error than one of a reply, the connection is closed.
    """
    replies: list[Any] = []
    failure: ResponseError | None = None
    packed = [_pack(tuple(command)) for command in commands]
    try:
        if not connection.is_connected:
            async with asyncio.timeout(_connect_seconds()):
                await connection.connect()  # to whichever server is the primary now
        async with asyncio.timeout(_OPTIONS["SOCKET_TIMEOUT"]):
            await connection.send_packed_command(packed, check_health=False)
            for _ in commands:  # all are read, or the next command would get a reply of this one
                try:
                    replies.append(await connection.read_response())
                except ResponseError as error:
                    failure = failure or error
    except (TimeoutError, asyncio.CancelledError) as error:
        await connection.disconnect(nowait=True)
        if isinstance(error, TimeoutError):
            raise RedisTimeoutError("the server does not respond") from None
        raise
    if failure is not None:
        raise failure
    return replies


def _connect_seconds() -> float:
    """Return how long connecting may take: asking each sentinel, the connection itself, and what is said first."""
    asking = len(settings.REDIS_SENTINELS) * 2 * SENTINEL_SECONDS
    return asking + float(_OPTIONS["SOCKET_CONNECT_TIMEOUT"]) + float(_OPTIONS["SOCKET_TIMEOUT"])
