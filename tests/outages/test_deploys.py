"""A deploy costs nobody anything: processes end gently, and the schema changes under running code."""

from __future__ import annotations

import http.client
import re
import signal
import socket
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

import pytest

from devstack.http_receiver import Receiver, Response
from devstack.stack import Stack
from devstack.waiting import wait_until
from tests.system import Account, Answer, events_stored, log_of, log_size, wait_until_settled


def _begin(count: int, work: Callable[[int], Answer]) -> tuple[ThreadPoolExecutor, list[Any]]:
    """Start `count` calls of `work` at once."""
    pool = ThreadPoolExecutor(count)
    return pool, [pool.submit(work, number) for number in range(count)]


def test_sigterm_lets_gunicorn_complete_every_request_that_it_has_begun(stack: Stack, account: Account) -> None:
    web = stack.start_web(workers=2)
    with stack.connect() as blocker:
        blocker.execute("BEGIN")
        blocker.execute("LOCK TABLE events_event IN EXCLUSIVE MODE")
        begun = [_begin_post(account) for _ in range(6)]
        wait_until(
            lambda: stack.sql("SELECT 1 FROM pg_stat_activity WHERE usename = 'web' AND wait_event_type = 'Lock'"),
            "no commit waits for the lock",
        )
        web.unwatch()
        web.process.signal(signal.SIGTERM)
        wait_until(lambda: _refuses_connections(account), "gunicorn goes on listening")
        blocker.execute("COMMIT")
    for connection in begun:
        with connection:
            response = http.client.HTTPResponse(connection)
            response.begin()
            assert (response.status, response.headers["Connection"]) == (202, "close")
    assert web.process.wait(60) == 0
    assert events_stored(stack) == 6


def _begin_post(account: Account) -> socket.socket:
    """Send an event, and return its connection when the server has begun to serve it."""
    body = b'{"type":"a","data":1}'
    parts = urlsplit(account.url)
    connection = socket.create_connection((parts.hostname or "", parts.port or 80), timeout=60)
    head = ["POST /api/events HTTP/1.1", "Host: localhost", f"X-API-Key: {account.key}"]
    head += ["Content-Type: application/json", f"Content-Length: {len(body)}", "Expect: 100-continue", "", ""]
    connection.sendall("\r\n".join(head).encode())
    assert connection.recv(1000).startswith(b"HTTP/1.1 100")
    connection.sendall(body)
    return connection


def _refuses_connections(account: Account) -> bool:
    try:
        account.call("GET", "/api/health", seconds=1)
    except OSError:
        return True
    return False


