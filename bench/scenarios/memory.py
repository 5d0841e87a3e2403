"""Whether a worker's memory stays flat, its own and that of its backlog sender."""

from __future__ import annotations

from pathlib import Path

from bench.figures import Figure
from bench.rates import drain
from bench.stack import BenchStack
from devstack.pids import children

WARM_UP = 5_000
ROUND = 20_000
ROUNDS = 5
ENDLESS = 400


def memory(stack: BenchStack) -> list[Figure]:
    """100,000 deliveries in one worker, some to endpoints whose responses never end."""
    tenant = stack.tenant()
    endless_done = 0
    with stack.receiver() as receiver, stack.running_worker() as worker:
        drain(stack, tenant, receiver, deliveries=WARM_UP, subscriptions=5, pids=[worker.pid])
        drain(stack, tenant, receiver, deliveries=50, subscriptions=1, pids=[worker.pid], path="/endless/")
        before = sum(_resident_mib(worker.pid))
        sizes = []
        for _ in range(ROUNDS):
            drain(stack, tenant, receiver, deliveries=ROUND - ENDLESS, subscriptions=5, pids=[worker.pid])
            endless = drain(
                stack, tenant, receiver, deliveries=ENDLESS, subscriptions=2, pids=[worker.pid], path="/endless/"
            )
            endless_done += endless.deliveries
            sizes.append(sum(_resident_mib(worker.pid)))
    return [
        Figure("memory", f"resident after {WARM_UP:,} deliveries, both processes", before, "MiB"),
        Figure("memory", f"resident after {ROUND * ROUNDS:,} more", sizes[-1], "MiB"),
        Figure("memory", "growth at most", max(sizes) - before, "MiB", "< 50"),
        Figure("memory", "endless responses cut off", endless_done, "deliveries", f"= {ENDLESS * ROUNDS}"),
    ]


def _resident_mib(pid: int) -> list[float]:
    """Return the resident memory of a process and of each of its children, in MiB."""
    return [
        int(line.split()[1]) / 1024
        for one in (pid, *children(pid))
        for line in Path(f"/proc/{one}/status").read_text().splitlines()
        if line.startswith("VmRSS:")
    ]
