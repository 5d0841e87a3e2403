"""What there is to tell survives the worker that noticed it."""

from __future__ import annotations

import json

import pytest
from standardwebhooks import Webhook

from devstack.http_receiver import Receiver, Response
from devstack.stack import Stack
from devstack.waiting import wait_until
from tests.system import Account


@pytest.mark.slow
def test_a_worker_killed_before_it_told_loses_no_notification(
    stack: Stack, account: Account, receiver: Receiver
) -> None:
    receiver.behavior = lambda request, number: Response(410 if request.path == "/gone" else 200)
    stack.start_web(workers=1)
    secret = account.make_subscription(receiver.url("/ops"), operational=True)["secret"]
    gone = account.make_subscription(receiver.url("/gone"))
    env = {"OPERATOR_WEBHOOK_URL": receiver.url("/operator")}
    stack.start_workers({**env, "SWEEP_INTERVAL": "60s"})  # it lives without a sweep
    assert account.post_event().status == 202
    wait_until(lambda: stack.sql("SELECT 1 FROM webhooks_subscription WHERE NOT is_active"), "nothing was disabled")
    stack.workers[0].unwatch()
    stack.workers[0].process.kill()
    assert not receiver.of("/ops")
    stack.workers.clear()
    stack.start_workers(env)
    (request,) = receiver.wait_for(1, "/ops")
    Webhook(secret).verify(request.body, {name.lower(): value for name, value in request.headers.items()})
    document = json.loads(request.body)
    assert document["type"] == "triggers.endpoint.disabled"
    assert document["data"]["subscription"]["id"] == gone["id"]
    (told,) = receiver.wait_for(1, "/operator")
    assert json.loads(told.body)["data"]["organization"]["name"] == "Acme"
    wait_until(lambda: stack.sql("SELECT count(*) FROM webhooks_operatormessage") == [(0,)], "it is sent again")
    assert (len(receiver.of("/ops")), len(receiver.of("/operator"))) == (1, 1)
