"""A worker that is killed leaves nothing behind that holds up another; `make soak` kills more, see tests/soak."""

from __future__ import annotations

import pytest

from devstack.stack import Stack
from devstack.waiting import wait_until
from tests.system import Account


@pytest.mark.slow
def test_a_worker_killed_in_a_wake_up_leaves_nothing_of_it_in_redis(stack: Stack, account: Account) -> None:
    stack.start_web(workers=1)
    assert account.post_event().status == 202
    with stack.connect() as blocker:
        blocker.execute("BEGIN")
        blocker.execute("LOCK TABLE events_event IN EXCLUSIVE MODE")
        stack.start_workers({})
        wait_until(
            lambda: stack.sql("SELECT 1 FROM pg_stat_activity WHERE usename = 'worker_1' AND wait_event_type = 'Lock'"),
            "no fan-out waits for the lock",
        )
        wait_until(lambda: stack.redis.llen("rq:queue:events") == 0, "no wake-up is followed")
        # It is taken from the queue a moment before it is deleted; `make soak` finds what a kill between the two does.
        wait_until(lambda: not stack.redis.keys("rq:job:*"), "a wake-up that is followed stays in Redis")
        stack.workers[0].unwatch()
        stack.workers[0].process.kill()
        blocker.execute("ROLLBACK")
    assert stack.redis.keys("rq:job:*") == []
