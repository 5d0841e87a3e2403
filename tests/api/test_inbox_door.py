"""Inboxes at the front door: consumers that wait, streams, and what ends them, on real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import socket
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from django.db import connection
from django_redis import get_redis_connection

from core.shared_threads import always
from devstack import processes
from devstack.waiting import wait_until
from orgs import keys
from orgs.keys import create_api_key
from orgs.models import Organization
from tests.api.conftest import DoorClient
from tests.busy import busy_rests, long_rests
from tests.servers import postgres
from tests.webhooks.helpers import fan_out
from webhooks import inboxes, subscriptions
from webhooks.api.inbox_requests import InboxQuery
from webhooks.api.inbox_waiting import WaitingRoom
from webhooks.destinations.inbox.arrivals import CHANNEL, announced
from webhooks.models import Delivery, DisabledCause, Subscription

__all__ = ["long_rests"]

pytestmark = pytest.mark.django_db(transaction=True)

POLL = "/api/inbox?inbox=orders&wait=20"


class Consumer(DoorClient):
    """A client at the front door with a key of its own, whose requests may wait."""

    def __init__(self, organization: Organization, port: int) -> None:
        self.row, key = create_api_key(organization)
        super().__init__(key, port)
        self.organization = organization
        self.port = port

    def send(self, *numbers: int) -> list[str]:
        """Send an event for each number and fan them out; return their ids."""
        ids = [self.post("/api/events", {"type": "a", "data": {"n": number}}).json()["id"] for number in numbers]
        fan_out()
        return ids

    @contextlib.contextmanager
    def waiting(self, path: str = POLL) -> Iterator[Future[Any]]:
        """Have a request wait meanwhile; yield its answer to come."""
        with ThreadPoolExecutor(1) as pool:
            answer = pool.submit(self.get, path)
            wait_until(lambda: self.places() == 1)
            yield answer

    def places(self) -> int:
        """Return how many of the organization's requests wait."""
        from triggers_project.asgi import inbox_door

        return inbox_door.room.waiting(self.organization.id)

    def ask(self, path: str, *lines: str) -> socket.socket:
        """Send a request on a connection of its own, which the caller closes."""
        connected = socket.create_connection(("127.0.0.1", self.port), timeout=30)
        head = [f"GET {path} HTTP/1.1", "Host: localhost", f"X-API-Key: {self.key}", *lines, "", ""]
        connected.sendall("\r\n".join(head).encode())
        return connected

    @contextlib.contextmanager
    def stream(self, *lines: str, query: str = "inbox=orders") -> Iterator[http.client.HTTPResponse]:
        """Open a stream; what was there when it began has been looked at when its first line has come."""
        with contextlib.closing(self.ask(f"/api/inbox/stream?{query}", *lines)) as connected:
            response = http.client.HTTPResponse(connected)
            with response:  # whose end closes the connection
                response.begin()
                assert response.status == 200
                assert response.headers["Content-Type"] == "text/event-stream"
                assert response.readline() == b"retry: 1000\n"
                # Where a client goes on that receives nothing.
                assert response.readline().startswith(b"id: ")
                yield response


def next_event(response: http.client.HTTPResponse) -> tuple[str, dict[str, Any]]:
    """Return the next event of a stream: its cursor and its document."""
    found: dict[str, list[str]] = {}
    while line := response.readline().decode():
        name, _, value = line.rstrip("\n").partition(": ")
        if name in {"id", "data"}:
            found.setdefault(name, []).append(value)
        elif not line.strip() and "data" in found:
            return found["id"][-1], json.loads("\n".join(found["data"]))
    raise EOFError("the stream has ended")


@pytest.fixture
def orders(organization: Organization) -> Subscription:
    """Return an inbox."""
    return subscriptions.create(organization.id, inbox="orders", event_types=["*"])[0]


@pytest.fixture
def consumer(_door: int, organization: Organization, orders: Subscription) -> Consumer:
    """Return a consumer of the inbox."""
    return Consumer(organization, _door)


@pytest.mark.parametrize("path", [POLL, f"{POLL}&type=a", f"{POLL}&cursor=latest"])
def test_a_consumer_that_waits_is_woken_by_an_event(consumer: Consumer, path: str) -> None:
    with consumer.waiting(path) as answer:
        ids = consumer.send(1)
        found = answer.result(60)
    assert found.status_code == 200
    assert [event["id"] for event in found.json()["events"]] == ids
    assert consumer.places() == 0


@pytest.mark.parametrize("query", ["", "&type=a", "&cursor=latest"])
def test_a_wait_ends_without_an_event(consumer: Consumer, query: str) -> None:
    assert consumer.get(f"/api/inbox?inbox=orders&wait=0.3{query}").json()["events"] == []
    assert consumer.places() == 0


