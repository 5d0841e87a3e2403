"""Redis on the event loop, behind the same circuit breaker as everywhere in the process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import redis.asyncio
from django.conf import settings
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from core.redis import breaker


class AsyncRedis:
    """A connection to Redis for the event loop that it is used in."""

    def __init__(self) -> None:
        options: Any = settings.CACHES["default"]["OPTIONS"]
        self._client = redis.asyncio.Redis.from_url(
            settings.REDIS_URL,
            socket_connect_timeout=options["SOCKET_CONNECT_TIMEOUT"],
            socket_timeout=options["SOCKET_TIMEOUT"],
            retry=Retry(NoBackoff(), 0),
        )

    async def run(self, commands: Sequence[Sequence[str | int]]) -> list[Any]:
        """Return the replies to several commands, each given as its words, sent in one round trip.

        Raises RedisUnavailable as `core.redis.call_redis` does, and NoScriptError for an EVALSHA of an unknown script.
        """

        async def send() -> list[Any]:
            pipeline = self._client.pipeline(transaction=False)
            for words in commands:
                pipeline.execute_command(*words)
            replies: list[Any] = await pipeline.execute()
            return replies

        return await breaker.run_async(send)

    async def close(self) -> None:
        """Close the connection."""
        await self._client.aclose()
