"""What payload filters cost: the fan-out with a thousand of them, and with none, for as many deliveries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench.figures import Figure
from bench.stack import BenchStack

SUBSCRIPTIONS = 1_000
WIDE_EVENTS = 200
NARROW_EVENTS = 20_000


def filters(stack: BenchStack) -> list[Figure]:
    """1,000 filtered subscriptions against the same deliveries without filters, one worker, sending switched off."""
    every = [{"order": {"$gte": number}} for number in range(SUBSCRIPTIONS)]
    # Of the event's customer there is one; the others differ in their last digits.
    customers = [{"customer": f"c_{1029384756 - number}"} for number in range(SUBSCRIPTIONS)]
    numbers = [{"order": {"$gte": 4711 + number}} for number in range(SUBSCRIPTIONS)]
    wide = _rate(stack, [None] * SUBSCRIPTIONS, WIDE_EVENTS, SUBSCRIPTIONS)
    filtered = _rate(stack, every, WIDE_EVENTS, SUBSCRIPTIONS)
    narrow = _rate(stack, [None], NARROW_EVENTS, 1)
    by_value = _rate(stack, customers, NARROW_EVENTS, 1)
    by_range = _rate(stack, numbers, NARROW_EVENTS, 1)
    return [
        Figure("filters", "deliveries made, 1,000 without filters", wide, "/s"),
        Figure("filters", "the same, each with a filter that matches", filtered, "/s"),
        Figure("filters", "ratio of the two", filtered / wide, "", ">= 0.5"),
        Figure("filters", "events, one subscription without a filter", narrow, "/s"),
        Figure("filters", "the same, one of 1,000 filters by customer", by_value, "/s"),
        Figure("filters", "ratio of these two", by_value / narrow, "", ">= 0.5"),
        Figure("filters", "events, one of 1,000 filters by a number", by_range, "/s"),
        Figure("filters", "ratio to those without a filter", by_range / narrow, "", ">= 0.5"),
    ]


def _rate(stack: BenchStack, wanted: Sequence[dict[str, Any] | None], events: int, each: int) -> float:
    """Return how many deliveries a second are made for subscriptions with these filters, `each` for every event."""
    stack.reset()
    tenant = stack.tenant()
    for number, conditions in enumerate(wanted):
        stack.subscribe(tenant, f"http://127.0.0.1:9/{number}", filter=conditions)
    stack.accept_events(tenant, events)
    stack.settle_tables()
    with stack.running_worker(DISABLE_WEBHOOK_DELIVERY="true"):
        stack.wake_fan_out()
        stack.wait_until("SELECT NOT EXISTS (SELECT 1 FROM events_event WHERE status = 'accepted')")
    made = stack.value("SELECT count(*) FROM webhooks_delivery")
    if made != events * each:
        raise RuntimeError(f"{made} deliveries were made instead of {events * each}")
    # Without the round that was the first to end: when it began isn't known.
    seconds, later = stack.sql(
        "SELECT extract(epoch FROM max(processed_at) - min(processed_at)),"
        " count(*) FILTER (WHERE processed_at > (SELECT min(processed_at) + interval '1 ms' FROM events_event))"
        " FROM events_event"
    )[0]
    return float(later) * each / max(float(seconds), 1e-6)
