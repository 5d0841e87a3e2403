"""Two workers against one."""

from __future__ import annotations

import os

from bench.figures import Figure
from bench.rates import drain
from bench.stack import BenchStack

WARM_UP = 2_000
DELIVERIES = 30_000
SUBSCRIPTIONS = 10
# PostgreSQL, the receiver and two workers each want one.
CORES_FOR_TWO = 6


def two_workers(stack: BenchStack) -> list[Figure]:
    """30,000 due deliveries with one worker and with two, and none sent twice."""
    cores = os.cpu_count() or 1
    with stack.receiver() as receiver:
        tenant = stack.tenant()
        with stack.running_worker() as first:
            drain(stack, tenant, receiver, deliveries=WARM_UP, subscriptions=2, pids=[first.pid])
            one = drain(stack, tenant, receiver, deliveries=DELIVERIES, subscriptions=SUBSCRIPTIONS, pids=[first.pid])
            with stack.running_worker(2) as second:
                pids = [first.pid, second.pid]
                drain(stack, tenant, receiver, deliveries=WARM_UP, subscriptions=2, pids=pids)
                two = drain(stack, tenant, receiver, deliveries=DELIVERIES, subscriptions=SUBSCRIPTIONS, pids=pids)
    name = "workers"
    return [
        Figure(name, "delivered, one worker", one.per_second, "/s"),
        Figure(name, "delivered, two workers", two.per_second, "/s"),
        Figure(
            name, f"ratio, on {cores} cores", two.per_second / one.per_second, "",
            ">= 1.6" if cores >= CORES_FOR_TWO else "",
        ),
        Figure(name, "sent twice", one.twice + two.twice, "deliveries", "= 0"),
        Figure(name, "not delivered", 2 * DELIVERIES - one.deliveries - two.deliveries, "deliveries", "= 0"),
    ]  # fmt: skip
