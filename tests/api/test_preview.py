"""A preview says what would be sent, which is what is sent; it stores and sends nothing."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from devstack.http_receiver import Receiver
from events.models import Event
from orgs.keys import create_api_key
from orgs.models import Organization
from orgs.scopes import Scope
from tests.api.helpers import assert_problem, rows
from tests.conftest import ApiClient
from tests.webhooks.helpers import accept
from webhooks import event_preview
from webhooks.destinations.http.destination import HttpDestination
from webhooks.models import FORMATS, DeliveryAttempt, Subscription
from webhooks.outgoing import SingleOutgoing, endpoint_of

pytestmark = pytest.mark.django_db

EVENT = {"type": "order.created", "data": {"order": 4711}}


def make(api: Any, **values: Any) -> str:
    """Create a subscription; return the path of its previews."""
    new = {"url": "https://a.example/x?y=1", "event_types": ["order.*"], "headers": {"X-Token": "secret"}, **values}
    answer = api.post("/api/subscriptions", new)
    assert answer.status_code == 201, answer.content
    return f"/api/subscriptions/{answer.json()['id']}/preview"


def shown(api: Any, path: str, body: Any) -> Any:
    answer = api.post(path, body)
    assert answer.status_code == 200, answer.content
    return answer.json()


def test_it_tells_whether_the_event_matches_and_what_would_be_sent(api: Any) -> None:
    path = make(api)
    before = rows()
    preview = shown(api, path, EVENT)
    assert (preview["would_match"], preview["format"], preview["error"], preview["error_detail"]) == (
        True, "standard", None, "",
    )  # fmt: skip
    request = preview["request"]
    assert (request["method"], request["url"]) == ("POST", "https://a.example/x?y=1")
    headers = {header["name"]: header["value"] for header in request["headers"]}
    assert headers["webhook-signature"] == headers["X-Token"] == "***"
    assert headers["webhook-id"] == json.loads(request["body"])["id"]
    assert json.loads(request["body"])["data"] == EVENT["data"]
    assert request["body_bytes"] == len(request["body"])
    assert shown(api, path, {"type": "orders.created", "data": 1})["would_match"] is False
    assert rows() == before


def test_data_is_shown_byte_for_byte(api: Any) -> None:
    raw = (
        b'{"type": "order.created", "data": {"n" : 1.50, "big": 123456789012345678901, "huge": 1e400}, "format": "raw"}'
    )
    answer = api.post(make(api), raw=raw)
    assert answer.json()["request"]["body"] == '{"n" : 1.50, "big": 123456789012345678901, "huge": 1e400}'


@pytest.mark.parametrize("form", FORMATS)
def test_what_is_shown_is_what_is_sent(
    api: Any, organization: Organization, receiver: Receiver, form: str, transactional_db: None
) -> None:
    more = {"transform": "{kind: type, n: data.n}"} if form == "transform" else {}
    path = make(api, url=receiver.url("/"), format=form, **more)
    [event_id] = accept(organization, data='{"n": 1}')
    request = shown(api, path, {"event_id": str(event_id)})["request"]
    subscription = Subscription.objects.get()
    body = json.loads(request["body"])
    event = Event.objects.get()
    outgoing = SingleOutgoing(
        event.pk, event.type, event.created_at, event.data, endpoint_of(subscription, event.created_at), organization.pk
    )

    async def send() -> None:
        destination = HttpDestination()
        await destination.send(outgoing, event.created_at.timestamp())
        await destination.aclose()

    asyncio.run(send())
    [received] = receiver.requests
    assert received.body.decode() == request["body"]
    assert body
    headers = {header["name"].lower(): header["value"] for header in request["headers"]}
    varying = {"webhook-timestamp", "webhook-signature", "x-token", "host", "content-length"}
    assert {name: value for name, value in headers.items() if name not in varying} == {
        name: value for name, value in received.headers.items() if name not in varying
    }
    assert not DeliveryAttempt.objects.exists()


def test_a_format_and_an_expression_are_tried_before_they_are_saved(api: Any) -> None:
    path = make(api)
    tried = shown(api, path, {**EVENT, "transform": "{n: data.order}"})
    assert (tried["format"], tried["request"]["body"]) == ("transform", '{"n":4711}')
    assert shown(api, path, {**EVENT, "format": "raw"})["request"]["body"] == '{"order": 4711}'
    binary = shown(api, path, {**EVENT, "format": "cloudevents-binary"})
    assert {"name": "ce-type", "value": "order.created"} in binary["request"]["headers"]
    failing = shown(api, path, {**EVENT, "transform": "sum(type)"})
    assert (failing["would_match"], failing["request"], failing["error"]) == (True, None, "transform_failed")
    assert "sum" in failing["error_detail"]
    kept = Subscription.objects.get()
    assert (kept.format, kept.transform) == ("standard", "")


BAD: list[tuple[Any, str]] = [
    ({}, "/type"),
    ([], ""),
    ({"type": "a b", "data": 1}, "/type"),
    ({"type": "a"}, "/data"),
    ({**EVENT, "nonsense": 1}, "/nonsense"),
    ({**EVENT, "format": "xml"}, "/format"),
    ({**EVENT, "format": ["raw"]}, "/format"),
    ({**EVENT, "format": "transform"}, "/transform"),
    ({**EVENT, "transform": "a["}, "/transform"),
    ({**EVENT, "transform": ""}, "/transform"),
    ({**EVENT, "transform": 1}, "/transform"),
    ({**EVENT, "transform": "a" * 5000}, "/transform"),
    ({**EVENT, "transform": "'\x00'"}, "/transform"),
    ({**EVENT, "transform": "'\ud800'"}, "/transform"),
    ({**EVENT, "format": {"\ud800": 1}}, "/format"),
    ({**EVENT, "event_id": "0198f2d0-6d3c-7a52-9b1e-2f4c8a7d1e91"}, "/type"),
    ({"event_id": "0198f2d0-6d3c-7a52-9b1e-2f4c8a7d1e91"}, "/event_id"),
    ({"event_id": "nonsense"}, "/event_id"),
    ({"event_id": None}, "/event_id"),
    ({"event_id": 1}, "/event_id"),
]


@pytest.mark.parametrize(("body", "pointer"), BAD)
def test_bad_input_is_refused_by_name(api: Any, body: Any, pointer: str) -> None:
    assert_problem(api.post(make(api), raw=json.dumps(body).encode()), 400, pointer)


def test_a_body_that_is_no_json_or_too_large_is_refused(api: Any, settings: Any) -> None:
    settings.MAX_EVENT_BYTES = 100
    path = make(api)
    assert_problem(api.post(path, raw=b"{"), 400)
    assert_problem(api.post(path, raw=b""), 415)
    assert_problem(api.post(path, raw=b'{"type": "a", "data": "' + b"x" * 70_000 + b'"}'), 413)
    assert_problem(api.post(path, raw=b"[" * 5000), 400)


def test_another_organization_s_event_is_no_event(
    api: Any, other_api: Any, organization: Organization, other_organization: Organization
) -> None:
    [theirs] = accept(other_organization, data='"tenant-data"')
    path = make(api)
    answer = api.post(path, {"event_id": str(theirs)})
    assert_problem(answer, 400, "/event_id")
    assert b"tenant-data" not in answer.content
    assert_problem(other_api.post(path, {"event_id": str(theirs)}), 404)


def test_a_stored_event_is_shown_to_keys_that_may_read_events(api: Any, organization: Organization) -> None:
    path = make(api)
    [event_id] = accept(organization)
    key = create_api_key(organization, scopes=[Scope.SUBSCRIPTIONS_MANAGE.value])[1]
    assert shown(ApiClient(key), path, EVENT)["would_match"]
    assert assert_problem(ApiClient(key).post(path, {"event_id": str(event_id)}), 403)["scope"] == "events:read"
    assert shown(api, path, {"event_id": str(event_id)})["would_match"]


def test_previews_are_limited(api: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_preview, "PER_MINUTE", 1)
    path = make(api)
    shown(api, path, EVENT)
    refused = api.post(path, EVENT)
    assert assert_problem(refused, 429)["code"] == "too_many_previews"
    assert int(refused["Retry-After"]) > 0


def test_secrets_that_cannot_be_read_are_named(api: Any) -> None:
    path = make(api)
    Subscription.objects.update(encrypted_secret="nonsense")
    preview = shown(api, path, EVENT)
    assert (preview["request"], preview["error"]) == (None, "internal_error")


def test_it_says_what_keeps_the_event_from_matching(api: ApiClient) -> None:
    path = make(api, channels=["eu"], filter={"total": {"$gte": 100}})
    event = {"type": "order.created", "data": {"total": 100}, "channels": ["eu"]}
    for changes, expected in (
        ({}, None),
        ({"type": "invoice.created"}, "event_types"),
        ({"channels": ["us"]}, "channels"),
        ({"channels": []}, "channels"),
        ({"data": {"total": 99}}, "filter"),
        ({"data": {"total": [1] * 1001}}, "filter"),
        ({"data": {"total": 99}, "filter": {"total": 99}}, None),
        ({"data": 7, "filter": None}, None),
        ({"filter": {"total": 99}}, "filter"),
    ):
        preview = shown(api, path, {**event, **changes})
        assert (preview["mismatch"], preview["would_match"]) == (expected, expected is None), changes
        assert bool(preview["mismatch_detail"]) is (expected is not None)
        assert preview["request"], "what would be sent is shown in any case"
    answer = api.post(path, {**event, "filter": {"total": {"$regex": ".*"}}})
    assert answer.status_code == 400
    assert answer.json()["errors"][0]["pointer"] == "/filter/total/$regex"
    stored = api.post("/api/events", {**event, "channels": ["us"]}).json()["id"]
    assert shown(api, path, {"event_id": stored})["mismatch"] == "channels"
