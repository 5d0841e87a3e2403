"""Every scenario at a tiny scale: shows that it works, within seconds; the figures mean nothing."""

from __future__ import annotations

from bench import stack
from bench.scenarios import (
    bigtables,
    churn,
    delivery,
    end_to_end,
    fairness,
    fanout,
    filters,
    history,
    inbox,
    ingestion,
    latency,
    memory,
    neighbors,
    ordering,
    plainrq,
    scaling,
    wal,
)

_SMALL: dict[object, dict[str, object]] = {
    ingestion: {"WARM_UP": 20, "SINGLE_REQUESTS": 60, "BATCH_REQUESTS": 9, "EVENTS_A_BATCH": 10},
    latency: {"WARM_UP": 10, "SECONDS": 1, "ROUNDS": 1},
    end_to_end: {
        "RATES": (50.0, 100.0),
        "PACED_SECONDS": 1,
        "FLAT_OUT_SECONDS": 2.0,
        "FLAT_OUT_REQUESTS": 2000,
        "BURST_BATCHES": 3,
        "AFTER_BURST_SECONDS": 2.0,
        "BATCHES": 6,
        "SILENT": 20,
        "DRIPPING": 10,
        "IDLE_SECONDS": 1,
    },
    fanout: {"EVENTS": 4_000},
    ordering: {"KEYS": 10, "EVENTS_A_KEY": 10},
    filters: {"SUBSCRIPTIONS": 20, "WIDE_EVENTS": 200, "NARROW_EVENTS": 2_000},
    delivery: {"WARM_UP": 20, "DELIVERIES": 500, "COMPARED": 100, "ROUNDS": 1, "CLIENT_REQUESTS": 100},
    plainrq: {"EVENTS": 50, "SAMPLES": {"SimpleWorker": 10, "Worker": 3}},
    fairness: {"WARM_UP": 20, "SUBSCRIPTIONS": 6, "SECONDS": 1, "ROUNDS": 1, "BACKLOG": 1000},
    neighbors: {
        "SUBSCRIPTIONS": 20,
        "BATCHES": 1,
        "BATCH_EVENTS": 50,
        "SECONDS": 1,
        "SETTLE_SECONDS": 0.1,
        "DELIVERIES": 50,
        "REQUEST_SECONDS": 1,
        "RUN_DELIVERIES": 200,
    },
    inbox: {"EVENTS": 400, "PUSH_SECONDS": 1, "WARM_UP": 5},
    bigtables: {"GETS": 1, "WARM_UP": 20, "SETTLED": 4000, "PARKED": 400, "DELIVERIES": 200},
    history: {
        "ROWS": 6000,
        "ORGANIZATIONS": 20,
        "SUBSCRIPTIONS": 80,
        "GETS": 1,
        "WARM_UP": 20,
        "DELIVERIES": 200,
        "METRICS_PAUSE": 0.0,
    },
    churn: {"WARM_UP": 20, "DELIVERIES": 400},
    scaling: {"WARM_UP": 20, "DELIVERIES": 400, "REQUESTS": 60, "PROCESSES": (1, 2)},
    memory: {"WARM_UP": 50, "ROUND": 100, "ROUNDS": 1, "ENDLESS": 10},
    wal: {"OLD_EVENTS": 500, "WARM_UP": 20, "SINGLE_REQUESTS": 60, "BATCH_REQUESTS": 6, "EVENTS_A_BATCH": 10},
    stack: {"DRAIN_SECONDS": 60.0},
}


def shrink() -> None:
    """Make every scenario tiny in this process.  Raises AttributeError for a size that no longer exists."""
    for module, sizes in _SMALL.items():
        for name, value in sizes.items():
            getattr(module, name)
            setattr(module, name, value)
