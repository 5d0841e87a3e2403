"""What an operator sees: many processes that share the work, and commands that repair it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter

import pytest

from devstack.http_receiver import Received, Receiver, Response
from devstack.processes import ROOT
from devstack.stack import Stack
from devstack.waiting import wait_until
from tests.system import Account, wait_until_settled

pytestmark = pytest.mark.end_to_end


def _manage(stack: Stack, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a management command on the servers, as an operator would."""
    env = {**os.environ, **stack.env, "DATABASE_URL": stack.postgres.url(), "REDIS_URL": stack.valkey.url()}
    return subprocess.run(
        [sys.executable, "manage.py", *arguments], cwd=ROOT, env=env, capture_output=True, text=True, timeout=100,
        check=False,
    )  # fmt: skip


def _counts(receiver: Receiver) -> Counter[tuple[str, str]]:
    return Counter((request.path, request.headers["webhook-id"]) for request in list(receiver.requests))


def test_two_workers_send_every_delivery_of_2000_events_to_3_subscriptions_once(
    stack: Stack, account: Account, receiver: Receiver
) -> None:
    stack.start_web()
    stack.start_workers({}, {})
    for number in range(3):
        account.subscribe(receiver.url(f"/{number}"))
    accepted: set[str] = set()
    for start in range(0, 2000, 500):
        answer = account.post_batch(*range(start, start + 500))
        assert answer.document["accepted"] == 500
        accepted |= {item["id"] for item in answer.document["data"]}
    wait_until(lambda: receiver.count >= 6_000, "not everything came", 90)
    wait_until_settled(stack)
    assert _counts(receiver) == Counter({(f"/{n}", event): 1 for n in range(3) for event in accepted})
    attempts = stack.sql(
        "SELECT d.status, d.attempt_count, count(*), count(DISTINCT (d.event_id, d.subscription_id))"
        " FROM webhooks_delivery d GROUP BY 1, 2"
    )
    assert attempts == [("delivered", 1, 6_000, 6_000)]
    assert stack.sql("SELECT count(*) FROM webhooks_deliveryattempt WHERE error = ''") == [(6_000,)]


@pytest.mark.slow
def test_a_replay_after_a_receiver_s_outage_delivers_exactly_what_failed(stack: Stack, account: Account) -> None:
    down = False

    def goes_down(request: Received, number: int) -> Response:
        return Response(503 if down else 200)

    stack.start_web(workers=1)
    # Two attempts, close together: the outage outlasts them.
    stack.start_workers({"DELIVERY_RETRY_SCHEDULE": "0s,100ms", "BREAKER_THRESHOLD": "0"})
    with Receiver(goes_down) as broken, Receiver() as steady:
        account.subscribe(broken.url("/broken"))
        account.subscribe(steady.url("/steady"))
        before = {account.post_event(number).document["id"] for number in range(5)}
        wait_until_settled(stack)
        down = True
        missed = {account.post_event(number).document["id"] for number in range(20)}
        wait_until_settled(stack)
        assert stack.sql("SELECT count(*) FROM webhooks_delivery WHERE status = 'failed'") == [(20,)]
        down = False
        broken.requests.clear()
        steady.requests.clear()

        counted = _manage(stack, "replay_deliveries", "--status", "failed", "--since", "1h", "--dry-run")
        assert counted.stdout.startswith("20 deliveries would"), counted.stderr
        assert broken.requests == []
        replayed = _manage(stack, "replay_deliveries", "--status", "failed", "--since", "1h")
        assert replayed.stdout == "20 deliveries replayed.\n", replayed.stderr
        wait_until_settled(stack)
        assert _counts(broken) == Counter({("/broken", event): 1 for event in missed})
        assert not missed & before
        assert steady.requests == []
    causes = stack.sql(
        "SELECT cause, count(*) FROM webhooks_deliveryattempt WHERE error = '' GROUP BY cause ORDER BY cause"
    )
    assert causes == [("replay", 20), ("schedule", 30)]


@pytest.mark.slow
def test_a_key_from_the_command_works_alone_and_ends_on_every_process_at_once(stack: Stack, account: Account) -> None:
    stack.start_web(workers=4)
    made = _manage(stack, "create_org", "Captured")
    key = _manage(stack, "create_api_key", "Captured").stdout
    assert made.returncode == 0
    assert key.startswith("trk_")
    assert key.count("\n") == 1, "the key alone is on stdout"
    captured = Account(stack.url, key.strip())
    # New connections each time: the four processes take turns in accepting them.
    assert {captured.call("GET", "/api/me").status for _ in range(40)} == {200}
    me = captured.call("GET", "/api/me").document["key"]["id"]
    assert captured.call("DELETE", f"/api/keys/{me}").status == 204
    assert {captured.call("GET", "/api/me").status for _ in range(40)} == {401}
    assert account.call("GET", "/api/me").status == 200


@pytest.mark.slow
def test_with_deliveries_switched_off_they_wait_and_go_out_when_it_is_over(
    stack: Stack, account: Account, receiver: Receiver
) -> None:
    stack.start_web(workers=1)
    stack.start_workers({"DISABLE_WEBHOOK_DELIVERY": "true"})
    account.subscribe(receiver.url())
    events = {account.post_event(number).document["id"] for number in range(10)}
    wait_until(
        lambda: stack.sql("SELECT count(*) FROM webhooks_delivery WHERE status = 'pending'") == [(10,)],
        "the fan-out went on",
    )
    assert account.call("GET", "/api/health/detailed").document["queues"]["webhook_queue_length"] == 10
    assert receiver.count == 0
    (worker,) = stack.workers
    worker.stop()
    stack.workers.clear()
    stack.start_workers({})
    assert {request.headers["webhook-id"] for request in receiver.wait_for(10)} == events


def test_a_wrong_setting_ends_the_worker_with_one_line(stack: Stack) -> None:
    env = {**os.environ, **stack.env, "DATABASE_URL": stack.postgres.url(), "REDIS_URL": stack.valkey.url(),
           "MAX_CONCURRENT_DELIVERIES": "many"}  # fmt: skip
    done = subprocess.run(
        [sys.executable, "manage.py", "rqworker", "events", "webhooks"], cwd=ROOT, env=env, capture_output=True,
        text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    (line,) = done.stderr.strip().splitlines()
    assert "MAX_CONCURRENT_DELIVERIES is wrong: expected a whole number" in line


@pytest.mark.slow
def test_health_says_what_is_true_while_work_is_under_way(stack: Stack, account: Account) -> None:
    stack.start_web(workers=1)
    stack.start_workers({})

    def hangs(request: Received, number: int) -> Response:
        return Response(delay=30)

    with Receiver(hangs) as receiver:
        account.subscribe(receiver.url())
        for number in range(3):
            account.post_event(number)
        receiver.wait_for(3)
        health = account.call("GET", "/api/health/detailed")
        assert health.status == 200, json.dumps(health.document)
        queues = health.document["queues"]
        assert queues["webhook_pending_processing"] == 3
        assert queues["event_queue_length"] == queues["webhook_queue_length"] == 0
        assert health.document["workers"] == 1
