"""Redis for the event loop: connections that are kept, and replies that never go to another call."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest
from django_redis import get_redis_connection
from redis.exceptions import NoScriptError

from core.async_redis import AsyncRedis
from core.redis import RedisUnavailable, breaker
from tests.core.redis_loop import with_redis


def test_calls_one_after_another_share_a_connection_and_calls_at_a_time_get_their_own_replies() -> None:
    async def work(redis: AsyncRedis) -> None:
        one_by_one = [(await redis.run([("CLIENT", "ID")]))[0] for _ in range(3)]
        assert len(set(one_by_one)) == 1
        words = [str(number) for number in range(50)]
        replies = await asyncio.gather(*(redis.run([("ECHO", word), ("ECHO", f"{word}!")]) for word in words))
        assert replies == [[word.encode(), f"{word}!".encode()] for word in words]

    with_redis(work)


def test_an_error_among_the_replies_is_raised_and_the_next_call_gets_its_own() -> None:
    async def work(redis: AsyncRedis) -> None:
        with pytest.raises(NoScriptError):
            await redis.run([("ECHO", "before"), ("EVALSHA", "0" * 40, 0), ("ECHO", "after")])
        assert not breaker.is_open, "Redis works"
        assert await redis.run([("ECHO", "next")]) == [b"next"]
        await redis.run([("SET", "text", "x")])
        with pytest.raises(RedisUnavailable, match="WRONGTYPE"):
            await redis.run([("LPUSH", "text", "y"), ("ECHO", "after")])
        breaker.reset()
        assert await redis.run([("ECHO", "next")]) == [b"next"]

    with_redis(work)


def test_the_reply_to_a_canceled_call_goes_to_nobody() -> None:
    async def work(redis: AsyncRedis) -> None:
        call = asyncio.create_task(redis.run([("BLPOP", "list", 0.2)]))
        while b"blpop" not in get_redis_connection("default").execute_command("CLIENT", "LIST"):
            await asyncio.sleep(0.005)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        get_redis_connection("default").rpush("list", "late")
        assert await redis.run([("ECHO", "mine")]) == [b"mine"]

    with_redis(work)


def test_connections_that_redis_has_closed_are_opened_again_at_once() -> None:
    async def work(redis: AsyncRedis) -> None:
        await asyncio.gather(*(redis.run([("ECHO", "x")]) for _ in range(3)))
        for _ in range(2):
            get_redis_connection("default").execute_command("CLIENT", "KILL", "TYPE", "normal")
            replies = await asyncio.gather(*(redis.run([("ECHO", str(number))]) for number in range(3)))
            assert replies == [[b"0"], [b"1"], [b"2"]]
            assert not breaker.is_open

    with_redis(work)


def test_a_call_that_redis_does_not_answer_in_time_fails_and_its_late_reply_goes_to_nobody() -> None:
    async def work(redis: AsyncRedis) -> None:
        await redis.run([("ECHO", "connected")])
        get_redis_connection("default").execute_command("CLIENT", "PAUSE", 800, "ALL")
        with pytest.raises(RedisUnavailable, match="does not respond"):
            await redis.run([("ECHO", "late")])
        await asyncio.sleep(0.5)
        breaker.reset()
        assert await redis.run([("ECHO", "mine")]) == [b"mine"]

    with_redis(work)


def test_a_server_that_accepts_connections_and_says_nothing_counts_as_away(settings: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        settings.REDIS_URL = f"redis://127.0.0.1:{silent.getsockname()[1]}/0"

        async def work(redis: AsyncRedis) -> None:
            async with asyncio.timeout(20):
                with pytest.raises(RedisUnavailable, match="does not respond"):
                    await redis.run([("ECHO", "anybody")])

        try:
            with_redis(work)
        finally:
            breaker.reset()
