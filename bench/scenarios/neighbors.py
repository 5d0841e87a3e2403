"""What a greedy organization, within its limits, costs another."""

from __future__ import annotations

import json
import threading
import time
import urllib.error
import urllib.request
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from bench.client import Outcome
from bench.figures import Figure
from bench.load import Load, send
from bench.stack import BenchStack, Tenant
from bench.stats import median, percentile

SUBSCRIPTIONS = 985
BATCHES = 5
BATCH_EVENTS = 1_000
RATE = 50.0
SECONDS = 20
# What another organization's requests, flat out, cost: on how many connections, and the deliveries that it lists.
CONNECTIONS = 8
DELIVERIES = 2_000
REQUEST_SECONDS = 6
# The first batch or run makes the worker start its second process; what is measured is life beside the neighbor.
SETTLE_SECONDS = 4.0
# What one organization sends again, or has queued for a new endpoint, at once.
RUN_DELIVERIES = 100_000
RUN_SECONDS = 10
RUN_ROUNDS = 3


def greedy_neighbor(stack: BenchStack) -> list[Figure]:
    """985 subscriptions of one organization to one type and batches of 1,000 events, beside another's 50 events/s."""
    stack.reset()
    greedy, quiet = stack.tenant("Greedy"), stack.tenant("Quiet")
    with stack.receiver() as receiver, stack.running_web(), stack.running_worker():
        for number in range(SUBSCRIPTIONS):
            stack.subscribe(greedy, receiver.url(f"/slow/100/greedy-{number}"), ["greedy.event"])
        stack.subscribe(quiet, receiver.url("/ok/quiet"), ["quiet.event"])
        load = Load(stack.url, quiet.key, int(RATE * SECONDS), 50, RATE, types=("quiet.event",))
        send(load)
        _wait_until_quiet(stack, quiet)
        receiver.take()
        alone_outcome = send(load)
        _wait_until_quiet(stack, quiet)
        alone = percentile(stack.arrival_times(receiver.take(), "/ok/quiet"), 0.95)
        answers: list[int] = []
        greed = threading.Thread(target=_post_batches, args=(stack.url, greedy, answers), daemon=True)
        greed.start()
        time.sleep(SETTLE_SECONDS)
        beside_outcome = send(load)
        _wait_until_quiet(stack, quiet)
        greed.join(60)
        left = stack.sql(
            "SELECT (SELECT count(*) FROM events_event WHERE status = 'accepted'),"
            " (SELECT count(*) FROM webhooks_delivery WHERE status = 'pending')"
        )[0]
        times = stack.arrival_times(receiver.take(), "/ok/quiet")
    beside = percentile(times, 0.95)
    name = "greedy-neighbor"
    return [
        Figure(name, "accept to received p95, alone", alone, "ms"),
        Figure(name, "the same beside the greedy neighbor", beside, "ms"),
        Figure(name, "ratio of the two", beside / alone, "", "<= 2"),
        Figure(name, "the slowest beside it", max(times), "ms"),
        Figure(
            name, "POSTs of the quiet one that were not accepted", _refused(alone_outcome, beside_outcome), "", "= 0"
        ),
        Figure(name, "batches of the greedy one that were accepted", sum(status == 202 for status in answers), ""),
        Figure(name, "its events and deliveries that still wait", sum(left), "", "> 0"),
    ]


