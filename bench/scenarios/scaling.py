"""One, two, and four workers or web processes against one PostgreSQL.

On a machine with fewer processors than processes, the rates say little; the processor time of an event or a delivery
says whether more processes cost more for the same work.
"""

from __future__ import annotations

import contextlib
import os

from bench.figures import Figure
from bench.load import Load, send
from bench.rates import Sent, drain
from bench.stack import BenchStack, cpu_seconds

PROCESSES = (1, 2, 4)
WARM_UP = 2_000
DELIVERIES = 30_000
SUBSCRIPTIONS = 10
REQUESTS = 15_000
CONNECTIONS = 16
# PostgreSQL, the receiver and two workers each want one.
CORES_FOR_TWO = 6


def workers(stack: BenchStack) -> list[Figure]:
    """30,000 due deliveries with one, two, and four workers, and none sent twice."""
    cores = os.cpu_count() or 1
    with stack.receiver() as receiver, contextlib.ExitStack() as running:
        tenant = stack.tenant()
        pids: list[int] = []
        runs: dict[int, Sent] = {}
        for number in PROCESSES:
            while len(pids) < number:
                pids.append(running.enter_context(stack.running_worker(len(pids) + 1)).pid)
            drain(stack, tenant, receiver, deliveries=WARM_UP, subscriptions=2, pids=pids)
            runs[number] = drain(stack, tenant, receiver, deliveries=DELIVERIES, subscriptions=SUBSCRIPTIONS, pids=pids)
    name = "workers"
    figures = []
    for number, sent in runs.items():
        with_them = f"{number} worker{'s' if number > 1 else ''}"
        figures += [
            Figure(name, f"delivered, {with_them}", sent.per_second, "/s"),
            Figure(name, f"processor time, {with_them}", sent.cpu / DELIVERIES * 1000, "ms/delivery"),
            Figure(name, f"PostgreSQL's, {with_them}", sent.postgres / DELIVERIES * 1000, "ms/delivery"),
        ]
    return [
        *figures,
        Figure(
            name, f"two workers against one, on {cores} cores", runs[2].per_second / runs[1].per_second, "",
            ">= 1.6" if cores >= CORES_FOR_TWO else "",
        ),
        Figure(name, "sent twice", sum(sent.twice for sent in runs.values()), "deliveries", "= 0"),
        Figure(
            name, "not delivered", sum(DELIVERIES - sent.deliveries for sent in runs.values()), "deliveries", "= 0"
        ),
    ]  # fmt: skip


def web_processes(stack: BenchStack) -> list[Figure]:
    """Single POSTs over 16 connections, accepted by one, two, and four web processes; no subscription."""
    name = "web-processes"
    figures = []
    postgres = stack.postgres.pid or 0
    for number in PROCESSES:
        stack.reset()
        tenant = stack.tenant()
        with stack.running_web(number) as web:
            send(Load(stack.url, tenant.key, WARM_UP, CONNECTIONS))
            before = cpu_seconds(web.pid), cpu_seconds(postgres)
            outcome = send(Load(stack.url, tenant.key, REQUESTS, CONNECTIONS))
            spent = cpu_seconds(web.pid) - before[0], cpu_seconds(postgres) - before[1]
        with_them = f"{number} process{'es' if number > 1 else ''}"
        figures += [
            Figure(name, f"accepted, {with_them}", outcome.statuses[202] / outcome.seconds, "events/s"),
            Figure(name, f"returned 202, {with_them}", outcome.share(202) * 100, "%", ">= 100"),
            Figure(name, f"processor time, {with_them}", spent[0] / outcome.requests * 1000, "ms/event"),
            Figure(name, f"PostgreSQL's, {with_them}", spent[1] / outcome.requests * 1000, "ms/event"),
        ]
    return figures