@pytest.mark.slow
def test_reloading_gunicorn_under_load_drops_no_request(stack: Stack, account: Account) -> None:
    web = stack.start_web(workers=2)
    stopping = threading.Event()
    statuses: Counter[str] = Counter()

    def post_on_and_on() -> None:
        while not stopping.is_set():
            try:
                statuses[str(account.post_event().status)] += 1
            except OSError as error:
                statuses[repr(error)] += 1

    threads = [threading.Thread(target=post_on_and_on) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        wait_until(lambda: statuses["202"] >= 20, "no load")
        old = set(stack.web_workers())
        web.process.signal(signal.SIGHUP)
        wait_until(lambda: old.isdisjoint(stack.web_workers()) and stack.web_workers(), "the old workers stay")
        so_far = statuses["202"]
        wait_until(lambda: statuses["202"] >= so_far + 20, "the load doesn't go on")
    finally:
        stopping.set()
        for thread in threads:
            thread.join(60)
    assert set(statuses) == {"202"}
    assert events_stored(stack) == statuses["202"]


def test_sigterm_lets_a_worker_finish_what_is_on_the_wire_and_nothing_is_sent_twice(
    stack: Stack, account: Account, receiver: Receiver
) -> None:
    receiver.behavior = lambda request, number: Response(delay=0.3)
    stack.start_web(workers=1)
    stack.start_workers({}, {})
    account.subscribe(receiver.url())
    posted = 0
    for supervised in list(stack.workers):
        # Enough for each of them, however quickly the other one has sent what was there before.
        seen = receiver.count
        for start in range(posted, posted + 300, 50):
            assert account.post_batch(*range(start, start + 50)).status == 202
        posted += 300
        wait_until(lambda seen=seen: receiver.count >= seen + 20, "deliveries don't go on")  # type: ignore[misc]
        # As in a rolling deploy: each worker ends, and another one takes its place.
        supervised.process.signal(signal.SIGTERM)
        wait_until(lambda one=supervised: one.restarts == 1, "the worker doesn't end")  # type: ignore[misc]
    wait_until_settled(stack)
    ids = Counter(request.headers["webhook-id"] for request in receiver.requests)
    assert len(ids) == posted
    assert set(ids.values()) == {1}
    assert stack.sql("SELECT DISTINCT status, attempt_count FROM webhooks_delivery") == [("delivered", 1)]


@pytest.mark.slow
def test_a_worker_that_ends_gives_its_leases_back_at_once(stack: Stack, account: Account, receiver: Receiver) -> None:
    receiver.behavior = lambda request, number: Response(delay=3600)
    stack.start_web(workers=1)
    stack.start_workers({"WORKER_SHUTDOWN_GRACE": "1s"})
    (worker,) = stack.workers
    account.subscribe(receiver.url())
    assert account.post_batch(*range(20)).status == 202
    wait_until(lambda: receiver.count >= 4, "nothing is on the wire")
    started = log_size(stack, "worker_1")
    worker.unwatch()
    worker.process.signal(signal.SIGTERM)
    # In flight at SIGTERM; by the settings' defaults their leases last for a minute.
    ends = stack.sql("SELECT min(lease_expires_at) FROM webhooks_delivery WHERE status = 'delivering'")[0][0]
    assert worker.process.wait(60) == 0
    assert stack.sql("SELECT DISTINCT status, lease_id FROM webhooks_delivery") == [("pending", None)]
    assert stack.sql("SELECT clock_timestamp() < %s", (ends,)) == [(True,)]
    assert stack.sql("SELECT in_flight FROM webhooks_subscriptionqueue") == [(0,)]
    assert "leases_released" in log_of(stack, "worker_1", started)
    # Another worker has them without waiting for anything to expire.
    receiver.behavior = lambda request, number: Response()
    stack.workers.clear()
    stack.start_workers({})
    wait_until_settled(stack)
    assert stack.sql("SELECT clock_timestamp() < %s + interval '1 minute'", (ends,)) == [(True,)]
    assert {request.headers["webhook-id"] for request in receiver.requests} == {
        str(row[0]) for row in stack.sql("SELECT id FROM events_event")
    }


@pytest.mark.slow
def test_workers_are_told_apart_by_random_names_and_not_by_process_ids(stack: Stack) -> None:
    stack.start_workers({}, {})

    def names() -> set[str]:
        return {name.decode().removeprefix("rq:worker:") for name in stack.redis.smembers("rq:workers")}

    known = wait_until(lambda: len(names()) == 2 and names(), "two workers aren't known")
    assert all(re.fullmatch("[0-9a-f]{32}", name) for name in known)
    # The same process id in another container would be the same number here: a restart takes other names.
    for supervised in stack.workers:
        supervised.process.kill()
    wait_until(lambda: len(names() - known) == 2, "the new workers took no new names")


@pytest.mark.slow
def test_a_recovery_goes_on_when_the_processes_that_began_it_are_killed(
    stack: Stack, account: Account, receiver: Receiver
) -> None:
    web = stack.start_web(workers=1)
    began = stack.sql("SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')")[0][0]
    stack.start_workers({})
    for start in range(0, 1500, 500):
        assert account.post_batch(*range(start, start + 500)).status == 202
    wait_until_settled(stack)
    subscription = account.subscribe(receiver.url())
    asked = account.call("POST", f"/api/subscriptions/{subscription}/recover", {"since": began})
    assert asked.status == 202, asked
    web.process.kill()
    stack.workers[0].process.kill()
    wait_until(lambda: web.restarts == 1 and web.alive, "gunicorn is not started again")
    web.process.wait_for_url(f"{stack.url}/api/health")
    wait_until(
        lambda: stack.sql("SELECT state, queued FROM webhooks_bulkrun") == [("done", 1500)], "the recovery doesn't end"
    )
    wait_until_settled(stack)
    assert len({request.headers["webhook-id"] for request in receiver.requests}) == 1500
    status = account.call("GET", asked.headers["location"])
    assert (status.status, status.document["status"], status.document["queued"]) == (200, "done", 1500)
