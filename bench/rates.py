"""Measuring how fast due deliveries are sent, by the receiver's clock and the database's."""

from __future__ import annotations

from dataclasses import dataclass

from bench.stack import BenchStack, Tenant, cpu_seconds
from bench.stats import duplicates
from devstack.http_receiver import ReceiverProcess


@dataclass(frozen=True)
class Sent:
    """A drained backlog.  per_second counts recorded deliveries; cpu is the workers', in seconds; postgres: the same
    of PostgreSQL.
    """

    deliveries: int
    per_second: float
    twice: int
    cpu: float
    postgres: float


def drain(
    stack: BenchStack,
    tenant: Tenant,
    receiver: ReceiverProcess,
    *,
    deliveries: int,
    subscriptions: int,
    pids: list[int],
    path: str = "/ok/",
) -> Sent:
    """Make `deliveries` due for new subscriptions and measure until the last is recorded.

    pids: the workers that run already.
    """
    chosen = [stack.subscribe(tenant, receiver.url(f"{path}{tenant.key[4:10]}-{n}")) for n in range(subscriptions)]
    stack.make_due(tenant, chosen, deliveries // subscriptions)
    stack.settle_tables()
    receiver.take()
    server = stack.postgres.pid or 0
    cpu, postgres = cpu_seconds(*pids), cpu_seconds(server)
    started = float(stack.value("SELECT extract(epoch FROM clock_timestamp())"))
    stack.announce(chosen)
    stack.wait_until(
        "SELECT NOT EXISTS (SELECT 1 FROM webhooks_subscriptionqueue WHERE subscription_id = ANY(%s)"
        " AND (in_flight > 0 OR next_due_at <= clock_timestamp()))",
        (chosen,),
    )
    cpu, postgres = cpu_seconds(*pids) - cpu, cpu_seconds(server) - postgres
    done, ended = stack.sql(
        "SELECT count(*), extract(epoch FROM max(completed_at)) FROM webhooks_delivery"
        " WHERE subscription_id = ANY(%s) AND status = 'delivered'",
        (chosen,),
    )[0]
    return Sent(done, done / (float(ended) - started), duplicates(receiver.take()), cpu, postgres)
