"""Redis holds nothing that can't be lost: without it everything goes on, and with it again nobody needs a restart."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from core.redis import PAUSE_SECONDS
from devstack.http_receiver import Receiver
from devstack.stack import Stack
from devstack.waiting import wait_until
from tests.system import Account, events_stored, log_of, log_size, open_account, wait_until_settled

REQUESTS = 50


@pytest.fixture
def running(stack: Stack) -> Stack:
    """Return the stack with one web process and one worker."""
    stack.start_web(workers=1)
    stack.start_workers({})
    return stack


def _health(account: Account) -> tuple[int, dict[str, object]]:
    answer = account.call("GET", "/api/health/detailed")
    return answer.status, answer.document


def _is_healthy(account: Account) -> bool:
    status, document = _health(account)
    return status == 200 and document["status"] == "healthy" and document["workers"] == 1


@pytest.mark.parametrize("how", ["killed", pytest.param("frozen", marks=pytest.mark.slow)])
def test_without_redis_events_are_accepted_and_delivered_and_nothing_needs_a_restart_when_it_is_back(
    running: Stack, account: Account, receiver: Receiver, how: str
) -> None:
    account.subscribe(receiver.url())
    wait_until(lambda: _is_healthy(account), "not healthy before")
    started = log_size(running, "web")
    if how == "killed":
        running.valkey.kill()
    else:
        running.valkey.suspend()

    posted = [account.post_event(number).status for number in range(REQUESTS)]
    assert posted == [202] * REQUESTS
    assert account.post_batch(*range(10)).status == 202
    assert events_stored(running) == REQUESTS + 10
    # While it is away, not when it is back.
    assert len({request.headers["webhook-id"] for request in receiver.wait_for(REQUESTS + 10, timeout=60)}) >= 60
    wait_until_settled(running)
    status, document = _health(account)
    assert (status, document["status"], document["redis"], document["database"]) == (503, "degraded", "down", "up")
    assert document["workers"] is None

    if how == "killed":
        running.valkey.start()  # empty
    else:
        running.valkey.resume()
    wait_until(lambda: _is_healthy(account), "not healthy again", pause=0.2)
    assert account.post_event(1000).status == 202
    receiver.wait_for(REQUESTS + 11)
    # The job loop takes wake-ups again: nothing waits on the queue.
    wait_until(lambda: running.redis.llen("rq:queue:events") == 0, "no worker takes wake-ups")
    assert running.workers[0].restarts == 0
    assert running.web is not None
    assert running.web.restarts == 0
    assert "Traceback" not in log_of(running, "web", started)


@pytest.mark.slow
def test_a_flushed_redis_knows_its_workers_again_and_loses_no_event(
    running: Stack, account: Account, receiver: Receiver
) -> None:
    account.subscribe(receiver.url())
    wait_until(lambda: _is_healthy(account), "not healthy before")
    for number in range(5):
        assert account.post_event(number).status == 202
        running.redis.flushall()
    receiver.wait_for(5)
    wait_until(lambda: _is_healthy(account), "the worker is not known again", pause=0.2)
    assert running.workers[0].restarts == 0


class SilentRedis:
    """A TCP port that takes connections and never answers; counts them."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port: int = self._socket.getsockname()[1]
        self.connections = 0
        self._kept: list[socket.socket] = []
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                self._kept.append(self._socket.accept()[0])
                self.connections += 1

    def close(self) -> None:
        """Stop listening."""
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        for kept in self._kept:
            kept.close()


@pytest.fixture
def silent_redis() -> Iterator[SilentRedis]:
    """Return a Redis that hangs."""
    silent = SilentRedis()
    yield silent
    silent.close()


@pytest.mark.slow
@pytest.mark.parametrize("at_once", [1, 8])
def test_a_dead_redis_does_not_add_a_timeout_to_each_request(
    stack: Stack, account: Account, silent_redis: SilentRedis, at_once: int
) -> None:
    stack.start_web(workers=1, env={"REDIS_URL": f"redis://127.0.0.1:{silent_redis.port}/0"})
    began = time.monotonic()
    with ThreadPoolExecutor(at_once) as pool:
        answers = list(pool.map(account.post_event, range(REQUESTS)))
    lasted = time.monotonic() - began
    assert [answer.status for answer in answers] == [202] * REQUESTS
    assert events_stored(stack) == REQUESTS
    # The first ones find out together; after that one in each PAUSE_SECONDS asks, for all, and so does the front door,
    # which listens for what arrives in inboxes.
    assert 1 <= silent_redis.connections <= at_once + 2 * (lasted / PAUSE_SECONDS + 1)


@pytest.mark.slow
def test_without_redis_rates_are_still_limited_and_keys_still_checked(running: Stack, account: Account) -> None:
    other = open_account(running, "Other")
    running.sql("UPDATE orgs_organization SET events_per_minute = 5 WHERE id = %s", (account.id,))
    running.valkey.kill()

    def posted_in_one_minute(poster: Callable[[int], int]) -> list[int]:
        # A window of a minute may end in between; then the count starts again.
        return [poster(number) for number in range(11)]

    statuses = posted_in_one_minute(lambda number: account.post_event(number).status)
    assert set(statuses) == {202, 429}
    assert statuses.count(202) <= 10
    refused = next(answer for answer in iter(account.post_event, None) if answer.status == 429)
    assert int(refused.headers["retry-after"]) >= 1
    assert other.post_event().status == 202
    running.sql("UPDATE orgs_apikey SET revoked_at = now() WHERE organization_id = %s", (other.id,))
    assert other.post_event().status == 401
