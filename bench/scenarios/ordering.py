"""What ordering keys cost, and that a key that can't go on holds up none of the others."""

from __future__ import annotations

import json

from bench.figures import Figure
from bench.stack import BenchStack

KEYS = 100
EVENTS_A_KEY = 100
ROUNDS = 2


def ordering(stack: BenchStack) -> list[Figure]:
    """100 keys with 100 events each, one subscription: without keys, in order, and in order with one key blocked."""
    plain = max(_rate(stack, keyed=False) for _ in range(ROUNDS))
    # In turn, so that a slow moment of the machine meets both.
    rates = [(_rate(stack), _rate(stack, blocked=1)) for _ in range(ROUNDS)]
    keyed, others = max(rate for rate, _ in rates), max(rate for _, rate in rates)
    return [
        Figure("ordering", "delivered, without keys", plain, "/s"),
        Figure("ordering", f"delivered in order, {KEYS} keys", keyed, "/s"),
        Figure("ordering", "the other keys, one key blocked", others, "/s"),
        Figure("ordering", "ratio of these two", others / keyed, "", ">= 0.9"),
    ]


def _rate(stack: BenchStack, *, keyed: bool = True, blocked: int = 0) -> float:
    """Return how many webhooks a second arrive.  blocked: keys whose first delivery waits for its next attempt.

    Raises RuntimeError if one is missing, there twice, or out of order.
    """
    stack.reset()
    tenant = stack.tenant()
    with stack.receiver() as receiver:
        subscription = stack.subscribe(tenant, receiver.url("/ok/ordered"), ordered=True)
        stack.sql(
            "INSERT INTO events_event (id, organization_id, type, data, ordering_key, status, failed_attempts,"
            " last_error, due_at, created_at) SELECT uuidv7(), %s, 'order.changed', n::text,"
            " CASE WHEN %s THEN 'key-' || n %% %s END, 'accepted', 0, '', t, t + n * interval '1 us'"
            " FROM generate_series(0, %s) AS n, clock_timestamp() AS t",
            (tenant.id, keyed, KEYS, KEYS * EVENTS_A_KEY - 1),
        )
        with stack.running_worker(DISABLE_WEBHOOK_DELIVERY="true"):
            stack.wake_fan_out()
            stack.wait_until("SELECT NOT EXISTS (SELECT 1 FROM events_event WHERE status = 'accepted')")
        for number in range(blocked):
            stack.sql(
                "UPDATE webhooks_delivery SET next_attempt_at = now() + interval '1 day', attempts_used = 1,"
                " last_error = 'http_status' WHERE id = (SELECT id FROM webhooks_delivery WHERE ordering_key = %s"
                " ORDER BY ordered_at LIMIT 1)",
                (f"key-{number}",),
            )
        stack.settle_tables()
        expected = (KEYS - blocked) * EVENTS_A_KEY
        with stack.running_worker():
            stack.announce([subscription])
            stack.wait_until("SELECT count(*) = %s FROM webhooks_delivery WHERE status = 'delivered'", (expected,))
        arrivals = sorted(receiver.take(), key=lambda arrival: arrival[2])
    numbers = dict(stack.sql("SELECT id::text, data FROM events_event"))
    order = [json.loads(numbers[event_id]) for _, event_id, _ in arrivals]
    if len(order) != expected or len(set(order)) != expected:
        raise RuntimeError(f"{len(order)} webhooks arrived for {expected} deliveries")
    if keyed and any(of_key != sorted(of_key) for of_key in ([n for n in order if n % KEYS == k] for k in range(KEYS))):
        raise RuntimeError("a key's webhooks arrived out of order")
    return (len(arrivals) - 1) / (arrivals[-1][2] - arrivals[0][2])
