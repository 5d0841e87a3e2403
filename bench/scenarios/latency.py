"""How long one event takes at a steady 100 a second, with healthy and with hanging endpoints."""

from __future__ import annotations

from bench.client import Outcome
from bench.figures import Figure
from bench.load import Load, send
from bench.stack import BenchStack
from bench.stats import duplicates, percentile

RATE = 100.0
SECONDS = 20
ROUNDS = 2
WARM_UP = 200
RECEIVERS = 4


def healthy(stack: BenchStack) -> list[Figure]:
    """Paced 100 events/s, a healthy endpoint: API, accept to processed, accept to received."""
    tenant = stack.tenant()
    with stack.receiver() as receiver, stack.running_web(), stack.running_worker():
        stack.subscribe(tenant, receiver.url("/ok/1"))
        _warm_up(stack, stack.url, tenant.key)
        stack.sql("TRUNCATE events_event, webhooks_delivery, webhooks_deliveryattempt")
        receiver.take()
        outcome = send(Load(stack.url, tenant.key, int(RATE * SECONDS * 1.5), 50, RATE))
        stack.wait_until_delivered()
        taken = receiver.take()
        processed, arrived = _processing_times(stack), stack.arrival_times(taken)
    name = "latency"
    return [
        Figure(name, "API p95", percentile(outcome.latencies, 0.95) * 1000, "ms", "< 10"),
        Figure(name, "API p99", percentile(outcome.latencies, 0.99) * 1000, "ms"),
        Figure(name, "accept to processed p50", percentile(processed, 0.5), "ms"),
        Figure(name, "accept to processed p95", percentile(processed, 0.95), "ms", "< 50"),
        Figure(name, "accept to received p50", percentile(arrived, 0.5), "ms"),
        Figure(name, "accept to received p95", percentile(arrived, 0.95), "ms", "< 100"),
        Figure(name, "returned 202", outcome.share(202) * 100, "%", ">= 100"),
        Figure(name, "not delivered", outcome.requests - len({event for _, event, _ in taken}), "events", "= 0"),
        Figure(name, "delivered twice", duplicates(taken), "deliveries", "= 0"),
    ]


def hanging(stack: BenchStack) -> list[Figure]:
    """Paced 100 events/s, every endpoint hanging 30 s, against instant ones; rounds take turns."""
    latencies: dict[str, list[float]] = {"ok": [], "hang": []}
    answered = []
    with stack.receiver() as receiver, stack.running_web():
        for _ in range(ROUNDS):
            for kind in ("ok", "hang"):
                stack.reset()
                tenant = stack.tenant()
                for number in range(RECEIVERS):
                    stack.subscribe(tenant, receiver.url(f"/{kind}/{number}"))
                with stack.running_worker():
                    _warm_up(stack, stack.url, tenant.key, wait=kind == "ok")
                    outcome = send(Load(stack.url, tenant.key, int(RATE * SECONDS), 50, RATE))
                latencies[kind] += outcome.latencies
                answered.append(outcome.share(202))
    instant, hung = (percentile(latencies[kind], 0.95) * 1000 for kind in ("ok", "hang"))
    return [
        Figure("hanging", "API p95, instant endpoints", instant, "ms"),
        Figure("hanging", "API p95, hanging endpoints", hung, "ms", "< 10"),
        Figure("hanging", "ratio of the two", hung / instant, "", "<= 1.3"),
        Figure("hanging", "returned 202", min(answered) * 100, "%", ">= 100"),
    ]


def _warm_up(stack: BenchStack, url: str, key: str, *, wait: bool = True) -> Outcome:
    """Send a second's worth, so that connections, plans and windows are what they are in a steady state."""
    outcome = send(Load(url, key, WARM_UP, 16, RATE * 2))
    if wait:
        stack.wait_until_delivered()
    return outcome


def _processing_times(stack: BenchStack) -> list[float]:
    """Return the milliseconds from accepting to processing, of every processed event."""
    return [
        float(row[0])
        for row in stack.sql(
            "SELECT extract(epoch FROM processed_at - created_at) * 1000 FROM events_event WHERE status = 'processed'"
        )
    ]
