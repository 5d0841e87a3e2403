"""A backlog is sent by a worker's second process: it may hang, be killed or outlive the worker, and nothing is lost."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from core.process import NICENESS
from devstack import pids
from devstack.http_receiver import Received, Receiver, Response
from devstack.stack import Stack
from devstack.waiting import wait_until
from tests.system import Account, log_of, wait_until_settled
from webhooks.dispatch.backlog_sender import HEARTBEAT_SECONDS, BacklogSender
from webhooks.upkeep.bulk_runs import CHUNK
from webhooks.upkeep.sweep import RUN_SLICE_SECONDS

BACKLOG = 400
# As many as a run has to take some time for.
EVENTS = 10_000
QUICK = {"DELIVERY_TIMEOUT": "1s", "LEASE_MARGIN": "2s", "WORKER_SHUTDOWN_GRACE": "5s"}
PATIENT = {"DELIVERY_TIMEOUT": "30s", "LEASE_MARGIN": "600s", "WORKER_SHUTDOWN_GRACE": "5s"}


def _behave(request: Received, number: int) -> Response:
    return Response(delay=0.05 if request.path == "/busy" else 0.0)


def _with_backlog(stack: Stack, account: Account, receiver: Receiver, env: dict[str, str]) -> int:
    """Start everything with a backlog that lasts for ten seconds; return the busy queues' process."""
    (stack.logs / "worker_1.log").unlink(missing_ok=True)  # of the test before
    receiver.behavior = _behave
    stack.start_web(workers=1)
    account.make_subscription(receiver.url("/busy"), "order.created", max_in_flight=2)
    account.make_subscription(receiver.url("/quiet"), "quiet")
    stack.start_workers(env)
    account.post_batch(*range(BACKLOG))
    wait_until(lambda: _told(stack, "started"), "no process for the busy queues")
    (pid,) = stack.worker_processes(1)[1:]
    return pid


def _told(stack: Stack, what: str) -> int:
    """Return how often the worker has logged that the process has started, or ended."""
    return log_of(stack, "worker_1").count(f'"backlog_sender_{what}"')


def _counter(receiver: Receiver, path: str) -> Callable[[], int]:
    return lambda: sum(request.path == path for request in list(receiver.requests))


def _grows(count: Callable[[], int]) -> None:
    before = count()
    wait_until(lambda: count() > before, "nothing more comes")


def _claimed(stack: Stack) -> int:
    return int(stack.sql("SELECT count(*) FROM webhooks_delivery WHERE status = 'delivering'")[0][0])


@contextlib.contextmanager
def _busy_processors() -> Iterator[None]:
    """Keep all processors busy for the block."""
    number = 2 * (os.cpu_count() or 1)
    spinning = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(number)]
    try:
        yield
    finally:
        for process in spinning:
            process.kill()
            process.wait()


def _gives_way(stack: Stack, account: Account) -> bool:
    """Have others served; tell whether the backlog's process has given way to them."""
    account.call("POST", "/api/events", {"type": "quiet", "data": 0})
    return '"gives_way"' in log_of(stack, "worker_1")


@pytest.mark.slow
def test_each_of_a_worker_s_two_processes_sends_for_its_own_queues(
    stack: Stack, account: Account, receiver: Receiver
) -> None:
    helper = _with_backlog(stack, account, receiver, PATIENT)
    busy, quiet = _counter(receiver, "/busy"), _counter(receiver, "/quiet")
    own = os.getpriority(os.PRIO_PROCESS, stack.workers[0].pid)
    assert os.getpriority(os.PRIO_PROCESS, helper) == min(19, own + NICENESS), "it gives way"
    os.kill(helper, signal.SIGSTOP)
    try:
        for number in range(1, 4):
            account.call("POST", "/api/events", {"type": "quiet", "data": number})
            wait_until(lambda n=number: quiet() == n, "the quiet queue waits for the busy one's process")  # type: ignore[misc]
        assert busy() < BACKLOG  # which goes on with its own process
    finally:
        os.kill(helper, signal.SIGCONT)
    _grows(busy)
    with _busy_processors():
        wait_until(lambda: _gives_way(stack, account), "it doesn't give way")
    wait_until_settled(stack, 200)
    assert busy() == BACKLOG
    wait_until(
        lambda: not stack.sql("SELECT 1 FROM webhooks_subscriptionqueue WHERE has_backlog AND next_due_at IS NOT NULL"),
        "no claim finds that nothing is left",
    )


@pytest.mark.slow
def test_a_worker_whose_second_process_is_killed_sends_for_all_and_starts_another(
    stack: Stack, account: Account, receiver: Receiver
) -> None:
    helper = _with_backlog(stack, account, receiver, QUICK)
    worker = stack.workers[0].pid
    os.kill(helper, signal.SIGKILL)
    wait_until(lambda: _told(stack, "ended"), "nobody noticed")
    _grows(_counter(receiver, "/busy"))
    wait_until_settled(stack, 200)
    assert _told(stack, "started") >= 2
    assert stack.workers[0].pid == worker
    assert _counter(receiver, "/busy")() <= BACKLOG + 2  # what was on the wire at the kill came again
    assert stack.sql("SELECT count(*) FROM webhooks_delivery WHERE status = 'delivered'") == [(BACKLOG,)]


