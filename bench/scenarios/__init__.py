"""Every scenario by name, in the order in which they run.  Each takes the stack and returns its figures."""

from __future__ import annotations

from collections.abc import Callable

from bench.figures import Figure
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
from bench.stack import BenchStack

SCENARIOS: dict[str, Callable[[BenchStack], list[Figure]]] = {
    "single": ingestion.single,
    "batch": ingestion.batch,
    "schema": ingestion.schema,
    "latency": latency.healthy,
    "hanging": latency.hanging,
    "paced": end_to_end.paced,
    "trace": end_to_end.trace,
    "flat-out": end_to_end.flat_out,
    "after-burst": end_to_end.after_burst,
    "batches-delivered": end_to_end.batches,
    "idle-connections": end_to_end.idle_connections,
    "fanout": fanout.fanout,
    "filters": filters.filters,
    "ordering": ordering.ordering,
    "delivery": delivery.delivery,
    "plain-rq": plainrq.plain_rq,
    "half-hanging": fairness.half_hanging,
    "backlog": fairness.backlog,
    "greedy-neighbor": neighbors.greedy_neighbor,
    "greedy-requests": neighbors.greedy_requests,
    "greedy-runs": neighbors.greedy_runs,
    "inbox": inbox.inbox,
    "big-tables": bigtables.big_tables,
    "history": history.history,
    "churn": churn.churn,
    "workers": scaling.workers,
    "web-processes": scaling.web_processes,
    "memory": memory.memory,
    "wal": wal.wal,
}
