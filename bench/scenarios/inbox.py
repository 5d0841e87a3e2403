"""What an inbox gives to its consumers, and what that costs the webhooks beside it."""

from __future__ import annotations

import asyncio
import json
import threading
import time
import uuid
from dataclasses import dataclass

import orjson

from bench.client import Api
from bench.figures import Figure
from bench.load import Load, send
from bench.stack import BenchStack, Tenant

EVENTS = 60_000
CONSUMERS = 4
LIMIT = 100
PUSH_RATE = 100.0
PUSH_SECONDS = 8
WARM_UP = 40


@dataclass
class _Consumed:
    """What consumers have fetched and acknowledged."""

    acknowledged: int = 0
    refused: int = 0
    seconds: float = 0.0

    @property
    def rate(self) -> float:
        return self.acknowledged / self.seconds if self.seconds else 0.0


def inbox(stack: BenchStack) -> list[Figure]:
    """Four consumers fetch and acknowledge 100 events at a time from one inbox; webhooks, paced, beside them."""
    name = "inbox"
    stack.reset()
    reader, pusher = stack.tenant("Reader"), stack.tenant("Pusher")
    with stack.receiver() as receiver, stack.running_web(), stack.running_worker():
        inbox_id = _make_inbox(stack, reader)
        stack.subscribe(pusher, receiver.url("/ok/push"), ["push.event"])
        _fill(stack, reader, inbox_id)
        alone = _consume(stack.url, reader, threading.Event())
        twice = stack.value("SELECT count(*) FROM webhooks_delivery WHERE subscription_id = %s AND attempt_count <> 1",
                          (inbox_id,))  # fmt: skip
        _push(stack, pusher, WARM_UP)
        receiver.take()
        _push(stack, pusher, int(PUSH_RATE * PUSH_SECONDS))
        push_alone = _rate([at for path, _, at in receiver.take() if path == "/ok/push"])
        _fill(stack, reader, inbox_id)
        enough = threading.Event()
        beside: list[_Consumed] = []
        consumers = threading.Thread(target=lambda: beside.append(_consume(stack.url, reader, enough)), daemon=True)
        consumers.start()
        _push(stack, pusher, int(PUSH_RATE * PUSH_SECONDS))
        enough.set()
        consumers.join(60)
        push_beside = _rate([at for path, _, at in receiver.take() if path == "/ok/push"])
    return [
        Figure(name, f"fetched and acknowledged, {CONSUMERS} consumers", alone.rate, "events/s", ">= 5000"),
        Figure(name, "fetched more than once", twice, "events", "= 0"),
        Figure(name, "not fetched or not acknowledged", EVENTS - alone.acknowledged, "events", "= 0"),
        Figure(name, "requests that were refused", alone.refused + sum(one.refused for one in beside), "", "= 0"),
        Figure(name, "webhooks, nothing beside them", push_alone, "deliveries/s"),
        Figure(name, "webhooks beside the consumers", push_beside, "deliveries/s"),
        Figure(name, "ratio of the two", push_beside / push_alone, "", ">= 0.9"),
        Figure(name, "fetched and acknowledged beside the webhooks", sum(one.rate for one in beside), "events/s"),
    ]


def _make_inbox(stack: BenchStack, tenant: Tenant) -> uuid.UUID:
    from webhooks import subscriptions

    made, _ = subscriptions.create(tenant.id, inbox="bench", event_types=["bench.nothing"])
    inbox_id: uuid.UUID = made.pk
    return inbox_id


def _fill(stack: BenchStack, tenant: Tenant, inbox_id: uuid.UUID) -> None:
    stack.make_due(tenant, [inbox_id], EVENTS)
    stack.settle_tables()


def _push(stack: BenchStack, tenant: Tenant, events: int) -> None:
    """Send events at the rate and wait until their webhooks are delivered."""
    send(Load(stack.url, tenant.key, events, 20, PUSH_RATE, types=("push.event",)))
    stack.wait_until(
        "SELECT NOT EXISTS (SELECT 1 FROM events_event WHERE organization_id = %s AND status = 'accepted')"
        " AND NOT EXISTS (SELECT 1 FROM webhooks_delivery WHERE organization_id = %s"
        " AND status IN ('pending', 'delivering'))",
        (tenant.id, tenant.id),
    )


def _rate(times: list[float]) -> float:
    """Return how many arrived a second."""
    return (len(times) - 1) / (max(times) - min(times)) if len(times) > 1 else float("nan")


def _consume(url: str, tenant: Tenant, enough: threading.Event) -> _Consumed:
    """Fetch and acknowledge until the inbox is empty, or it is enough."""
    consumed = _Consumed()
    api = Api(url, tenant.key)
    fetch = api.build("GET", f"/api/inbox?inbox=bench&limit={LIMIT}&visibility=600")

    async def work() -> None:
        connection = api.connection()
        while not enough.is_set():
            status, body = await connection.request(fetch)
            if status != 200:
                consumed.refused += 1
                break
            page = orjson.loads(body)
            if not page["events"]:
                break
            ids = [event["delivery_id"] for event in page["events"]]
            items = {"inbox": "bench", "lease_id": page["lease_id"], "delivery_ids": ids}
            status, body = await connection.request(api.build("POST", "/api/inbox/ack", json.dumps(items).encode()))
            consumed.refused += status != 200
            consumed.acknowledged += orjson.loads(body)["acknowledged"] if status == 200 else 0
        connection.close()

    async def all_of_them() -> None:
        await asyncio.gather(*(work() for _ in range(CONSUMERS)))

    started = time.perf_counter()
    asyncio.run(all_of_them())
    consumed.seconds = time.perf_counter() - started
    return consumed
