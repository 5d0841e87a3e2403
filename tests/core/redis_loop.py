"""Redis on an event loop of a test's own."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from core.async_redis import AsyncRedis

T = TypeVar("T")


def with_redis(work: Callable[[AsyncRedis], Awaitable[T]]) -> T:
    """Return what `work` returns when it is given an AsyncRedis, which is closed afterward."""

    async def run() -> T:
        redis = AsyncRedis()
        try:
            return await work(redis)
        finally:
            await redis.close()

    return asyncio.run(run())
