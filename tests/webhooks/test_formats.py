"""The formats of a webhook's body, on real sockets, and expressions that do their worst."""

from __future__ import annotations

import datetime
import html
import json
import time
import uuid
from typing import Any
from urllib.parse import unquote

import pytest

from devstack.http_receiver import Receiver
from devstack.waiting import wait_until
from orgs.keys import create_api_key
from orgs.models import Organization
from orgs.scopes import Scope
from tests.api.helpers import assert_problem
from tests.conftest import ApiClient
from tests.webhooks.helpers import accept, queue_of, result, sending, statuses, subscribe
from webhooks import delivery_actions, endpoint_test, subscriptions
from webhooks.delivery_actions import DeliveryAction
from webhooks.destinations.formats import render
from webhooks.destinations.http.curl import body_command
from webhooks.destinations.outcome import Failure
from webhooks.destinations.transform import TransformError, check_expression, transform
from webhooks.dispatch.claim import claim
from webhooks.dispatch.record import record_results
from webhooks.display.exchange import exchange_blocks
from webhooks.models import FORMATS, DeliveryAttempt, Subscription
from webhooks.outgoing import SingleOutgoing

ORGANIZATION = uuid.uuid4()
NEW = {"url": "https://a.example/", "event_types": ["*"]}
ENVELOPE: dict[str, Any] = {
    "id": "0198f2d0-6d3c-7a52-9b1e-2f4c8a7d1e91",
    "type": "order.created",
    "timestamp": "2026-01-01T00:00:00Z",
    "data": {"order": 4711, "lines": [{"n": 1, "sku": "a"}, {"n": 2, "sku": "b"}]},
}


def sent(receiver: Receiver, organization: Organization, format: str, expression: str = "") -> Any:
    """Send a test event in a format; return what arrived, and what came of it."""
    subscription, _ = subscriptions.create(
        organization.id, url=receiver.url("/"), event_types=["*"], format=format, transform=expression
    )
    tested = endpoint_test.send_test_event(subscription)
    return tested, (receiver.requests[-1] if receiver.requests else None)


def test_each_format_has_its_shape(receiver: Receiver, organization: Organization) -> None:
    tested, request = sent(receiver, organization, "standard")
    assert list(json.loads(request.body)) == ["id", "type", "timestamp", "data"]
    source = f"/organizations/{organization.id}"

    tested, request = sent(receiver, organization, "cloudevents")
    event = json.loads(request.body)
    assert request.headers["content-type"] == "application/cloudevents+json; charset=utf-8"
    assert (event["specversion"], event["id"], event["source"]) == ("1.0", str(tested.event_id), source)
    assert (event["type"], event["datacontenttype"], event["data"]["test"]) == (
        "triggers.test", "application/json", True,
    )  # fmt: skip
    datetime.datetime.fromisoformat(event["time"])

    tested, request = sent(receiver, organization, "cloudevents-binary")
    assert request.headers["content-type"] == "application/json"
    assert request.headers["ce-id"] == str(tested.event_id)
    assert unquote(request.headers["ce-source"]) == source
    assert (request.headers["ce-specversion"], request.headers["ce-type"]) == ("1.0", "triggers.test")
    assert json.loads(request.body)["test"] is True

    tested, request = sent(receiver, organization, "legacy")
    legacy = json.loads(request.body)
    assert list(legacy) == ["event_id", "event_type", "payload", "created_at"]
    assert (legacy["event_id"], legacy["payload"]["test"]) == (str(tested.event_id), True)

    _, request = sent(receiver, organization, "raw")
    assert json.loads(request.body)["test"] is True

    _, request = sent(receiver, organization, "transform", "{kind: type, ok: data.test}")
    assert json.loads(request.body) == {"kind": "triggers.test", "ok": True}
    assert all(one.headers["webhook-signature"].startswith("v1,") for one in receiver.requests)