def greedy_requests(stack: BenchStack) -> list[Figure]:
    """Requests of one organization, flat out on 8 connections, beside another's 50 events/s."""
    stack.reset()
    greedy, quiet = stack.tenant("Greedy"), stack.tenant("Quiet")
    name = "greedy-requests"
    figures: list[Figure] = []
    with stack.receiver() as receiver, stack.running_web(), stack.running_worker():
        own = stack.subscribe(greedy, receiver.url("/ok/greedy"), ["greedy.event"])
        stack.subscribe(quiet, receiver.url("/ok/quiet"), ["quiet.event"])
        stack.make_due(greedy, [own], DELIVERIES)
        stack.announce([own])
        _wait_until_quiet(stack, greedy)
        stack.settle_tables()
        load = Load(stack.url, quiet.key, int(RATE * REQUEST_SECONDS), 50, RATE, types=("quiet.event",))

        def p95() -> float:
            receiver.take()
            outcome = send(load)
            if outcome.share(202) < 1:
                raise RuntimeError(f"the quiet organization's events got {outcome.statuses}")
            _wait_until_quiet(stack, quiet)
            return percentile(stack.arrival_times(receiver.take(), "/ok/quiet"), 0.95)

        p95()
        for what, repeated in _requests(own).items():
            alone = p95()
            flood = Load(stack.url, greedy.key, 100_000, CONNECTIONS, seconds=REQUEST_SECONDS + 2.0, repeated=repeated)
            with ThreadPoolExecutor(1) as flooding:
                flooded = flooding.submit(send, flood)
                time.sleep(1.0)
                beside = p95()
                outcome = flooded.result()
            figures += [
                Figure(name, f"{what}: ratio of the p95 beside it to the one alone", beside / alone, "", "<= 2"),
                Figure(name, f"{what}: p95 alone", alone, "ms"),
                Figure(name, f"{what}: requests with a response", outcome.requests / outcome.seconds, "/s"),
                Figure(name, f"{what}: share that failed", 1 - outcome.share(200, 201, 202, 429), "", "= 0"),
            ]
    return figures


def greedy_runs(stack: BenchStack) -> list[Figure]:
    """A retry of 100,000 deliveries and a recovery of 100,000 events, beside another's 50 events/s.

    The middle of three rounds: one stall of the machine decides the p95 of a single one.
    """
    name = "greedy-runs"
    figures: list[Figure] = []
    for what in ("retry", "recovery"):
        rounds = [_beside_run(stack, what) for _ in range(RUN_ROUNDS)]
        ratio = median([one.beside / one.alone for one in rounds])
        figures += [
            Figure(name, f"accept to received p95, alone ({what})", median([one.alone for one in rounds]), "ms"),
            Figure(name, f"ratio of the p95 beside it to the one alone ({what})", ratio, "", "<= 2"),
            Figure(name, f"the slowest beside it ({what})", max(one.slowest for one in rounds), "ms"),
            Figure(
                name, f"POSTs of the quiet one that were not accepted ({what})",
                sum(one.refused for one in rounds), "", "= 0",
            ),
            Figure(
                name, f"queued by the run meanwhile ({what})", min(one.queued for one in rounds), "deliveries", "> 0"
            ),
        ]  # fmt: skip
    return figures


@dataclass(frozen=True)
class _BesideRun:
    """A round of `greedy_runs`: the quiet organization's p95s and slowest event, in milliseconds.

    refused: of its POSTs.  queued: deliveries that the greedy one's run has queued meanwhile.
    """

    alone: float
    beside: float
    slowest: float
    refused: int
    queued: int


def _beside_run(stack: BenchStack, what: str) -> _BesideRun:
    """Measure the quiet organization alone, and then beside a run of the other one.  what: "retry" or "recovery"."""
    stack.reset()
    greedy, quiet = stack.tenant("Greedy"), stack.tenant("Quiet")
    with stack.receiver() as receiver, stack.running_web(), stack.running_worker():
        own = stack.subscribe(greedy, receiver.url("/slow/100/greedy"), ["order.created"])
        stack.subscribe(quiet, receiver.url("/ok/quiet"), ["quiet.event"])
        _make_failed(stack, greedy, own, RUN_DELIVERIES)
        load = Load(stack.url, quiet.key, int(RATE * RUN_SECONDS), 50, RATE, types=("quiet.event",))
        send(load)
        _wait_until_quiet(stack, quiet)
        receiver.take()
        send(load)
        _wait_until_quiet(stack, quiet)
        alone = percentile(stack.arrival_times(receiver.take(), "/ok/quiet"), 0.95)
        if what == "retry":
            path, body = "/api/deliveries/retry", {"status": "failed"}
        else:
            own = stack.subscribe(greedy, receiver.url("/slow/100/greedy-2"), ["order.created"])
            path, body = f"/api/subscriptions/{own}/recover", {"since": "2000-01-01T00:00:00Z"}
        _post(stack.url, greedy, path, body)
        time.sleep(SETTLE_SECONDS)
        refused = _refused(send(load))
        queued = stack.value("SELECT coalesce(sum(queued), 0) FROM webhooks_bulkrun")
        _wait_until_quiet(stack, quiet)
        times = stack.arrival_times(receiver.take(), "/ok/quiet")
    return _BesideRun(alone, percentile(times, 0.95), max(times), refused, queued)


