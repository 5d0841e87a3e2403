"""How many events the API accepts."""

from __future__ import annotations

from bench.figures import Figure
from bench.load import Load, send
from bench.stack import BenchStack, cpu_seconds
from bench.stats import percentile

CONNECTIONS = 16
WARM_UP = 1_000
SINGLE_REQUESTS = 15_000
BATCH_REQUESTS = 1_500
EVENTS_A_BATCH = 100
ROUNDS = 2

# Of the data that bench.load sends.
SCHEMA = {
    "type": "object",
    "required": ["order", "customer", "total", "currency"],
    "properties": {
        "order": {"type": "integer", "minimum": 1},
        "customer": {"type": "string", "pattern": "^c_[0-9]+$"},
        "total": {"type": "string", "maxLength": 20},
        "currency": {"enum": ["EUR", "USD"]},
        "items": {"type": "array", "items": {"type": "integer"}},
        "n": {"type": "integer"},
    },
    "additionalProperties": False,
}


def single(stack: BenchStack) -> list[Figure]:
    """Single POSTs, flat out over 16 connections, committed with fsync, gunicorn with 2 workers."""
    tenant = stack.tenant()
    with stack.running_web() as web, stack.running_worker():
        send(Load(stack.url, tenant.key, WARM_UP, CONNECTIONS))  # warms connections, plans and caches
        before = cpu_seconds(web.pid)
        plain = send(Load(stack.url, tenant.key, SINGLE_REQUESTS, CONNECTIONS))
        cpu = cpu_seconds(web.pid) - before
        once = send(Load(stack.url, tenant.key, SINGLE_REQUESTS // 3, CONNECTIONS, with_dedup_id=True))
        stack.wait_until_delivered()
        stored = stack.value("SELECT count(*) FROM events_event")
    surplus = stored - WARM_UP - plain.statuses[202] - once.statuses[202]
    name = "single"
    return [
        Figure(name, "accepted", plain.statuses[202] / plain.seconds, "events/s", ">= 1000"),
        Figure(name, "returned 202", plain.share(202) * 100, "%", ">= 100"),
        Figure(name, "accepted but not stored", -surplus, "events", "= 0"),
        Figure(name, "p95 at full load", percentile(plain.latencies, 0.95) * 1000, "ms"),
        Figure(name, "gunicorn's processor time", cpu / plain.requests * 1000, "ms/event"),
        Figure(name, "accepted, each with a dedup id", once.statuses[202] / once.seconds, "events/s"),
    ]


def batch(stack: BenchStack) -> list[Figure]:
    """Batches of 100 events, flat out over 8 connections."""
    tenant = stack.tenant()
    found = []
    for with_dedup_id, metric, target in (
        (False, "accepted", ">= 12000"),
        (True, "accepted, each with a dedup id", ""),
    ):
        with stack.running_web():
            requests = BATCH_REQUESTS if not with_dedup_id else BATCH_REQUESTS // 3
            send(Load(stack.url, tenant.key, WARM_UP // 20, 8, batch=EVENTS_A_BATCH))
            outcome = send(Load(stack.url, tenant.key, requests, 8, batch=EVENTS_A_BATCH, with_dedup_id=with_dedup_id))
        rate = outcome.statuses[202] * EVENTS_A_BATCH / outcome.seconds
        found.append(Figure("batch", metric, rate, "events/s", target))
        if not with_dedup_id:
            found.append(Figure("batch", "returned 202", outcome.share(202) * 100, "%", ">= 100"))
    with stack.running_web(workers=1):
        send(Load(stack.url, tenant.key, WARM_UP // 20, 8, batch=EVENTS_A_BATCH))
        outcome = send(Load(stack.url, tenant.key, BATCH_REQUESTS // 3, 8, batch=EVENTS_A_BATCH))
    found.append(
        Figure(
            "batch", "accepted, one gunicorn worker", outcome.requests * EVENTS_A_BATCH / outcome.seconds, "events/s"
        )
    )
    return found


def schema(stack: BenchStack) -> list[Figure]:
    """Events that are checked against their type's JSON Schema, and the same of an organization that checks none."""
    from events import event_types

    plain, checked = stack.tenant("Plain"), stack.tenant("Checked")
    event_types.create(checked.id, name="order.created", schema=SCHEMA)
    event_types.set_strictness(checked.id, "schema")
    found = []
    with stack.running_web():
        for what, requests, connections, events in (
            ("single", SINGLE_REQUESTS // 3, CONNECTIONS, 0),
            ("batches", BATCH_REQUESTS // 3, 8, EVENTS_A_BATCH),
        ):
            rates: dict[str, float] = {}
            for _ in range(ROUNDS):  # in turn, so that a slow moment of the machine meets both
                for tenant in (plain, checked):
                    send(Load(stack.url, tenant.key, WARM_UP // 20, connections, batch=events))
                    outcome = send(Load(stack.url, tenant.key, requests, connections, batch=events))
                    rate = outcome.statuses[202] * (events or 1) / outcome.seconds
                    rates[tenant.key] = max(rates.get(tenant.key, 0.0), rate)
            found += [
                Figure("schema", f"accepted, {what}, no check", rates[plain.key], "events/s"),
                Figure("schema", f"accepted, {what}, schema checked", rates[checked.key], "events/s"),
                Figure("schema", f"ratio of the two, {what}", rates[checked.key] / rates[plain.key], ""),
            ]
    return found