def test_an_arrival_is_announced_so_that_nobody_has_to_look(consumer: Consumer, orders: Subscription) -> None:
    pubsub = get_redis_connection("default").pubsub(ignore_subscribe_messages=True)
    with contextlib.closing(pubsub):
        pubsub.subscribe(CHANNEL)
        consumer.send(1)
        wait_until(lambda: (message := pubsub.get_message(timeout=1)) and announced(message["data"]) == [orders.pk])


@pytest.mark.usefixtures("long_rests")
@pytest.mark.parametrize("there_are_events", [True, False])
def test_on_busy_processors_a_consumer_rests_after_a_fetch_that_finds_nothing(
    consumer: Consumer, orders: Subscription, there_are_events: bool
) -> None:
    if there_are_events:
        consumer.send(1, 2, 3)
    inbox = inboxes.find(consumer.organization.pk, "orders")
    caller = keys.authenticate(consumer.key)
    assert inbox is not None
    assert caller is not None

    async def run() -> bool:
        room = WaitingRoom(lambda who: True, busy_rests())
        query, gone = InboxQuery(limit=1), asyncio.get_running_loop().create_future()
        for _ in range(2):  # the first two looks tell how busy the processors are
            await room.run(caller, lambda: None, is_urgent=always)
        assert bool((await room.fetch(caller, inbox, query, gone))[1]) is there_are_events
        following = asyncio.create_task(room.fetch(caller, inbox, query, gone))
        while there_are_events and not following.done():
            await asyncio.sleep(0.01)
        another = replace(caller, organization_id=uuid.uuid4())
        for _ in range(50):  # which takes longer than a fetch that isn't kept waiting
            assert await room.run(another, lambda: "served", is_urgent=always) == "served"
        served = following.done()
        following.cancel()
        return served

    assert asyncio.run(asyncio.wait_for(run(), 60)) is there_are_events


def test_consumers_that_wait_get_an_event_each(consumer: Consumer) -> None:
    with ThreadPoolExecutor(10) as pool:
        answers = [pool.submit(consumer.get, f"{POLL}&limit=1") for _ in range(10)]
        wait_until(lambda: consumer.places() == 10)
        ids = consumer.send(*range(10))
        found = [event["id"] for answer in answers for event in answer.result(60).json()["events"]]
    assert sorted(found) == sorted(ids)


def test_one_that_doesn_t_wait_gets_what_is_there_at_once(consumer: Consumer) -> None:
    assert consumer.get("/api/inbox?inbox=orders").json()["events"] == []
    ids = consumer.send(1, 2)
    got = consumer.get("/api/inbox?inbox=orders").json()
    assert [event["id"] for event in got["events"]] == ids
    assert set(got) == {"events", "next_cursor", "lease_id", "lease_expires_at"}
    assert consumer.post("/api/inbox/ack", {"event_ids": ids, "inbox": "orders"}).json()["acknowledged"] == 2


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/api/inbox?limit=0", 400, "invalid"), ("/api/inbox?wait=21", 400, "invalid"),
        ("/api/inbox?inbox=none", 404, "inbox_not_found"), ("/api/inbox/stream?inbox=none", 404, "inbox_not_found"),
        ("/api/inbox/stream?limit=1", 400, "invalid"), ("/api/inbox?cursor=x", 400, "invalid"),
    ],
)  # fmt: skip
def test_a_request_that_cannot_be_honored_is_refused(consumer: Consumer, path: str, status: int, code: str) -> None:
    refused = consumer.get(path)
    assert (refused.status_code, refused.json()["code"]) == (status, code)


def test_a_stream_goes_on_behind_the_last_event_that_was_received(consumer: Consumer) -> None:
    with consumer.stream() as stream:
        wait_until(lambda: consumer.places() == 1)
        first, second = consumer.send(1, 2)
        cursor, event = next_event(stream)
        assert (event["id"], event["payload"], event["delivery_status"]) == (first, {"n": 1}, "pending")
    wait_until(lambda: consumer.places() == 0)
    with consumer.stream(f"Last-Event-ID: {cursor}") as stream:
        assert next_event(stream)[1]["id"] == second
        [third] = consumer.send(3)
        assert next_event(stream)[1]["id"] == third
    assert Delivery.objects.filter(lease_id=None, status="pending").count() == 3, "a stream leases nothing"


def test_a_consumer_that_goes_away_frees_its_place_and_takes_no_event_with_it(consumer: Consumer) -> None:
    connected = consumer.ask(POLL)
    wait_until(lambda: consumer.places() == 1)
    connected.close()
    wait_until(lambda: consumer.places() == 0, timeout=15)  # and not when the 20 s are over
    ids = consumer.send(1)
    got = consumer.get("/api/inbox?inbox=orders").json()["events"]
    assert [(event["id"], event["attempt"]) for event in got] == [(ids[0], 1)]


