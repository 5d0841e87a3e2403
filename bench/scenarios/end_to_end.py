"""From the POST to the endpoint: at a steady rate, flat out, in batches, and beside idle connections."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from urllib.parse import urlsplit

from bench.figures import Figure
from bench.load import Load, send
from bench.stack import BenchStack, cpu_seconds
from bench.stats import percentile

RATES = (100.0, 400.0)
PACED_SECONDS = 20
FLAT_OUT_SECONDS = 30.0
FLAT_OUT_CONNECTIONS = 16
# More than any version sends in that time.
FLAT_OUT_REQUESTS = 200_000
BURST_BATCHES = 50
AFTER_BURST_SECONDS = 20.0
BATCHES = 600
EVENTS_A_BATCH = 100
BATCH_CONNECTIONS = 8
SILENT = 500
DRIPPING = 200
DRIP_SECONDS = 1.0
IDLE_SECONDS = 20


def paced(stack: BenchStack) -> list[Figure]:
    """Paced 100 and 400 events/s, one endpoint: from the 202 to the endpoint."""
    found = []
    with stack.receiver() as receiver, stack.running_web(), stack.running_worker():
        for rate in RATES:
            stack.reset()
            tenant = stack.tenant()
            stack.subscribe(tenant, receiver.url("/ok/1"))
            send(Load(stack.url, tenant.key, int(rate), 50, rate))  # warms up
            stack.wait_until_delivered()
            receiver.take()
            outcome = send(Load(stack.url, tenant.key, int(rate * PACED_SECONDS), 50, rate, keep_times=True))
            stack.wait_until_delivered()
            arrived = {event: at for _, event, at in reversed(receiver.take())}
            times = [(at - outcome.responded[event]) * 1000 for event, at in arrived.items()]
            for share, limit in zip((0.5, 0.95, 0.99), (1.5, 4, 8) if rate == RATES[0] else (2, 6, 15), strict=True):
                metric = f"202 to endpoint p{share * 100:.0f}, {rate:.0f}/s"
                found.append(Figure("paced", metric, percentile(times, share), "ms", f"<= {limit}"))
            found.append(Figure("paced", f"API p99, {rate:.0f}/s", percentile(outcome.latencies, 0.99) * 1000, "ms"))
            missing = outcome.requests - len(arrived)
            found.append(Figure("paced", f"not delivered, {rate:.0f}/s", missing, "events", "= 0"))
    return found


# Where an event is, by the clocks of the machine and of its PostgreSQL, which are one.
_TIMES = """
SELECT e.id::text, e.processed_at = e.created_at, extract(epoch FROM e.created_at)::float8,
       extract(epoch FROM d.created_at)::float8
FROM events_event e JOIN webhooks_delivery d ON d.event_id = e.id
"""


def trace(stack: BenchStack) -> list[Figure]:
    """Paced 100 events/s, one endpoint: where an event's time goes, from its INSERT to the endpoint."""
    with stack.receiver() as receiver, stack.running_web(), stack.running_worker():
        tenant = stack.tenant()
        stack.subscribe(tenant, receiver.url("/ok/1"))
        send(Load(stack.url, tenant.key, int(RATES[0]), 50, RATES[0]))  # warms up
        stack.wait_until_delivered()
        receiver.take()
        load = Load(stack.url, tenant.key, int(RATES[0] * PACED_SECONDS), 50, RATES[0], keep_times=True)
        responded = send(load).responded
        stack.wait_until_delivered()
        arrived = {event: at for _, event, at in reversed(receiver.take())}
    steps: dict[str, list[float]] = defaultdict(list)
    at_once: list[bool] = []
    for event, is_at_once, inserted, delivery in stack.sql(_TIMES):
        if event in responded:
            at_once.append(is_at_once)
            steps["from the INSERT to the 202: commit, response"].append(responded[event] - inserted)
            if not is_at_once:
                steps["from the 202 to the delivery's INSERT, of the others"].append(delivery - responded[event])
            steps["from the 202 to the endpoint"].append(arrived[event] - responded[event])
    share_at_once = Figure("trace", "stored with their deliveries", 100 * sum(at_once) / len(at_once), "%")
    return [share_at_once] + [
        Figure("trace", f"{step}, p{share * 100:.0f}", percentile(times, share) * 1000, "ms")
        for step, times in steps.items()
        for share in (0.5, 0.95)
    ]


def flat_out(stack: BenchStack) -> list[Figure]:
    """Single events flat out over 16 connections: nobody subscribed; then one endpoint, from a cold start."""
    tenant = stack.tenant()
    load = Load(stack.url, tenant.key, FLAT_OUT_REQUESTS, FLAT_OUT_CONNECTIONS, seconds=FLAT_OUT_SECONDS / 2)
    with stack.running_web():
        alone = send(load)
    stack.reset()
    tenant = stack.tenant()
    load = Load(
        stack.url, tenant.key, FLAT_OUT_REQUESTS, FLAT_OUT_CONNECTIONS, seconds=FLAT_OUT_SECONDS, keep_times=True
    )
    postgres = stack.postgres.pid or 0
    with stack.receiver() as receiver, stack.running_web() as web, stack.running_worker() as worker:
        stack.subscribe(tenant, receiver.url("/ok/1"))
        before = cpu_seconds(web.pid, worker.pid, postgres)
        outcome = send(load)
        ended = time.time()
        delivered = receiver.count()
        stack.wait_until_delivered()
        cpu = cpu_seconds(web.pid, worker.pid, postgres) - before
        arrivals = receiver.take()
        times = stack.arrival_times(arrivals)
    accepted = outcome.statuses[202]
    drained = max(at for _, _, at in arrivals) - ended
    name = "flat-out"
    return [
        Figure(name, "accepted, nobody subscribed", alone.statuses[202] / alone.seconds, "events/s"),
        Figure(name, "API p99, nobody subscribed", percentile(alone.latencies, 0.99) * 1000, "ms"),
        Figure(name, "accepted, one endpoint", accepted / outcome.seconds, "events/s"),
        Figure(name, "delivered meanwhile", delivered / outcome.seconds, "events/s"),
        Figure(name, "delivered of what was accepted, at the end", delivered / accepted * 100, "%", ">= 98"),
        Figure(name, "the rest was delivered within", max(0.0, drained), "s"),
        Figure(name, "POST to endpoint p95", percentile(times, 0.95), "ms", "<= 100"),
        Figure(name, "processor time of all processes", cpu / accepted * 1000, "ms/event"),
    ]


