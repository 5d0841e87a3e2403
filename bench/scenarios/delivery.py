"""How fast one worker process sends what is due."""

from __future__ import annotations

from bench import transport_only
from bench.figures import Figure
from bench.rates import drain
from bench.stack import BenchStack
from bench.stats import median

WARM_UP = 2_000
DELIVERIES = 50_000
SUBSCRIPTIONS = 10
CLIENT_REQUESTS = 15_000
CONCURRENCY = 512  # MAX_CONCURRENT_DELIVERIES


def delivery(stack: BenchStack) -> list[Figure]:
    """50,000 due deliveries, one worker, instant receiver; the HTTP client alone before and after."""
    tenant = stack.tenant()
    with stack.receiver() as receiver:
        urls = [receiver.url(f"/ok/{number}") for number in range(SUBSCRIPTIONS)]
        client = [transport_only.measure(urls, CLIENT_REQUESTS, CONCURRENCY)]
        with stack.running_worker() as worker:
            drain(stack, tenant, receiver, deliveries=WARM_UP, subscriptions=2, pids=[worker.pid])
            sent = drain(stack, tenant, receiver, deliveries=DELIVERIES, subscriptions=SUBSCRIPTIONS, pids=[worker.pid])
            one = drain(stack, tenant, receiver, deliveries=DELIVERIES // 5, subscriptions=1, pids=[worker.pid])
        client.append(transport_only.measure(urls, CLIENT_REQUESTS, CONCURRENCY))
    name = "delivery"
    return [
        Figure(name, "delivered, 10 subscriptions", sent.per_second, "/s", ">= 2500"),
        Figure(name, "delivered, 1 subscription", one.per_second, "/s"),
        Figure(name, "the HTTP client alone", median(client), "/s"),
        Figure(name, "not delivered", DELIVERIES - sent.deliveries, "deliveries", "= 0"),
        Figure(name, "sent twice", sent.twice + one.twice, "deliveries", "= 0"),
        # Steadier than the rate where others share the processors.
        Figure(name, "worker's processor time", sent.cpu / sent.deliveries * 1000, "ms/delivery", "<= 0.2"),
    ]
