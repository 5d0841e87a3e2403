"""How fast one worker turns accepted events into deliveries."""

from __future__ import annotations

from bench.figures import Figure
from bench.stack import BenchStack, cpu_seconds

EVENTS = 50_000


def fanout(stack: BenchStack) -> list[Figure]:
    """50,000 accepted events, 1 and 10 subscriptions, one worker, sending switched off."""
    found = []
    for subscriptions in (1, 10):
        stack.reset()
        tenant = stack.tenant()
        for number in range(subscriptions):
            stack.subscribe(tenant, f"http://127.0.0.1:9/{number}")
        # Ten subscriptions make ten times the deliveries: a fifth of the events is enough to measure.
        events = EVENTS if subscriptions == 1 else EVENTS // 5
        stack.accept_events(tenant, events)
        stack.settle_tables()
        with stack.running_worker(DISABLE_WEBHOOK_DELIVERY="true") as worker:
            stack.wake_fan_out()
            stack.wait_until("SELECT NOT EXISTS (SELECT 1 FROM events_event WHERE status = 'accepted')")
            cpu = cpu_seconds(worker.pid)
        seconds, made = stack.sql(
            "SELECT extract(epoch FROM (SELECT max(processed_at) FROM events_event)"
            " - (SELECT min(created_at) FROM webhooks_delivery)), (SELECT count(*) FROM webhooks_delivery)"
        )[0]
        label = f"{subscriptions} subscription{'s' if subscriptions > 1 else ''}"
        # The first batch was made before its time was taken, so it isn't counted.
        first = stack.value(
            "SELECT count(*) FROM webhooks_delivery WHERE created_at = (SELECT min(created_at) FROM webhooks_delivery)"
        )
        found += [
            Figure("fanout", f"deliveries made, {label}", (made - first) / float(seconds), "/s", ">= 15000"),
            Figure("fanout", f"missing, {label}", events * subscriptions - made, "deliveries", "= 0"),
            Figure("fanout", f"worker's processor time, {label}", cpu / events * 1000, "ms/event"),
        ]
    return found
