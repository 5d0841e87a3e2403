"""How fast one worker process sends what is due."""

from __future__ import annotations

from bench import transport_only
from bench.figures import Figure
from bench.rates import Sent, drain
from bench.stack import BenchStack, Tenant
from bench.stats import median
from devstack.http_receiver import ReceiverProcess

WARM_UP = 2_000
DELIVERIES = 50_000
SUBSCRIPTIONS = 10
COMPARED = 20_000
ROUNDS = 3
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
            kept, without = compare_exchanges(stack, tenant, receiver, worker.pid)
        client.append(transport_only.measure(urls, CLIENT_REQUESTS, CONCURRENCY))
    name = "delivery"
    return [
        Figure(name, "delivered, 10 subscriptions", sent.per_second, "/s", ">= 2500"),
        Figure(name, "delivered, 1 subscription", one.per_second, "/s"),
        Figure(name, "the HTTP client alone", median(client), "/s"),
        Figure(name, "not delivered", DELIVERIES - sent.deliveries, "deliveries", "= 0"),
        Figure(name, "sent twice", sent.twice + one.twice, "deliveries", "= 0"),
        Figure(name, "of the rate without kept exchanges", 100 * _rate(kept) / _rate(without), "%", ">= 95"),
        # Steadier than the rate where others share the processors.
        Figure(name, "worker's processor time", sent.cpu / sent.deliveries * 1000, "ms/delivery", "<= 0.2"),
        Figure(name, "kept exchanges' processor time", (_cpu(kept) - _cpu(without)) * 1e6, "µs/delivery"),
    ]


def compare_exchanges(
    stack: BenchStack, tenant: Tenant, receiver: ReceiverProcess, pid: int
) -> tuple[list[Sent], list[Sent]]:
    """Send with what each attempt sends and receives kept, and without, by turns: what else goes on hits both."""
    found: dict[bool, list[Sent]] = {True: [], False: []}
    for number in range(2 * ROUNDS):
        is_kept = number % 4 in (0, 3)
        stack.sql("UPDATE orgs_organization SET keep_exchanges = %s WHERE id = %s", (is_kept, tenant.id))
        found[is_kept].append(
            drain(stack, tenant, receiver, deliveries=COMPARED, subscriptions=SUBSCRIPTIONS, pids=[pid])
        )
    stack.sql("UPDATE orgs_organization SET keep_exchanges = true WHERE id = %s", (tenant.id,))
    return found[True], found[False]


def _rate(sent: list[Sent]) -> float:
    return median([one.per_second for one in sent])


def _cpu(sent: list[Sent]) -> float:
    return median([one.cpu / one.deliveries for one in sent])