def _make_failed(stack: BenchStack, tenant: Tenant, subscription_id: uuid.UUID, number: int) -> None:
    """Insert events whose deliveries to the subscription have failed for good."""
    stack.make_due(tenant, [subscription_id], number)
    stack.sql(
        "UPDATE webhooks_delivery SET status = 'failed', next_attempt_at = NULL, completed_at = clock_timestamp(),"
        " last_error = 'timeout' WHERE subscription_id = %s",
        (subscription_id,),
    )
    stack.settle_tables()


def _requests(subscription_id: uuid.UUID) -> dict[str, tuple[str, str, str]]:
    """Return what is asked for, by name: method, path, and body."""
    schema = {"type": "object", "properties": {f"p{number}": {"type": "string"} for number in range(20)}}
    content = {"application/json": {"schema": schema}}
    webhooks = {f"kind.{number}": {"post": {"requestBody": {"content": content}}} for number in range(50)}
    document = {"openapi": "3.1.0", "info": {"title": "Catalog", "version": "1"}, "webhooks": webhooks}
    preview = {"type": "greedy.event", "data": {"number": 1}}
    subscription = f"/api/subscriptions/{subscription_id}"
    return {
        "lists": ("GET", "/api/deliveries?limit=100", ""),
        "changes": ("PATCH", subscription, json.dumps({"description": "changed"})),
        "previews": ("POST", f"{subscription}/preview", json.dumps(preview)),
        "imports": ("POST", "/api/event-types/import", json.dumps(document)),
        "portal links": ("POST", "/api/portal-links", "{}"),
        "fetches": ("GET", "/api/inbox", ""),
        "reads of the log": ("GET", "/api/inbox?cursor=latest", ""),
        "streams that are left at once": ("GET", "/api/inbox/stream", ""),
        "retries of all deliveries": ("POST", "/api/deliveries/retry", json.dumps({"status": "delivered"})),
    }


def _refused(*outcomes: Outcome) -> int:
    return sum(outcome.requests - outcome.statuses[202] for outcome in outcomes)


def _wait_until_quiet(stack: BenchStack, tenant: Tenant) -> None:
    stack.wait_until(
        "SELECT NOT EXISTS (SELECT 1 FROM events_event WHERE organization_id = %s AND status = 'accepted')"
        " AND NOT EXISTS (SELECT 1 FROM webhooks_delivery WHERE organization_id = %s"
        " AND status IN ('pending', 'delivering'))",
        (tenant.id, tenant.id),
    )


def _post(url: str, tenant: Tenant, path: str, body: object) -> None:
    headers = {"X-API-Key": tenant.key, "Content-Type": "application/json"}
    urllib.request.urlopen(urllib.request.Request(url + path, json.dumps(body).encode(), headers), timeout=60).close()


def _post_batches(url: str, tenant: Tenant, answers: list[int]) -> None:
    body = json.dumps([{"type": "greedy.event", "data": {"number": number}} for number in range(BATCH_EVENTS)]).encode()
    headers = {"X-API-Key": tenant.key, "Content-Type": "application/json"}
    for _ in range(BATCHES):
        request = urllib.request.Request(f"{url}/api/events/batch", body, headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                answers.append(response.status)
        except urllib.error.HTTPError as error:
            answers.append(error.code)
