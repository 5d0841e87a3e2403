"""Behind PgBouncer in transaction mode every transaction may run on another session, and nothing notices."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from devstack.errors import DevstackError
from devstack.http_receiver import Receiver
from devstack.pgbouncer import PgBouncer, find
from devstack.processes import ROOT
from devstack.sql import uuid7
from devstack.stack import ROLES, Stack
from devstack.waiting import wait_until
from tests.servers import HOME
from tests.system import (
    Account,
    assert_unavailable,
    events_stored,
    log_of,
    wait_until_settled,
)

pytestmark = pytest.mark.slow

EVENTS = 200
SETTINGS = {"DB_PREPARED_STATEMENTS": "false", "DELIVERY_TIMEOUT": "3s", "LEASE_MARGIN": "2s", "DB_POOL_TIMEOUT": "5s"}


@pytest.fixture(scope="module")
def pooler(servers: Stack) -> Iterator[PgBouncer]:
    """Return a PgBouncer with three sessions for each role of the stack."""
    try:
        find()
    except DevstackError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
    pooler = PgBouncer(HOME / "pgbouncer", servers.postgres.url(), ROLES)
    yield pooler.start()
    pooler.stop()


def _through(pooler: PgBouncer, role: str, **more: str) -> dict[str, str]:
    return {**SETTINGS, "DATABASE_URL": pooler.url(role), **more}


@pytest.fixture
def running(stack: Stack, pooler: PgBouncer) -> Stack:
    """Return the stack with two web processes and two workers, which reach PostgreSQL only through the pooler."""
    stack.start_web(workers=2, env=_through(pooler, "web"))
    stack.start_workers(_through(pooler, "worker_1"), _through(pooler, "worker_2"))
    return stack


def _post(account: Account, numbers: range) -> None:
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda number: account.post_event(number, dedup_id=str(number)), numbers))
    assert {answer.status for answer in answers} == {202}


def test_many_processes_share_few_sessions_and_everything_is_delivered_once(
    running: Stack, pooler: PgBouncer, account: Account
) -> None:
    with Receiver() as receiver:
        account.subscribe(receiver.url())
        _post(account, range(EVENTS))
        assert account.post_batch(*range(EVENTS, EVENTS + 50)).status == 202
        assert account.post_event(0, dedup_id="0").status == 200, "a duplicate"
        wait_until_settled(running)
        assert receiver.count == EVENTS + 50
        assert account.call("GET", "/api/deliveries?limit=5").status == 200
        assert account.call("GET", "/api/health/detailed").status == 200

    clients = [client["user"] for client in pooler.show("CLIENTS")]
    sessions = [server["user"] for server in pooler.show("SERVERS")]
    assert all(0 < sessions.count(role) <= 3 for role in ROLES), sessions
    assert all(clients.count(role) for role in ROLES), clients
    assert clients.count("web") > 3, "the pool was never small"
    for name in ("web", "worker_1", "worker_2"):
        assert "prepared statement" not in log_of(running, name)
        assert "Traceback" not in log_of(running, name)


def test_a_killed_worker_s_leases_come_back_through_the_pooler_and_the_sweep_goes_on(
    stack: Stack, pooler: PgBouncer, account: Account
) -> None:
    stack.start_web(workers=1, env=_through(pooler, "web"))
    stack.start_workers(_through(pooler, "worker_1"))
    with Receiver() as receiver:
        receiver.hold()
        account.subscribe(receiver.url())
        assert account.post_event(1).status == 202
        receiver.wait_for(1)
        stack.workers[0].unwatch()
        stack.workers[0].process.kill()
        receiver.release()
        stack.start_workers(_through(pooler, "worker_1"))
        first, second = receiver.wait_for(2, timeout=60)
        assert first.headers["webhook-id"] == second.headers["webhook-id"]
        # No wake-up tells of this one: the sweep finds it.
        stack.sql(
            "INSERT INTO events_event (id, organization_id, type, data, status, failed_attempts, last_error)"
            f" SELECT {uuid7()}, organization_id, type, data, 'accepted', 0, '' FROM events_event LIMIT 1"
        )
        receiver.wait_for(3, timeout=60)
        wait_until_settled(stack)
    assert stack.sql("SELECT DISTINCT status FROM webhooks_delivery") == [("delivered",)]
    assert stack.sql("SELECT error FROM webhooks_deliveryattempt WHERE error <> ''") == [("worker_lost",)]


def test_a_pooler_or_a_database_that_restarts_is_an_outage_like_any_other(
    running: Stack, pooler: PgBouncer, account: Account
) -> None:
    with Receiver() as receiver:
        account.subscribe(receiver.url())
        _post(account, range(10))
        receiver.wait_for(10)
        wait_until_settled(running)

        running.postgres.stop("fast")
        assert_unavailable(account.post_event(10))
        running.postgres.start()
        wait_until(lambda: account.post_event(11).status == 202, "no 202 after PostgreSQL came back")
        receiver.wait_for(11, timeout=60)
        wait_until_settled(running)

        pooler.stop()
        assert_unavailable(account.post_event(12))
        pooler.start()
        wait_until(lambda: account.post_event(13).status == 202, "no 202 after PgBouncer came back")
        receiver.wait_for(12, timeout=60)
        wait_until_settled(running)
        assert events_stored(running) == len({request.headers["webhook-id"] for request in receiver.requests})
    assert [worker.restarts for worker in running.workers] == [0, 0]


def test_a_startup_parameter_that_the_pooler_refuses_is_one_line(stack: Stack, pooler: PgBouncer) -> None:
    worker = stack.make_worker(1, _through(pooler, "worker_1"))
    refused = {**worker.env, "DATABASE_URL": f"{pooler.url('worker_1')}?options=-c%20statement_timeout%3D5s"}
    ended = subprocess.run(
        worker.command, cwd=ROOT, env=refused, capture_output=True, text=True, timeout=60, check=False
    )
    (line,) = ended.stderr.splitlines()
    assert ended.returncode == 1
    assert "DATABASE_URL" in line
    assert "unsupported startup parameter" in line
