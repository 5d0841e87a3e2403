"""What one slow or overloaded subscription costs the others."""

from __future__ import annotations

import time

from bench.figures import Figure
from bench.load import Load, send
from bench.stack import BenchStack
from bench.stats import percentile

SUBSCRIPTIONS = 100
RATE = 200.0
SECONDS = 20
ROUNDS = 2
WARM_UP = 400
BACKLOG = 200_000
QUIET_RATE = 50.0
# What is measured is life beside a backlog, not the second in which it appears.
BACKLOG_SECONDS = 3.0


def half_hanging(stack: BenchStack) -> list[Figure]:
    """100 subscriptions, half hanging 30 s, half instant, paced 200 events/s, one worker; rounds take turns."""
    arrived: dict[str, list[float]] = {"ok": [], "hang": []}
    lost = 0
    # Each event is for one subscription; the two halves take turns.
    types = tuple(f"bench.type_{number}" for number in range(SUBSCRIPTIONS))
    with stack.receiver() as receiver, stack.running_web():
        for _ in range(ROUNDS):
            for kind in ("ok", "hang"):
                stack.reset()
                tenant = stack.tenant()
                for number, type_ in enumerate(types):
                    healthy = number % 2 == 0
                    path = f"/ok/healthy-{number}" if healthy else f"/{kind}/other-{number}"
                    stack.subscribe(tenant, receiver.url(path), [type_])
                with stack.running_worker():
                    send(Load(stack.url, tenant.key, WARM_UP, 50, RATE, types=types))
                    _wait_until_sent(stack, "/ok/")
                    receiver.take()
                    outcome = send(Load(stack.url, tenant.key, int(RATE * SECONDS), 50, RATE, types=types))
                    _wait_until_sent(stack, "/ok/")
                    taken = [row for row in receiver.take() if row[0].startswith("/ok/healthy")]
                arrived[kind] += stack.arrival_times(taken, "/ok/healthy")
                lost += outcome.requests // 2 - len({event for _, event, _ in taken})
    alone, beside = (percentile(arrived[kind], 0.95) for kind in ("ok", "hang"))
    return [
        Figure("half-hanging", "accept to received p95, all healthy", alone, "ms"),
        Figure("half-hanging", "the same for the healthy half", beside, "ms"),
        Figure("half-hanging", "ratio of the two", beside / alone, "", "<= 1.5"),
        Figure("half-hanging", "not delivered to the healthy half", lost, "events", "= 0"),
    ]


def _wait_until_sent(stack: BenchStack, path: str) -> None:
    """Wait until no event and no delivery to a URL with this path is left."""
    stack.wait_until(
        "SELECT NOT EXISTS (SELECT 1 FROM events_event WHERE status = 'accepted') AND NOT EXISTS"
        " (SELECT 1 FROM webhooks_delivery d JOIN webhooks_subscription s ON s.id = d.subscription_id"
        " WHERE d.status IN ('pending', 'delivering') AND s.url LIKE %s)",
        (f"%{path}%",),
    )


def backlog(stack: BenchStack) -> list[Figure]:
    """One subscription with 200,000 deliveries waiting, another with none, paced 50 events/s."""
    found = []
    name = "backlog"
    # A receiver that takes 100 ms is the usual reason for a backlog; an instant one drains it with all
    # that the machine has, and what is measured then is the machine's saturation.
    for kind, label, target in (("slow/100", "a 100 ms endpoint", "<= 1.5"), ("ok", "an instant endpoint", "")):
        stack.reset()
        tenant = stack.tenant()
        with stack.receiver() as receiver, stack.running_web(), stack.running_worker():
            stack.subscribe(tenant, receiver.url("/ok/quiet"), ["quiet.event"])
            busy = stack.subscribe(tenant, receiver.url(f"/{kind}/busy"), ["busy.event"])
            load = Load(stack.url, tenant.key, int(QUIET_RATE * SECONDS), 50, QUIET_RATE, types=("quiet.event",))
            send(load)
            _wait_until_sent(stack, "/ok/quiet")
            stack.sql("TRUNCATE events_event, webhooks_delivery, webhooks_deliveryattempt")
            receiver.take()
            api_alone = percentile(send(load).latencies, 0.95)
            _wait_until_sent(stack, "/ok/quiet")
            alone = percentile(stack.arrival_times(receiver.take(), "/ok/quiet"), 0.95)
            stack.make_due(tenant, [busy], BACKLOG)
            stack.settle_tables()
            stack.announce([busy])
            time.sleep(BACKLOG_SECONDS)
            api_beside = percentile(send(load).latencies, 0.95)
            _wait_until_sent(stack, "/ok/quiet")
            left = stack.value("SELECT count(*) FROM webhooks_delivery WHERE status = 'pending'")
            beside = percentile(stack.arrival_times(receiver.take(), "/ok/quiet"), 0.95)
        found += [
            Figure(name, f"accept to received p95, alone ({label})", alone, "ms"),
            Figure(name, f"the same beside the backlog ({label})", beside, "ms"),
            Figure(name, f"ratio of the two ({label})", beside / alone, "", target),
            # The API has no part in the backlog: what it loses is the processors' being shared.
            Figure(name, f"ratio of the API's p95 ({label})", api_beside / api_alone, ""),
            Figure(name, f"still waiting at the end ({label})", left, "deliveries", "> 0" if target else ""),
        ]
    return found
