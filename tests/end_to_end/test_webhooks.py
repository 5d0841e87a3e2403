"""What an integrator sees: what is posted arrives, signed, at every subscription, whatever the others do.

These tests drive the installation that TEST_API_URL and TEST_API_KEY name, when they are set.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from devstack.http_receiver import Behavior, Received, Receiver, Response, always_ok
from devstack.waiting import wait_until
from tests.system import Account

pytestmark = pytest.mark.end_to_end
PATIENCE_SECONDS = 60.0


class Subscriber:
    """A receiver with a subscription to one event type of its own test."""

    def __init__(self, account: Account, event_type: str, behavior: Behavior = always_ok) -> None:
        self.receiver = Receiver(behavior)
        self._account = account
        self._type = event_type

    def __enter__(self) -> Subscriber:
        self.receiver.start()
        made = self._account.make_subscription(self.receiver.url("/hook"), self._type)
        self.id: str = made["id"]
        self.secret: str = made["secret"]
        return self

    def __exit__(self, *error: object) -> None:
        self._account.call("DELETE", f"/api/subscriptions/{self.id}")
        self.receiver.stop()


@pytest.fixture
def event_type() -> str:
    """Return a type that nothing else uses, so that the tests can share an installation with others."""
    return f"test.{secrets.token_hex(6)}"


@pytest.fixture
def subscribe(installation: Account, event_type: str) -> Iterator[Callable[..., Subscriber]]:
    """Return a function that subscribes a new receiver to `event_type`; all end with the test."""
    with contextlib.ExitStack() as stack:
        yield lambda behavior=always_ok: stack.enter_context(Subscriber(installation, event_type, behavior))


def _post(account: Account, event_type: str, data: Any = None) -> str:
    answer = account.call("POST", "/api/events", {"type": event_type, "data": data})
    assert answer.status == 202, answer
    event_id: str = answer.document["id"]
    assert answer.headers["location"] == f"/api/events/{event_id}"
    return event_id


def _until(account: Account, path: str, holds: Callable[[Any], bool]) -> Any:
    """Read `path` until `holds` of it, and return it."""

    def read() -> Any:
        found = account.call("GET", path).document
        return [found] if holds(found) else None

    return wait_until(read, f"{path} stayed as it was", PATIENCE_SECONDS)[0]


def _of(event: Any, member: str, *subscribers: Subscriber) -> list[Any]:
    """Return a member of the subscribers' deliveries of an event; others may have subscribed to everything."""
    found = {delivery["subscription_id"]: delivery[member] for delivery in event["deliveries"]}
    return [found.get(subscriber.id) for subscriber in subscribers]


def _verify(secret: str, request: Received) -> Any:
    return Webhook(secret).verify(request.body, request.headers)


def test_what_is_posted_arrives_signed_and_a_tampered_body_does_not_verify(
    installation: Account, event_type: str, subscribe: Callable[..., Subscriber]
) -> None:
    subscriber = subscribe()
    event_id = _post(installation, event_type, {"total": 12.5, "note": "früh"})
    (request,) = subscriber.receiver.wait_for(1)
    verified = _verify(subscriber.secret, request)
    assert verified["id"] == event_id == request.headers["webhook-id"]
    assert (verified["type"], verified["data"]) == (event_type, {"total": 12.5, "note": "früh"})
    assert request.headers["content-type"] == "application/json"
    with pytest.raises(WebhookVerificationError):
        Webhook(subscriber.secret).verify(request.body.replace(b"12.5", b"99.5"), request.headers)
    event = _until(installation, f"/api/events/{event_id}", lambda e: _of(e, "status", subscriber) == ["delivered"])
    assert event["status"] == "processed"
    (delivery_id,) = _of(event, "id", subscriber)
    delivery = installation.call("GET", f"/api/deliveries/{delivery_id}").document
    assert [attempt["status_code"] for attempt in delivery["attempts"]] == [200]


def test_data_arrives_byte_for_byte(
    installation: Account, event_type: str, subscribe: Callable[..., Subscriber]
) -> None:
    subscriber = subscribe()
    data = '{"b": 1.00, "a": 12345678901234567890123, "c": [ ], "é": "\\u00e9"}'
    body = f'{{"type": "{event_type}", "data": {data}}}'
    answer = installation.send("POST", "/api/events", body.encode())
    assert answer.status == 202
    (request,) = subscriber.receiver.wait_for(1)
    assert request.body.endswith(b'"data":' + data.encode() + b"}")


def test_json_that_many_parsers_refuse_arrives_byte_for_byte_from_single_posts_and_batches(
    installation: Account, event_type: str, subscribe: Callable[..., Subscriber]
) -> None:
    subscriber = subscribe()
    texts = ["1e400", '{"\\ud800":["\\udc00\\u0000", -1E+999 ]}', "9" * 400]
    events = [f'{{"type":"{event_type}","data":{text}}}'.encode() for text in texts]
    for event in events:
        assert installation.send("POST", "/api/events", event).status == 202
    assert installation.send("POST", "/api/events/batch", b"[" + b",".join(events) + b"]").document["accepted"] == 3
    requests = subscriber.receiver.wait_for(6)
    assert sorted(request.body.split(b',"data":')[1][:-1].decode() for request in requests) == sorted(texts * 2)
    for request in requests:
        _verify(subscriber.secret, request)


