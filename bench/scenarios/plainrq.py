"""The same events through our worker and through plain RQ."""

from __future__ import annotations

import time

from bench import baseline
from bench.figures import Figure
from bench.stack import BenchStack
from devstack.http_receiver import ReceiverProcess
from devstack.waiting import wait_until

EVENTS = 5_000
# The forking worker needs about 20 ms for each job: a sample gives the rate.
SAMPLES = {"SimpleWorker": 5_000, "Worker": 750}


def plain_rq(stack: BenchStack) -> list[Figure]:
    """5,000 events end to end, one subscription: ours, and one RQ job per event and per delivery."""
    rates = {}
    with stack.receiver() as receiver:
        rates["ours"] = _ours(stack, receiver)
        for kind, events in SAMPLES.items():
            rates[kind] = _plain(stack, receiver, kind, events)
    name = "plain-rq"
    return [
        Figure(name, "end to end, ours", rates["ours"], "events/s"),
        Figure(name, "end to end, SimpleWorker", rates["SimpleWorker"], "events/s"),
        Figure(name, f"end to end, Worker ({SAMPLES['Worker']} events)", rates["Worker"], "events/s"),
        Figure(name, "ours against SimpleWorker", rates["ours"] / rates["SimpleWorker"], "times", ">= 15"),
        Figure(name, "ours against Worker", rates["ours"] / rates["Worker"], "times", ">= 15"),
    ]


def _ours(stack: BenchStack, receiver: ReceiverProcess) -> float:
    stack.reset()
    tenant = stack.tenant()
    stack.subscribe(tenant, receiver.url("/ok/ours"))
    with stack.running_worker():
        stack.accept_events(tenant, 100)
        stack.wake_fan_out()
        stack.wait_until_delivered()
        already = receiver.count()
        started = time.perf_counter()
        stack.accept_events(tenant, EVENTS)
        stack.wake_fan_out()
        stack.wait_until_delivered()
        seconds = time.perf_counter() - started
    assert receiver.count() - already == EVENTS
    return EVENTS / seconds


def _plain(stack: BenchStack, receiver: ReceiverProcess, kind: str, events: int) -> float:
    stack.reset()
    tenant = stack.tenant()
    stack.subscribe(tenant, receiver.url(f"/ok/{kind}"))
    before = stack.redis.scard("rq:workers")
    worker = baseline.start_worker(kind, stack.logs / "baseline.log")
    try:
        wait_until(lambda: stack.redis.scard("rq:workers") > before, "the plain worker didn't start")
        stack.accept_events(tenant, events)
        ids = [row[0] for row in stack.sql("SELECT id FROM events_event")]
        started = time.perf_counter()
        baseline.enqueue(ids)
        stack.wait_until("SELECT count(*) = %s FROM webhooks_delivery WHERE status = 'delivered'", (events,))
        return events / (time.perf_counter() - started)
    finally:
        worker.terminate()
        try:
            worker.wait(10)
        except Exception:
            worker.kill()
