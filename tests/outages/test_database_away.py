"""Without PostgreSQL nothing is accepted and nothing forgotten; workers wait, and go on by themselves."""

from __future__ import annotations

import urllib.error
import urllib.request

import pytest

from devstack.http_receiver import Receiver, Response
from devstack.stack import Stack
from devstack.waiting import wait_until
from tests.system import (
    Account,
    assert_unavailable,
    events_stored,
    log_of,
    log_size,
    wait_until_settled,
)  # fmt: skip

WAITS = '"event":"database_unavailable"'


@pytest.fixture
def running(stack: Stack) -> Stack:
    """Return the stack with one web process and one worker."""
    stack.start_web(workers=1, env={"DB_POOL_TIMEOUT": "3s"})
    stack.start_workers({"WORKER_SHUTDOWN_GRACE": "1s"})
    return stack


def test_without_postgresql_the_api_says_503_with_retry_after_and_accepts_nothing(
    running: Stack, account: Account, receiver: Receiver
) -> None:
    account.subscribe(receiver.url())
    assert account.post_event(1).status == 202
    receiver.wait_for(1)
    wait_until_settled(running)
    started = {name: log_size(running, name) for name in ("web", "worker_1")}

    running.postgres.stop("immediate")
    for number in range(5):
        assert_unavailable(account.post_event(number, dedup_id=f"d{number}"))
        assert_unavailable(account.post_batch(1, 2, 3))
        assert_unavailable(account.call("GET", "/api/events"))
    assert account.call("GET", "/api/health").status == 200
    detailed = account.call("GET", "/api/health/detailed")
    assert (detailed.status, detailed.document["status"], detailed.document["database"]) == (503, "unhealthy", "down")
    request = urllib.request.Request(f"{running.url}/admin/", headers={"Cookie": "sessionid=somebodys"})
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=30)
    assert refused.value.code == 503
    assert b"The database is not responding" in refused.value.read()

    running.postgres.start()
    answer = wait_until(lambda: (got := account.post_event(0, dedup_id="d0")).status == 202 and got, "no 202 again")
    receiver.wait_for(2)
    wait_until_settled(running)
    # What was answered with 503 isn't there: the same dedup id was new.
    assert events_stored(running) == 2
    assert receiver.requests[-1].headers["webhook-id"] == answer.document["id"]
    assert running.workers[0].restarts == 0
    for name, start in started.items():
        assert "Traceback" not in log_of(running, name, start)


@pytest.mark.slow
def test_web_and_worker_that_start_before_postgresql_wait_for_it_and_say_so(
    stack: Stack, account: Account, receiver: Receiver
) -> None:
    stack.postgres.stop("fast")
    starts = {name: log_size(stack, name) for name in ("web", "worker_1")}
    worker = stack.make_worker(1).start()
    try:
        stack.start_web(workers=1)  # which answers, if only /api/health
        for name, start in starts.items():
            wait_until(
                lambda name=name, start=start: '"event":"database_unavailable"' in log_of(stack, name, start), name
            )
        assert_unavailable(account.post_event(1))
        stack.postgres.start()
        wait_until(lambda: account.call("GET", "/api/me").status == 200, "no 200 after PostgreSQL came")
        account.subscribe(receiver.url())
        assert account.post_event(2).status == 202
        receiver.wait_for(1)
        assert worker.alive
        for name, start in starts.items():
            said = log_of(stack, name, start)
            assert said.count(WAITS) == 1
            assert "DATABASE_URL" in said
            assert "Traceback" not in said
    finally:
        worker.stop()


@pytest.mark.slow
def test_a_response_that_comes_while_postgresql_is_away_is_recorded_when_it_is_back(
    running: Stack, account: Account, receiver: Receiver
) -> None:
    account.subscribe(receiver.url())
    receiver.behavior = lambda request, number: Response(delay=1.5)
    started = log_size(running, "worker_1")
    assert account.post_event(1).status == 202
    receiver.wait_for(1)
    running.sql("CHECKPOINT")  # a crash may forget a claim whose commit isn't on the disk yet; not this one
    running.postgres.stop("immediate")
    wait_until(lambda: "record_failed" in log_of(running, "worker_1", started), "the result was not kept")
    running.postgres.start()
    wait_until_settled(running)
    assert running.sql("SELECT status, attempt_count FROM webhooks_delivery") == [("delivered", 1)]
    assert running.sql("SELECT number, status_code, error FROM webhooks_deliveryattempt") == [(1, 200, "")]
    assert receiver.count == 1


@pytest.mark.slow
def test_no_database_transaction_is_open_while_a_receiver_thinks(
    running: Stack, account: Account, receiver: Receiver
) -> None:
    account.subscribe(receiver.url())
    receiver.hold()
    assert account.post_event(1).status == 202
    receiver.wait_for(1)
    wait_until(
        lambda: (
            not running.sql(
                "SELECT 1 FROM pg_stat_activity WHERE usename = 'worker_1' AND state <> 'idle'"
                " AND xact_start < clock_timestamp() - interval '500 ms'"
            )
        ),
        "a transaction stays open",
    )
    assert running.sql("SELECT status FROM webhooks_delivery") == [("delivering",)]
    # Nobody holds a lock on its row either.
    assert running.sql("SELECT count(*) FROM (SELECT 1 FROM webhooks_delivery FOR UPDATE NOWAIT) AS free") == [(1,)]