def test_only_the_subscription_that_failed_is_tried_again(
    installation: Account, event_type: str, subscribe: Callable[..., Subscriber]
) -> None:
    def fails_once(request: Received, number: int) -> Response:
        return Response(500 if number == 1 else 200)

    steady, flaky, other = subscribe(), subscribe(fails_once), subscribe()
    event_id = _post(installation, event_type)
    first, second = flaky.receiver.wait_for(2)
    assert first.headers["webhook-id"] == second.headers["webhook-id"] == event_id
    _verify(flaky.secret, second)
    event = _until(
        installation,
        f"/api/events/{event_id}",
        lambda e: _of(e, "status", steady, flaky, other) == ["delivered"] * 3,
    )
    assert _of(event, "attempt_count", steady, flaky, other) == [1, 2, 1]
    assert (steady.receiver.count, other.receiver.count) == (1, 1)


def _post_many(account: Account, event_type: str, count: int) -> list[str]:
    answer = account.call(
        "POST", "/api/events/batch", [{"type": event_type, "data": number} for number in range(count)]
    )
    assert answer.document["accepted"] == count, answer
    return [item["id"] for item in answer.document["data"]]


def test_receivers_that_hang_hold_up_neither_the_api_nor_the_fan_out_nor_a_healthy_one(
    installation: Account, event_type: str, subscribe: Callable[..., Subscriber]
) -> None:
    hang = threading.Event()

    def behave(request: Received, number: int) -> Response:
        return Response(delay=30 if hang.is_set() else 0)

    hanging = [subscribe(behave) for _ in range(3)]
    # They work well at first, until each may have far more requests at once than its share of a worker.
    _post_many(installation, event_type, 500)
    for subscriber in hanging:
        subscriber.receiver.wait_for(500, timeout=PATIENCE_SECONDS)
    hang.set()
    stuck = _post_many(installation, event_type, 500)
    for subscriber in hanging:
        subscriber.receiver.wait_for(501, timeout=PATIENCE_SECONDS)
    # The events until now are none of the healthy one's, which comes after their fan-out.
    waiting = f"/api/events?type={event_type}&status=accepted"
    wait_until(lambda: not installation.call("GET", waiting).document["data"], timeout=PATIENCE_SECONDS)
    healthy = subscribe()
    events = [_post(installation, event_type, number) for number in range(50)]
    arrived = healthy.receiver.wait_for(50, timeout=PATIENCE_SECONDS)
    assert {request.headers["webhook-id"] for request in arrived} == set(events)
    # All of that came before the first of the hanging requests ended.
    for event_id in (stuck[0], stuck[-1], events[-1]):
        event = installation.call("GET", f"/api/events/{event_id}").document
        assert event["status"] == "processed"
        assert _of(event, "attempt_count", *hanging) == [0, 0, 0], "they were waited for"


def test_a_retried_post_is_a_duplicate_and_is_delivered_once(
    installation: Account, event_type: str, subscribe: Callable[..., Subscriber]
) -> None:
    subscriber = subscribe()
    body = {"type": event_type, "data": {"id": 17}, "dedup_id": secrets.token_hex(8)}
    first = installation.call("POST", "/api/events", body)
    again = installation.call("POST", "/api/events", body)
    other = installation.call("POST", "/api/events", {**body, "data": {"id": 18}})
    assert (first.status, again.status, other.status) == (202, 200, 409)
    assert again.document["id"] == first.document["id"] == other.document["event_id"]
    last = _post(installation, event_type, "last")
    subscriber.receiver.wait_for(2)
    _until(installation, f"/api/events/{last}", lambda e: _of(e, "status", subscriber) == ["delivered"])
    received = [request.headers["webhook-id"] for request in subscriber.receiver.requests]
    assert sorted(received) == sorted([first.document["id"], last])


def test_a_batch_is_answered_for_item_by_item_and_delivered(
    installation: Account, event_type: str, subscribe: Callable[..., Subscriber]
) -> None:
    subscriber = subscribe()
    answer = installation.call(
        "POST", "/api/events/batch",
        [{"type": event_type, "data": 1}, {"type": "not a type", "data": 2}, {"type": event_type, "data": 3}],
    )  # fmt: skip
    assert answer.status == 202
    assert [item["status"] for item in answer.document["data"]] == ["accepted", "invalid", "accepted"]
    got = {json.loads(request.body)["data"] for request in subscriber.receiver.wait_for(2)}
    assert got == {1, 3}


def test_while_a_subscription_is_disabled_it_loses_nothing(
    installation: Account, event_type: str, subscribe: Callable[..., Subscriber]
) -> None:
    subscriber = subscribe()
    assert installation.call("POST", f"/api/subscriptions/{subscriber.id}/disable").status == 200
    held = [_post(installation, event_type, number) for number in range(5)]
    _until(installation, f"/api/events/{held[-1]}", lambda e: _of(e, "status", subscriber) == ["held"])
    assert subscriber.receiver.count == 0
    assert installation.call("POST", f"/api/subscriptions/{subscriber.id}/enable").status == 200
    arrived = subscriber.receiver.wait_for(5)
    assert {request.headers["webhook-id"] for request in arrived} == set(held)