def test_a_client_that_has_ended_its_side_gets_what_is_there_and_waits_for_nothing(consumer: Consumer) -> None:
    for count in (0, 1):
        ids = consumer.send(*range(count))
        with contextlib.closing(consumer.ask(POLL)) as connected:
            connected.shutdown(socket.SHUT_WR)
            answer = http.client.HTTPResponse(connected)
            answer.begin()
            assert answer.status == 200
            assert [event["id"] for event in json.loads(answer.read())["events"]] in ([], ids)
    assert consumer.places() == 0


def test_a_key_that_is_revoked_during_a_wait_gets_nothing(consumer: Consumer) -> None:
    other = Consumer(consumer.organization, consumer.port)
    with consumer.waiting() as answer:
        keys.revoke(consumer.row)
        ids = other.send(1)
        refused = answer.result(60)
    assert (refused.status_code, "events" in refused.json()) == (401, False)
    got = other.get("/api/inbox?inbox=orders").json()["events"]
    assert [(event["id"], event["attempt"]) for event in got] == [(ids[0], 1)]


def test_a_stream_ends_when_its_key_is_revoked(consumer: Consumer) -> None:
    other = Consumer(consumer.organization, consumer.port)
    with consumer.stream() as stream:
        keys.revoke(consumer.row)
        other.send(1)
        with pytest.raises(EOFError):
            next_event(stream)


@pytest.mark.parametrize(
    ("close", "status", "code"),
    [(subscriptions.disable, 409, "inbox_disabled"), (subscriptions.delete, 404, "inbox_not_found")],
)
@pytest.mark.parametrize("path", [POLL, f"{POLL}&type=a", f"{POLL}&cursor=latest"])
def test_consumers_that_wait_are_told_at_once_that_their_inbox_is_closed(
    consumer: Consumer, orders: Subscription, path: str, close: Callable[[Subscription], None], status: int, code: str
) -> None:
    with ThreadPoolExecutor(3) as pool:
        answers = [pool.submit(consumer.get, path) for _ in range(3)]
        wait_until(lambda: consumer.places() == 3)
        close(orders)
        refused = [answer.result(60) for answer in answers]  # with a 200 if they had waited for 20 s
    assert {(one.status_code, one.json()["code"]) for one in refused} == {(status, code)}
    assert consumer.places() == 0


def test_all_web_processes_are_told_that_inboxes_are_closed(organization: Organization, orders: Subscription) -> None:
    other = subscriptions.create(organization.id, inbox="other", event_types=["*"])[0]
    pubsub = get_redis_connection("default").pubsub(ignore_subscribe_messages=True)
    told: list[uuid.UUID] = []

    def hear() -> int:
        message = pubsub.get_message(timeout=1)
        told.extend(announced(message["data"]) if message else [])
        return len(told)

    with contextlib.closing(pubsub):
        pubsub.subscribe(CHANNEL)
        subscriptions.disable(orders)
        subscriptions.delete(orders)
        subscriptions.disable_many([other.pk], DisabledCause.BY_OPERATOR, "Because.", audit=lambda rows: None)
        wait_until(lambda: hear() == 3)
    assert told == [orders.pk, orders.pk, other.pk]


def test_a_stream_ends_when_its_inbox_is_disabled(consumer: Consumer, orders: Subscription) -> None:
    with consumer.stream() as stream:
        wait_until(lambda: consumer.places() == 1)
        consumer.send(1)
        next_event(stream)
        subscriptions.disable(orders)
        with pytest.raises(EOFError):
            next_event(stream)
    assert consumer.get("/api/inbox/stream?inbox=orders").json()["code"] == "inbox_disabled"


@pytest.mark.end_to_end
def test_a_server_that_stops_ends_what_waits_cleanly(organization: Organization, tmp_path: Path) -> None:
    environment = {"DATABASE_URL": postgres.url(connection.settings_dict["NAME"])}
    process, base = processes.web(tmp_path / "web.log", env=environment, workers=1)
    try:
        consumer = Consumer(organization, int(base.rsplit(":", 1)[1]))
        with contextlib.closing(consumer.ask("/api/inbox?wait=20")) as polling:
            # It makes the default inbox and then waits, or sees that the server stops.
            wait_until(lambda: Subscription.objects.filter(inbox="default").exists())
            with consumer.stream(query="") as stream:
                process.signal(15)
                while stream.readline():  # raises if the body is cut off
                    pass
            answer = http.client.HTTPResponse(polling)
            answer.begin()
            assert (answer.status, json.loads(answer.read())["events"]) == (200, [])
        assert process.wait() == 0
    finally:
        process.kill()
    assert '"level":"error"' not in (tmp_path / "web.log").read_text()
