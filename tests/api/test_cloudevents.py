"""CloudEvents 1.0 in: three modes, what is kept of them, and what is refused."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

from events.cloudevents import MAX_ATTRIBUTES_BYTES
from events.models import Event
from tests.api.helpers import assert_problem, rows

EVENTS = "/api/events"
BATCH = "/api/events/batch"
STRUCTURED = "application/cloudevents+json"
BATCHED = "application/cloudevents-batch+json"
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
OTHER_TRACE = "00-1af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

CLOUDEVENT: dict[str, Any] = {
    "specversion": "1.0",
    "id": "A 234",
    "source": "/shop/1",
    "type": "com.example.order-created/v1",
    "subject": "Bestellung ü 50%",
    "time": "2026-01-31T12:00:00.123456789+01:00",
    "datacontenttype": "application/json",
    "dataschema": "https://example.com/order.json",
    "partner": "käse",
    "attempt": 3,
    "urgent": True,
    "data": {"order": 4711},
}
HEADERS = {
    "ce-specversion": "1.0",
    "ce-id": "A%20234",
    "ce-source": "/shop/1",
    "ce-type": "com.example.order-created/v1",
}


def structured(api: Any, event: Any, **headers: str) -> Any:
    return api.post(EVENTS, raw=json.dumps(event).encode(), content_type=STRUCTURED + "; charset=utf-8", **headers)


def kept() -> dict[str, Any]:
    value: dict[str, Any] = json.loads(Event.objects.get().cloudevent or "null")
    return value


def test_a_structured_event_keeps_all_its_attributes_and_its_data_byte_for_byte(api: Any) -> None:
    text = json.dumps({**CLOUDEVENT, "data": 0}).replace('"data": 0', '"data" : {"b": 1.50,  "a":12345678901234567890}')
    response = api.post(EVENTS, raw=text.encode(), content_type=STRUCTURED)
    assert response.status_code == 202, response.content
    event = Event.objects.get()
    assert str(event.id) == response.json()["id"]
    assert event.data == '{"b": 1.50,  "a":12345678901234567890}'
    assert (event.type, event.dedup_id) == (CLOUDEVENT["type"], "/shop/1 A 234")
    assert kept() == {name: value for name, value in CLOUDEVENT.items() if name not in {"specversion", "type", "data"}}
    shown = api.get(response["Location"]).json()
    assert shown["cloudevent"] == kept()
    assert (
        api.get(f"/api/events/{api.post(EVENTS, {'type': 'a', 'data': 1}).json()['id']}").json()["cloudevent"] is None
    )


def test_source_and_id_are_the_dedup_id(api: Any) -> None:
    first = structured(api, CLOUDEVENT)
    again = structured(api, {**CLOUDEVENT, "time": "2026-02-01T00:00:00Z"})
    assert (again.status_code, again.json()["status"]) == (200, "duplicate")
    assert again.json()["id"] == first.json()["id"]
    assert assert_problem(structured(api, {**CLOUDEVENT, "data": 2}), 409)["code"] == "dedup_conflict"
    assert structured(api, {**CLOUDEVENT, "source": "/shop/2"}).status_code == 202
    long = structured(api, {**CLOUDEVENT, "id": "x" * 300})
    assert long.status_code == 202
    assert Event.objects.get(id=long.json()["id"]).dedup_id.startswith("sha256:")
    assert structured(api, {**CLOUDEVENT, "id": "x" * 300}).json()["status"] == "duplicate"


def test_binary_mode_takes_the_attributes_from_headers(api: Any) -> None:
    response = api.request(
        "POST", EVENTS, raw=b' {"order": 1.0}\n', content_type="application/vnd.shop+json",
        **HEADERS, **{"ce-subject": "Euro%20%E2%82%AC%20%F0%9F%98%80%2520", "ce-attempt": "3"},
        **{"CE-Partner": '"a \\"b"'},
    )  # fmt: skip
    assert response.status_code == 202, response.content
    event = Event.objects.get()
    assert (event.type, event.data, event.dedup_id) == (HEADERS["ce-type"], '{"order": 1.0}', "/shop/1 A 234")
    assert kept() == {
        "id": "A 234", "source": "/shop/1", "subject": "Euro € 😀%20", "partner": 'a "b', "attempt": "3",
        "datacontenttype": "application/vnd.shop+json",
    }  # fmt: skip


def test_native_events_and_structured_ones_take_no_notice_of_other_headers(api: Any) -> None:
    assert api.request("POST", EVENTS, {"type": "a", "data": 1}, **{"ce-partner": "x"}).status_code == 202
    assert Event.objects.get().cloudevent is None
    assert structured(api, CLOUDEVENT, **{"ce-id": "%FF", "ce-type": ""}).status_code == 202


@pytest.mark.parametrize("path", [EVENTS, BATCH])
def test_a_batch_has_a_result_for_each_event(api: Any, path: str) -> None:
    def batch(items: list[Any]) -> Any:
        return api.post(path, raw=json.dumps(items).encode(), content_type=BATCHED)

    second = {**CLOUDEVENT, "id": "2", "traceparent": OTHER_TRACE, "tracestate": "a=b"}
    response = batch([CLOUDEVENT, {**CLOUDEVENT, "specversion": "0.3"}, CLOUDEVENT, second, 5])
    assert response.status_code == 202
    items = response.json()["data"]
    assert [item["status"] for item in items] == ["accepted", "invalid", "duplicate", "accepted", "invalid"]
    assert items[1]["errors"][0]["pointer"] == "/specversion"
    assert Event.objects.count() == 2
    assert Event.objects.get(id=items[3]["id"]).trace == f"{OTHER_TRACE} a=b"
    assert Event.objects.get(id=items[0]["id"]).trace is None
    empty = batch([])
    assert (empty.status_code, empty.json()) == (200, {"accepted": 0, "data": []})


def test_the_trace_is_the_event_s_or_else_that_of_the_request(api: Any) -> None:
    structured(api, {**CLOUDEVENT, "traceparent": TRACE, "tracestate": "x=y"}, traceparent=OTHER_TRACE)
    assert Event.objects.get().trace == f"{TRACE} x=y"
    assert kept()["traceparent"] == TRACE
    Event.objects.all().delete()
    structured(api, {**CLOUDEVENT, "id": "2", "traceparent": "none"}, traceparent=OTHER_TRACE)
    assert Event.objects.get().trace == OTHER_TRACE


def test_data_that_is_not_json_is_kept(api: Any) -> None:
    for content_type, body, data, kind in [
        ("text/plain; charset=utf-8", b"gr%n", '"gr%n"', None),
        ("application/octet-stream", b"\xff\x00", '"/wA="', "base64"),
        ("application/json", b"", "null", "none"),
    ]:
        response = api.request("POST", EVENTS, raw=body, content_type=content_type, **{**HEADERS, "ce-id": data})
        assert response.status_code == 202, response.content
        assert Event.objects.get().data == data
        assert kept().get("_data") == kind
        assert "_data" not in api.get(response["Location"]).json()["cloudevent"]
        Event.objects.all().delete()
    without = {name: value for name, value in CLOUDEVENT.items() if name not in {"data", "datacontenttype"}}
    assert structured(api, {**without, "data_base64": "/wA="}).status_code == 202
    assert (Event.objects.get().data, kept()["_data"]) == ('"/wA="', "base64")


WRONG_MEMBERS: list[tuple[dict[str, Any], str]] = [
    ({"specversion": "0.3"}, "/specversion"),
    ({"specversion": 1.0}, "/specversion"),
    ({"id": ""}, "/id"),
    ({"id": None}, "/id"),
    ({"id": 5}, "/id"),
    ({"id": "a\x00"}, "/id"),
    ({"id": "\ud800"}, "/id"),
    ({"source": "not a uri"}, "/source"),
    ({"source": "http://["}, "/source"),
    ({"type": "two words"}, "/type"),
    ({"type": None}, "/type"),
    ({"time": "yesterday"}, "/time"),
    ({"time": "2026-13-01T00:00:00Z"}, "/time"),
    ({"subject": ""}, "/subject"),
    ({"datacontenttype": "json"}, "/datacontenttype"),
    ({"datacontenttype": "application/json; a=\r\nx: y"}, "/datacontenttype"),
    ({"dataschema": "order.json"}, "/dataschema"),
    ({"data_base64": "AA=="}, "/data_base64"),
    ({"my_extension": "x"}, "/my_extension"),
    ({"dedup_id": "x"}, "/dedup_id"),
    ({"Upper": "x"}, "/Upper"),
    ({"extension": {"a": 1}}, "/extension"),
    ({"extension": 1.5}, "/extension"),
    ({"extension": 2**31}, "/extension"),
    ({"extension": "\x07"}, "/extension"),
    ({"extension": "x" * MAX_ATTRIBUTES_BYTES}, ""),
]


def test_a_structured_event_that_is_not_valid_names_the_attribute(api: Any) -> None:
    before = rows()
    for change, pointer in WRONG_MEMBERS:
        assert_problem(structured(api, {**CLOUDEVENT, **change}), 400, pointer)
    assert rows() == before


def test_all_that_is_missing_is_named_at_once(api: Any) -> None:
    problem = assert_problem(structured(api, {"data": 1, "data_base64": "!"}), 400)
    assert [error["pointer"] for error in problem["errors"]] == [
        "/specversion", "/id", "/source", "/type", "/data_base64",
    ]  # fmt: skip
    problem = assert_problem(api.request("POST", EVENTS, raw=b"1", **{"ce-id": "1"}), 400)
    assert [error["pointer"] for error in problem["errors"]] == ["#ce-specversion", "#ce-source", "#ce-type"]
    no_base64 = {**CLOUDEVENT, "data_base64": "a"}
    del no_base64["data"]
    assert_problem(structured(api, no_base64), 400, "/data_base64")
    for body in (b" ", b"{", b"[]"):
        assert_problem(api.post(EVENTS, raw=body, content_type=STRUCTURED), 400)


WRONG_HEADERS: list[tuple[dict[str, str], str]] = [
    ({"ce-specversion": "0.3"}, "#ce-specversion"),
    ({"ce-id": "%FF"}, "#ce-id"),
    ({"ce-partner": "%C3%28"}, "#ce-partner"),
    ({"ce-subject": "caf\xe9"}, "#ce-subject"),
    ({"ce-id": "%00"}, "#ce-id"),
    ({"ce-source": "%20"}, "#ce-source"),
    ({"ce-my-extension": "x"}, "#ce-my-extension"),
    ({"ce-datacontenttype": "text/plain"}, "#ce-datacontenttype"),
    ({"ce-data": "1"}, "#ce-data"),
    ({"ce-time": "now"}, "#ce-time"),
]


def test_a_binary_event_that_is_not_valid_names_the_header(api: Any) -> None:
    before = rows()
    for headers, pointer in WRONG_HEADERS:
        assert_problem(api.request("POST", EVENTS, raw=b"1", **{**HEADERS, **headers}), 400, pointer)
    assert rows() == before


def test_data_that_is_not_what_it_is_said_to_be_is_refused(api: Any) -> None:
    assert_problem(api.request("POST", EVENTS, raw=b"{", **HEADERS), 400)
    assert_problem(api.request("POST", EVENTS, raw=b"[" * 200 + b"]" * 200, **HEADERS), 400)
    assert_problem(api.request("POST", EVENTS, raw=b"1", content_type="json", **HEADERS), 400, "#Content-Type")
    for content_type in ("application/cloudevents+xml", "application/cloudevents", "text/plain"):
        assert_problem(api.post(EVENTS, raw=b"1", content_type=content_type), 415, "#Content-Type")
    assert_problem(api.post(BATCH, raw=json.dumps(CLOUDEVENT).encode(), content_type=STRUCTURED), 415)


def test_the_headers_of_binary_mode_belong_to_the_content(api: Any) -> None:
    key = {"Idempotency-Key": "k"}
    first = api.request("POST", EVENTS, raw=b"1", **HEADERS, **key)
    assert first.status_code == 202
    assert api.request("POST", EVENTS, raw=b"1", **HEADERS, **key)["Idempotency-Replayed"] == "true"
    assert_problem(api.request("POST", EVENTS, raw=b"1", **{**HEADERS, "ce-subject": "x"}, **key), 422)


def test_the_partition_key_is_the_ordering_key(api: Any) -> None:
    for number, key in enumerate(("order-1", "k" * 256, 5, "")):
        assert structured(api, {**CLOUDEVENT, "id": str(number), "partitionkey": key}).status_code == 202
    binary = api.post(EVENTS, raw=b"1", content_type="application/json", **{**HEADERS, "ce-partitionkey": "order%201"})
    assert binary.status_code == 202
    stored = list(Event.objects.order_by("created_at", "id").values_list("ordering_key", flat=True))
    assert stored == ["order-1", "sha256:" + hashlib.sha256(b"k" * 256).hexdigest(), None, None, "order 1"]