@contextlib.contextmanager
def _slow_runs(stack: Stack, seconds: float) -> Iterator[None]:
    """Have each chunk of a run take so long."""
    stack.sql(
        "CREATE FUNCTION slow_run() RETURNS trigger LANGUAGE plpgsql AS"
        f" 'BEGIN PERFORM pg_sleep({seconds}); RETURN NEW; END'"
    )
    stack.sql("CREATE TRIGGER slow_run BEFORE UPDATE ON webhooks_bulkrun FOR EACH ROW EXECUTE FUNCTION slow_run()")
    try:
        yield
    finally:
        stack.sql("DROP FUNCTION slow_run CASCADE")


@pytest.mark.slow
def test_a_run_that_takes_longer_than_a_slice_is_advanced_by_the_second_process(
    stack: Stack, account: Account, receiver: Receiver
) -> None:
    (stack.logs / "worker_1.log").unlink(missing_ok=True)
    stack.start_web(workers=1)
    for first in range(0, EVENTS, 1_000):
        account.post_batch(*range(first, first + 1_000))
    stack.start_workers(PATIENT)
    wait_until(lambda: stack.sql("SELECT 1 FROM events_event WHERE status <> 'processed' LIMIT 1") == [])

    def queued() -> int:
        return int(stack.sql("SELECT queued FROM webhooks_bulkrun")[0][0])

    with _slow_runs(stack, 4 * RUN_SLICE_SECONDS):
        subscription = account.subscribe(receiver.url("/run"))
        # Nothing is sent: a worker that is stopped while it claims or records would hold the lock that the run needs.
        stack.sql("UPDATE webhooks_subscriptionqueue SET paused_until = now() + interval '1 day'")
        begun = account.call("POST", f"/api/subscriptions/{subscription}/recover", {"since": "2000-01-01T00:00:00Z"})
        assert begun.status == 202, begun
        wait_until(lambda: _told(stack, "started"), "no process for the run")
        before = queued()
        wait_until(lambda: queued() >= before + 2 * CHUNK, "nobody advances the run")
        before = queued()
        os.kill(stack.workers[0].pid, signal.SIGSTOP)
        try:
            wait_until(lambda: queued() >= before + 2 * CHUNK, "the run waits for the worker")
        finally:
            os.kill(stack.workers[0].pid, signal.SIGCONT)
    wait_until(lambda: queued() == EVENTS)
    assert stack.sql("SELECT count(*), count(DISTINCT event_id) FROM webhooks_delivery") == [(EVENTS, EVENTS)]


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_process_whose_worker_ends_gives_back_what_it_has_claimed_and_ends(
    stack: Stack, account: Account, receiver: Receiver, how: signal.Signals
) -> None:
    helper = _with_backlog(stack, account, receiver, PATIENT)
    for _ in range(10):  # so that the worker itself has nothing claimed any more
        _grows(_counter(receiver, "/busy"))
    wait_until(
        lambda: stack.sql("SELECT 1 FROM webhooks_subscriptionqueue WHERE has_backlog AND in_flight > 0"),
        "nothing is sent",
    )
    stack.workers[0].unwatch()
    os.kill(stack.workers[0].pid, how)
    wait_until(lambda: not pids.alive(helper), "the process stays")
    if how == signal.SIGTERM:
        assert stack.workers[0].process.wait(30) == 0
    assert _claimed(stack) == 0
    assert stack.sql("SELECT count(*) FROM webhooks_delivery WHERE status = 'pending'")[0][0] > 0
    assert stack.sql("SELECT sum(in_flight) FROM webhooks_subscriptionqueue") == [(0,)]


def test_a_process_that_sends_no_heartbeat_is_killed() -> None:
    async def run() -> list[Any]:
        ended = asyncio.Event()
        backlog_sender = BacklogSender(on_end=ended.set)
        backlog_sender.start()
        async with asyncio.timeout(120):
            while not backlog_sender.is_ready:
                await asyncio.sleep(0.05)
            assert backlog_sender._process is not None
            # Not before: on a busy machine its start is a long silence.  It counts from the next heartbeat on.
            backlog_sender._silence_seconds = 1.25
            await asyncio.sleep(2 * HEARTBEAT_SECONDS)
            pid = backlog_sender._process.pid
            os.kill(pid, signal.SIGSTOP)
            stopped = time.monotonic()
            await ended.wait()
            assert time.monotonic() - stopped >= 1.25
        return [backlog_sender.is_ready, backlog_sender._process, pids.alive(pid)]

    assert asyncio.run(run()) == [False, None, False]