def test_a_cloudevent_leaves_with_its_own_attributes_and_data() -> None:
    def rendered(form: str, data: str, **kept: Any) -> Any:
        event = SingleOutgoing(
            uuid.uuid4(), "a.b", datetime.datetime.now(datetime.UTC), data, None, ORGANIZATION,  # type: ignore[arg-type]
            event_cloudevent=json.dumps({"id": "1", "source": "/s", "time": "2026-01-01T00:00:00Z", **kept}),
        )  # fmt: skip
        return render(event, ORGANIZATION, form)

    body = rendered("cloudevents", '{"a": 1.0}', ext="é", flag=True, count=3)
    assert body.content.endswith(b',"data":{"a": 1.0}}')
    assert json.loads(body.content) == {
        "specversion": "1.0", "type": "a.b", "id": "1", "source": "/s", "time": "2026-01-01T00:00:00Z", "ext": "é",
        "flag": True, "count": 3, "data": {"a": 1.0},
    }  # fmt: skip
    body = rendered("cloudevents-binary", '{"a": 1.0}', ext="é", flag=True, count=3)
    assert (body.content, body.content_type) == (b'{"a": 1.0}', "application/json")
    assert dict(body.headers) == {
        "ce-specversion": "1.0", "ce-type": "a.b", "ce-id": "1", "ce-source": "/s", "ce-time": "2026-01-01T00:00:00Z",
        "ce-ext": "%C3%A9", "ce-flag": "true", "ce-count": "3",
    }  # fmt: skip
    for form in ("cloudevents-binary", "raw"):
        body = rendered(form, '"a\\nb"', datacontenttype="text/plain")
        assert (body.content, body.content_type) == (b"a\nb", "text/plain")
        body = rendered(form, '"/wA="', datacontenttype="image/png", _data="base64")
        assert (body.content, body.content_type) == (b"\xff\x00", "image/png")
        assert rendered(form, '"/wA="', _data="base64").content_type == "application/octet-stream"
        body = rendered(form, "null", _data="none")
        assert (body.content, body.content_type) == (b"", "")
    assert json.loads(rendered("cloudevents", '"a"', datacontenttype="text/plain").content)["data"] == "a"
    assert json.loads(rendered("cloudevents", '"/wA="', _data="base64").content)["data_base64"] == "/wA="
    assert "data" not in json.loads(rendered("cloudevents", "null", _data="none").content)
    assert json.loads(rendered("cloudevents", "null").content)["data"] is None
    assert json.loads(rendered("standard", '"/wA="', _data="base64").content)["data"] == "/wA="


def test_a_failing_expression_fails_the_delivery_and_says_why(receiver: Receiver, organization: Organization) -> None:
    tested, request = sent(receiver, organization, "transform", "join(',', data)")
    assert request is None
    assert tested.outcome.failure is Failure.TRANSFORM_FAILED
    assert "join" in tested.outcome.detail
    assert tested.outcome.is_permanent


@pytest.mark.django_db(transaction=True)
def test_an_exchange_shows_the_body_that_was_sent(receiver: Receiver, organization: Organization, api: Any) -> None:
    for form in FORMATS:
        subscribe(organization, receiver.url(f"/{form}"), format=form, transform="{text: data.text}")
    accept(organization, data='{ "text": "it\'s é",  "n": 1e400 }'.replace("1e400", "10000000000000000001"))
    with sending():
        wait_until(lambda: DeliveryAttempt.objects.count() == len(FORMATS), timeout=30)
    sent_bodies = {request.path[1:]: request.body.decode() for request in receiver.requests}
    assert len(set(sent_bodies.values())) == len(FORMATS) - 1  # `raw` and binary CloudEvents have the same body
    # What the subscriptions send from now on changes nothing about it.
    Subscription.objects.update(format="legacy", transform="")
    blind = ApiClient(create_api_key(organization, scopes=[Scope.DELIVERIES_READ.value])[1])
    for attempt in DeliveryAttempt.objects.select_related("delivery__event", "delivery__subscription"):
        form = attempt.delivery.subscription.url.rpartition("/")[2]
        path = f"/api/deliveries/{attempt.delivery_id}/attempts/1"
        shown = api.get(path).json()["exchange"]["request"]
        assert (shown["format"], shown["body"]) == (form, sent_bodies[form])
        assert shown["body_bytes"] == len(sent_bodies[form].encode())
        assert blind.get(path).json()["exchange"]["request"]["body"] is None
        [block] = exchange_blocks(attempt.delivery, [attempt])
        assert f">{body_command(sent_bodies[form])}<" in html.unescape(block)
        assert 'data-copy-from="curl-body-1 curl-1"' in block


