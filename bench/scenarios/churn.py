"""Whether a long backlog is worked off as fast at its end as at its beginning."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import psycopg

from bench.figures import Figure
from bench.stack import BenchStack, Tenant
from devstack.http_receiver import ReceiverProcess

WARM_UP = 2_000
DELIVERIES = 100_000


def churn(stack: BenchStack) -> list[Figure]:
    """100,000 deliveries of one subscription, with vacuum free to work and held back by an open snapshot."""
    found = []
    # Held back, each claim passes over the index entries of what was claimed since; how much that costs is told.
    for label, held, target in (("vacuum free", False, ">= 80"), ("vacuum held back", True, "")):
        stack.reset()
        tenant = stack.tenant()
        with stack.receiver() as receiver, stack.running_worker():
            _drain(stack, tenant, receiver, WARM_UP, held=False)
            arrivals = _drain(stack, tenant, receiver, DELIVERIES, held=held)
        first, last = _rate(arrivals, 0.0, 0.2), _rate(arrivals, 0.75, 0.95)
        size, claimable = stack.sql(
            "SELECT pg_total_relation_size('webhooks_delivery'), pg_relation_size('webhooks_delivery_pending')"
        )[0]
        found += [
            Figure("churn", f"delivered at the beginning, {label}", first, "/s"),
            Figure("churn", f"delivered near the end, {label}", last, "/s"),
            Figure("churn", f"ratio of the two, {label}", last / first * 100, "%", target),
            Figure("churn", f"not delivered, {label}", DELIVERIES - len(arrivals), "deliveries", "= 0"),
            Figure("churn", f"table and indexes, {label}", size / DELIVERIES, "bytes/delivery"),
            Figure("churn", f"index of the claims, {label}", claimable / DELIVERIES, "bytes/delivery"),
        ]
    return found


def _drain(stack: BenchStack, tenant: Tenant, receiver: ReceiverProcess, deliveries: int, *, held: bool) -> list[float]:
    """Return when each delivery arrived, in order.  held: keep a snapshot from before open all the while."""
    subscription = stack.subscribe(tenant, receiver.url(f"/ok/{deliveries}"))
    stack.make_due(tenant, [subscription], deliveries)
    stack.settle_tables()
    receiver.take()
    with _snapshot(stack) if held else contextlib.nullcontext():
        stack.announce([subscription])
        stack.wait_until_delivered()
        return sorted(at for _, _, at in receiver.take())


def _rate(arrivals: list[float], start: float, end: float) -> float:
    """Return how many arrived a second between two shares of all."""
    first, last = int(len(arrivals) * start), int(len(arrivals) * end) - 1
    return (last - first) / (arrivals[last] - arrivals[first])


@contextlib.contextmanager
def _snapshot(stack: BenchStack) -> Iterator[None]:
    """Keep a snapshot of now open, as a dump or a long report does: vacuum removes nothing younger."""
    with psycopg.connect(stack.postgres.url()) as reader:
        reader.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        reader.execute("SELECT 1")
        yield