def after_burst(stack: BenchStack) -> list[Figure]:
    """A burst of 5,000 events in batches, then single ones flat out over 16 connections: whether delivering settles."""
    with stack.receiver() as receiver, stack.running_web(), stack.running_worker():
        tenant = stack.tenant()
        stack.subscribe(tenant, receiver.url("/ok/1"))
        send(Load(stack.url, tenant.key, BURST_BATCHES, BATCH_CONNECTIONS, batch=EVENTS_A_BATCH))
        began = time.time()
        outcome = send(
            Load(
                stack.url, tenant.key, FLAT_OUT_REQUESTS, FLAT_OUT_CONNECTIONS, seconds=AFTER_BURST_SECONDS,
                keep_times=True,
            )
        )  # fmt: skip
        accepted = BURST_BATCHES * EVENTS_A_BATCH + outcome.statuses[202]
        waiting = accepted - receiver.count()
        stack.wait_until_delivered()
        arrived = {event: at for _, event, at in reversed(receiver.take())}
    half = began + AFTER_BURST_SECONDS / 2
    later = [(arrived[event] - at) * 1000 for event, at in outcome.responded.items() if at > half and event in arrived]
    name = "after-burst"
    return [
        Figure(name, "accepted after the burst", outcome.statuses[202] / outcome.seconds, "events/s"),
        Figure(name, "waiting at the end", max(0, waiting), "events", "<= 500"),
        Figure(name, "202 to endpoint p95 in the second half", percentile(later, 0.95), "ms", "<= 100"),
        Figure(name, "not delivered", outcome.statuses[202] - len(outcome.responded.keys() & arrived), "events", "= 0"),
    ]


def batches(stack: BenchStack) -> list[Figure]:
    """Batches of 100 events over 8 connections, one endpoint, delivered end to end by one and by two workers."""
    found = []
    for workers, target in ((1, ">= 3500"), (2, ">= 4500")):
        stack.reset()
        tenant = stack.tenant()
        with contextlib.ExitStack() as running:
            receiver = running.enter_context(stack.receiver())
            running.enter_context(stack.running_web())
            for number in range(1, workers + 1):
                running.enter_context(stack.running_worker(number))
            stack.subscribe(tenant, receiver.url("/ok/1"))
            began = time.time()
            send(Load(stack.url, tenant.key, BATCHES, BATCH_CONNECTIONS, batch=EVENTS_A_BATCH))
            stack.wait_until_delivered()
            arrivals = receiver.take()
        seconds = max(at for _, _, at in arrivals) - began
        metric = f"delivered end to end, {workers} worker{'s' if workers > 1 else ''}"
        found.append(Figure("batches-delivered", metric, len(arrivals) / seconds, "events/s", target))
    return found


def idle_connections(stack: BenchStack) -> list[Figure]:
    """Paced 100 events/s, alone and beside 500 silent connections and 200 that send a byte a second."""
    tenant = stack.tenant()
    load = Load(stack.url, tenant.key, int(RATES[0] * IDLE_SECONDS), 50, RATES[0])
    with stack.running_web():
        send(Load(stack.url, tenant.key, 200, 50, 200))
        alone = percentile(send(load).latencies, 0.99) * 1000
        with _idle_connections(stack.url):
            beside = percentile(send(load).latencies, 0.99) * 1000
    return [
        Figure("idle-connections", "API p99, alone", alone, "ms"),
        Figure("idle-connections", "API p99, beside them", beside, "ms"),
        Figure("idle-connections", "ratio of the two", beside / alone, "", "<= 1.5"),
    ]


@contextlib.contextmanager
def _idle_connections(url: str) -> Iterator[None]:
    """Hold connections that say nothing, and others that send their request byte by byte."""
    address = (urlsplit(url).hostname, urlsplit(url).port)
    over = threading.Event()
    with contextlib.ExitStack() as stack:
        dripping = [stack.enter_context(socket.create_connection(address)) for _ in range(SILENT + DRIPPING)][SILENT:]

        def drip() -> None:
            request = b"POST /api/events HTTP/1.1\r\nHost: localhost\r\nX-Slow: " + b"a" * 1000
            for position in range(len(request)):
                for one in dripping:
                    with contextlib.suppress(OSError):  # closed as too slow
                        one.send(request[position : position + 1])
                if over.wait(DRIP_SECONDS):
                    return

        thread = threading.Thread(target=drip, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
