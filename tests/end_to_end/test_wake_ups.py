"""Of the ways in which a worker hears of an event, each suffices."""

from __future__ import annotations

import json
import uuid

import pytest

from core.wakeups import SIGNAL
from devstack.http_receiver import Receiver
from devstack.processes import manage
from devstack.stack import Stack
from devstack.waiting import wait_until
from tests.system import Account

pytestmark = pytest.mark.end_to_end


def _store_event(stack: Stack, account: Account) -> None:
    """Store an event as an accepted one is, and tell nobody."""
    stack.sql(
        "INSERT INTO events_event (id, organization_id, type, data, status, failed_attempts, last_error, due_at,"
        " created_at) VALUES (%s, %s, 'order.created', '1', 'accepted', 0, '', now(), now())",
        (str(uuid.uuid4()), account.id),
    )


@pytest.mark.slow
@pytest.mark.parametrize("how", ["signal", "RQ job", "sweep"])
def test_each_way_of_waking_a_worker_suffices(stack: Stack, account: Account, receiver: Receiver, how: str) -> None:
    stack.start_web(workers=1)
    account.subscribe(receiver.url())
    assert account.post_event(0).status == 202
    # Without the sweep, nothing but the wake-up leads to the event.
    stack.start_workers({"SWEEP_INTERVAL": "1s" if how == "sweep" else "1m"})
    wait_until(lambda: stack.redis.scard("rq:workers") == 1, "the worker doesn't listen")
    receiver.wait_for(1)
    stack.redis.flushall()
    _store_event(stack, account)
    if how == "signal":
        stack.redis.execute_command(*SIGNAL)
    elif how == "RQ job":
        manage("shell", "-c", "from core.wakeups import wake; assert wake('events')", env=stack.environment())
    received = receiver.wait_for(2, timeout=40)  # the sweep would come later
    assert json.loads(received[1].body)["data"] == 1