@pytest.mark.django_db
def test_a_failing_expression_is_not_held_against_the_endpoint(organization: Organization, settings: Any) -> None:
    settings.DISABLE_AFTER_FAILING_FOR = 0.0
    settings.BREAKER_THRESHOLD = 2
    subscription = subscribe(organization)
    accept(organization, 3)
    before = queue_of(subscription)
    claimed = claim(20).deliveries
    assert len(claimed) == 3
    record_results([result(one, None, Failure.TRANSFORM_FAILED, detail="no") for one in claimed])
    after = queue_of(subscription)
    # At once: each attempt would fail in the same way.
    assert statuses() == ["failed"] * 3
    for name in ("consecutive_failures", "breaker_trips", "paused_until", "failing_since", "concurrency_window"):
        assert getattr(after, name) == getattr(before, name), name
    assert (after.recent_failures, after.last_error, after.last_status_code) == ([], "transform_failed", None)
    assert after.last_failure_at is not None
    subscription.refresh_from_db()
    assert subscription.is_active
    # Somebody corrects the expression and asks for another attempt.
    delivery = DeliveryAttempt.objects.order_by("id")[0].delivery
    assert delivery_actions.apply(DeliveryAction.RETRY, [delivery.pk], announce=False)
    [again] = claim(20).deliveries
    record_results([result(again)])
    delivery.refresh_from_db()
    assert delivery.status == "delivered"


BOMBS = {
    "doubling a text": "to_string(@)|" + "|".join(["join('', [@, @])"] * 40),
    "doubling a list": "|".join(["[@, @]"] * 50),
    "doubling a flat list": "[@]|" + "|".join(["[@, @][]"] * 25),
    "doubling an object": "|".join(["{a: @, b: @}"] * 50),
    "a long separator": "join(to_string(data.long), data.texts)",
    "comparing for ever": "[" + ",".join(["data.many == data.same"] * 170) + "]",
    "nested maps": "data.many[].[" + ",".join(["@"] * 1000) + "]",
}


@pytest.mark.parametrize("name", BOMBS)
def test_an_expression_that_explodes_is_stopped(name: str) -> None:
    many = list(range(20_000))
    data = {"long": "x" * 100_000, "texts": [""] * 20_000, "many": many, "same": many}
    envelope = json.dumps({**ENVELOPE, "data": data}).encode()
    began = time.process_time()
    with pytest.raises(TransformError, match=r"steps|values and characters"):
        transform(BOMBS[name], envelope)
    assert time.process_time() - began < 5  # of this process's own time; most take some milliseconds


def test_an_ordinary_expression_over_a_large_event_is_not_stopped() -> None:
    lines = [{"n": n, "sku": f"sku-{n}", "price": "19.90"} for n in range(1000)]
    envelope = json.dumps({**ENVELOPE, "data": {"lines": lines}}).encode()
    made = json.loads(transform("{id: id, skus: data.lines[?n > `500`].sku}", envelope))
    assert made["skus"] == [f"sku-{n}" for n in range(501, 1000)]


@pytest.mark.parametrize(
    "text", ["a[", "{", "nonsense(@", "sort(a.unknown(@))", "!" * 3000 + "a", "(" * 3000, "a" * 5000, " ", "`x"]
)
def test_what_is_no_expression_is_refused(api: Any, text: str) -> None:
    with pytest.raises(TransformError):
        check_expression(text)
    problem = assert_problem(
        api.post("/api/subscriptions", {**NEW, "format": "transform", "transform": text}), 400, "/transform"
    )
    assert problem["errors"][0]["detail"]


@pytest.mark.parametrize("text", ["sum(type)", "data.none", "to_number('1e999')", "ceil(`1e400`)"])
def test_an_expression_may_fail_for_an_event(text: str) -> None:
    with pytest.raises(TransformError):
        transform(text, json.dumps(ENVELOPE).encode())


def test_a_format_is_set_and_shown(api: Any) -> None:
    made = api.post("/api/subscriptions", NEW).json()
    assert (made["format"], made["transform"]) == ("standard", "")
    path = f"/api/subscriptions/{made['id']}"
    assert_problem(api.patch(path, {"format": "transform"}), 400, "/transform")
    assert_problem(api.patch(path, {"format": "xml"}), 400, "/format")
    changed = api.patch(path, {"format": "transform", "transform": "data"}).json()
    assert (changed["format"], changed["transform"]) == ("transform", "data")
    assert_problem(api.patch(path, {"transform": ""}), 400, "/transform")
    assert api.patch(path, {"format": "raw"}).json()["format"] == "raw"


def test_steps_are_the_same_every_time() -> None:
    envelope = json.dumps(ENVELOPE).encode()
    assert transform("data.lines[].sku", envelope) == b'["a","b"]'
    assert uuid.UUID(json.loads(transform("{id: id}", envelope))["id"])
