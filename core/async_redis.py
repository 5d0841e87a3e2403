"""Redis for an event loop, behind the circuit breaker of the process."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

import redis.asyncio
from django.conf import settings
from redis.asyncio import ConnectionPool
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import (
    Sentinel,
    SentinelConnectionPool,
    SentinelManagedConnection,
    SentinelManagedSSLConnection,
)
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import MasterDownError, ReadOnlyError, RedisError

from core.redis import breaker
from core.redis_connections import sentinel_options

LISTEN_SECONDS = 10.0
RECONNECT_SECONDS = 1.0


def _pool() -> ConnectionPool:
    """Return a pool of connections to the server or primary that `core.redis_connections` connects to."""
    url = settings.REDIS_URL
    configured: Any = settings.CACHES["default"]["OPTIONS"]
    options = {
        "socket_connect_timeout": configured["SOCKET_CONNECT_TIMEOUT"],
        "socket_timeout": configured["SOCKET_TIMEOUT"],
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
    """A connection to Redis for the event loop that it is used in."""

    def __init__(self) -> None:
        self._client = redis.asyncio.Redis(connection_pool=_pool())

    async def run(self, commands: Sequence[Sequence[str | int]]) -> list[Any]:
        """Return the replies to several commands, each given as its words, sent in one round trip.

        After a connection error they are sent once more, so each must be safe to run twice.  Raises RedisUnavailable as
        `core.redis.call_redis` does, and NoScriptError for an EVALSHA of an unknown script.
        """

        async def send(is_first: bool = True) -> list[Any]:
            try:
                if len(commands) == 1:
                    return [await self._client.execute_command(*commands[0])]
                pipeline = self._client.pipeline(transaction=False)
                for words in commands:
                    pipeline.execute_command(*words)
                replies: list[Any] = await pipeline.execute()
            except (ReadOnlyError, MasterDownError, RedisConnectionError) as error:
                # That the server went away or became a replica while the connection was idle is noticed only now.  The
                # next connection looks for the primary again.
                await self._client.connection_pool.disconnect()
                if is_first:
                    return await send(is_first=False)
                if isinstance(error, RedisConnectionError):
                    raise
                raise RedisConnectionError(f"the server is no longer the primary: {error}") from error
            return replies

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
        await self._client.connection_pool.disconnect()
        await self._client.aclose()
