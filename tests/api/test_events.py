"""Events: accepted as they were sent, read back with their deliveries, logged with their outcome."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from django.utils.dateparse import parse_datetime
from structlog.testing import capture_logs

from events import reprocessing
from events.ingest import ingest
from events.models import Event
from events.payload import NewEvent
from orgs.models import Organization
from tests.api.helpers import assert_problem, case, table_away
from tests.webhooks.helpers import fan_out_batch
from webhooks import subscriptions
from webhooks.models import Delivery

UUID7 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")


def test_an_event_is_answered_with_its_id_and_where_to_read_it(api: Any) -> None:
    answer = api.post("/api/events", {"type": "order.created", "data": {"order": 1}})
    assert answer.status_code == 202
    assert answer.json() == {
        "id": answer.json()["id"],
        "status": "accepted",
        "message": "Event queued for processing",
    }
    assert UUID7.fullmatch(answer.json()["id"])
    assert answer["Location"] == f"/api/events/{answer.json()['id']}"
    shown = api.get(answer["Location"]).json()
    assert parse_datetime(shown.pop("created_at"))
    assert shown.pop("request_id") == answer["X-Request-Id"]
    assert shown == {
        "traceparent": None, "tracestate": None, "cloudevent": None,
        "id": answer.json()["id"], "type": "order.created", "status": "accepted", "processed_at": None,
        "dedup_id": None, "ordering_key": None, "channels": [], "data": {"order": 1}, "payload_erased": False,
        "deliveries": [],
    }  # fmt: skip


TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.mark.parametrize("request_id", ["order-4711", "0123456789abcdef", "5d3ba1c0-9a0b-4a0e-8d6e-0c9d7f6a1b2c"])
def test_an_event_keeps_the_request_id_and_the_trace_of_its_request(api: Any, request_id: str) -> None:
    headers = {"X-Request-Id": request_id, "traceparent": TRACEPARENT, "tracestate": "a=1, b=2"}
    one = api.post("/api/events", {"type": "a", "data": 1, "dedup_id": "x"}, **headers)
    items = [{"type": "a", "data": 1}, {"type": "b", "data": 2, "dedup_id": "y"}]
    batch = api.post("/api/events/batch", items, **headers)
    assert api.post("/api/events", {"type": "a", "data": 1, "dedup_id": "x"}).status_code == 200
    for event_id in (one.json()["id"], *(item["id"] for item in batch.json()["data"])):
        shown = api.get(f"/api/events/{event_id}").json()
        assert shown["request_id"] == request_id
        assert (shown["traceparent"], shown["tracestate"]) == (TRACEPARENT, "a=1,b=2")


@pytest.mark.parametrize("traceparent", ["", "00-0-0-0", TRACEPARENT + "x", "\xff", TRACEPARENT.upper()])
def test_a_trace_that_is_not_valid_is_ignored(api: Any, traceparent: str) -> None:
    answer = api.post("/api/events", {"type": "a", "data": 1}, traceparent=traceparent, tracestate="a=1")
    assert answer.status_code == 202
    shown = api.get(answer["Location"]).json()
    assert (shown["traceparent"], shown["tracestate"]) == (None, None)


VALUES = ["1", "-0", "1.0", "1e5", "1E-7", "123456789012345678901234567890", "-9223372036854775809", "0.1000", "null",
          "true", '""', '"\\u00e9"', '"é"', '"\\/"', "[]", "{}", '[1, 2 ,3]', '{"b":1,"a":2}', '{"a":1,"a":2}',
          '{"":{"":[{"~/":null}]}}', '"\\ud83d\\ude00"', "[[[[[[]]]]]]", '{ "x" :\t1 }']  # fmt: skip


@pytest.mark.parametrize("name", ["data", "payload"])
def test_data_is_kept_byte_for_byte(api: Any, name: str) -> None:
    for value in VALUES:
        with case(value):
            answer = api.post("/api/events", raw=f'{{"type":"a", "{name}" : {value} }}'.encode())
            assert answer.status_code == 202, answer.content
            assert Event.objects.get(pk=answer.json()["id"]).data == value
            assert f'"data":{value},'.encode() in api.get(answer["Location"]).content
            assert f'"data":{value}'.encode() in api.get("/api/events?limit=1").content


def test_an_event_is_shown_with_its_deliveries_the_oldest_first(api: Any, organization: Organization) -> None:
    wanted = [
        subscriptions.create(organization.id, url=f"https://example.com/{types}", event_types=[types])[0]
        for types in ("*", "order.*", "order.created", "order.created.*", "order", "invoice.*")
    ]
    location = api.post("/api/events", {"type": "order.created", "data": 1})["Location"]
    assert fan_out_batch(10) == 1
    shown = api.get(location).json()
    assert (shown["status"], shown["processed_at"] is not None) == ("processed", True)
    assert {line["subscription_id"] for line in shown["deliveries"]} == {str(one.id) for one in wanted[:3]}
    for line in shown["deliveries"]:
        assert set(line) == {"id", "subscription_id", "status", "attempt_count", "next_attempt_at", "completed_at"}
        assert (line["status"], line["attempt_count"], line["completed_at"]) == ("pending", 0, None)
        assert api.get(f"/api/deliveries/{line['id']}").json()["event_id"] == shown["id"]
    assert [line["id"] for line in shown["deliveries"]] == sorted(line["id"] for line in shown["deliveries"])


def test_an_event_that_nobody_wants_is_processed_and_kept(api: Any) -> None:
    location = api.post("/api/events", {"type": "order.created", "data": 1})["Location"]
    assert fan_out_batch(10) == 1
    shown = api.get(location).json()
    assert (shown["status"], shown["deliveries"]) == ("processed", [])


def test_an_event_in_error_shows_why_and_can_be_reprocessed(api: Any) -> None:
    event_id = api.post("/api/events", {"type": "a", "data": 1}).json()["id"]
    Event.objects.update(status="error", failed_attempts=5, last_error="the reason")
    listed = api.get("/api/events?status=error").json()["data"]
    assert [(row["id"], row["error"], row["failed_attempts"]) for row in listed] == [(event_id, "the reason", 5)]
    assert reprocessing.reprocess(Event.objects.all()) == 1
    assert reprocessing.reprocess(Event.objects.all()) == 0
    assert fan_out_batch(10) == 1
    shown = api.get(f"/api/events/{event_id}").json()
    assert shown["status"] == "processed"
    assert "error" not in shown


def test_each_fan_out_is_logged_with_whether_its_deliveries_were_new(organization: Organization) -> None:
    subscriptions.create(organization.id, url="http://127.0.0.1:9/", event_types=["*"])
    event = ingest(organization.id, NewEvent("a.b", "1", None))

    def outcomes() -> list[str]:
        with capture_logs() as logged:
            assert fan_out_batch(10) == 1
        return [line["outcome"] for line in logged if line["event"] == "event_processed"]

    assert outcomes() == ["persisted"]
    Event.objects.update(status="accepted")
    assert outcomes() == ["already_exists"]
    assert Event.objects.get().id == event.event_id


def test_each_way_to_answer_is_logged_with_its_outcome_and_duration(api: Any, organization: Organization) -> None:
    def post(data: Any) -> list[dict[str, Any]]:
        with capture_logs() as logged:
            api.post("/api/events", {"type": "a.b", "data": data, "dedup_id": "d"})
        return [dict(line) for line in logged if line["event"] == "event_ingested"]

    lines = [*post(1), *post(1), *post(2)]
    event_id = str(Event.objects.get().id)
    assert [line["outcome"] for line in lines] == ["persisted", "duplicate", "already_exists"]
    for line in lines:
        assert (str(line["event_id"]), line["type"], line["log_level"]) == (event_id, "a.b", "info")
        assert str(line["organization_id"]) == str(organization.id)
        assert line["duration_ms"] > 0
        assert "data" not in line


def test_each_item_of_a_batch_is_logged_with_its_outcome(api: Any) -> None:
    with capture_logs() as logged:
        api.post("/api/events/batch", [
            {"type": "a", "data": 1, "dedup_id": "d"}, {"type": "a", "data": 1, "dedup_id": "d"},
            {"type": "a", "data": 2, "dedup_id": "d"}, {"type": "a", "data": 3}, {"type": ""},
        ])  # fmt: skip
    lines = [line for line in logged if line["event"] == "event_ingested"]
    assert [line["outcome"] for line in lines] == ["persisted", "duplicate", "already_exists", "persisted"]
    assert all(line["duration_ms"] > 0 for line in lines)


def test_an_event_that_could_not_be_stored_is_logged_as_an_error(api: Any) -> None:
    with table_away("events_dedupkey"), capture_logs() as logged:
        assert_problem(api.post("/api/events", {"type": "a.b", "data": 1, "dedup_id": "d"}), 500)
    lines = [line for line in logged if line["event"] == "event_ingested"]
    assert [(line["outcome"], line["type"], line["error"]) for line in lines] == [("error", "a.b", "UndefinedTable")]
    assert lines[0]["duration_ms"] > 0


def test_the_request_is_logged_once_without_its_body_or_key(api: Any) -> None:
    with capture_logs() as logged:
        api.post("/api/events?validate_only=false", {"type": "a", "data": "my-secret-payload"})
    lines = [line for line in logged if line["event"] == "request"]
    assert [(line["method"], line["path"], line["status"]) for line in lines] == [("POST", "/api/events", 202)]
    assert lines[0]["duration_ms"] > 0
    assert "my-secret-payload" not in json.dumps(logged, default=repr)
    assert api.key not in json.dumps(logged, default=repr)


def test_another_organization_s_event_is_404(api: Any, other_api: Any) -> None:
    location = api.post("/api/events", {"type": "a", "data": 1})["Location"]
    assert api.get(location).status_code == 200
    assert_problem(other_api.get(location), 404)


def test_what_was_delivered_is_no_longer_undelivered(api: Any, organization: Organization) -> None:
    subscriptions.create(organization.id, url="https://example.com/", event_types=["*"])
    event_id = api.post("/api/events", {"type": "a", "data": 1}).json()["id"]
    undelivered = "/api/events?undelivered=true"
    assert [row["id"] for row in api.get(undelivered).json()["data"]] == [event_id]
    fan_out_batch(10)
    assert [row["id"] for row in api.get(undelivered).json()["data"]] == [event_id]
    Delivery.objects.update(status="delivered")
    assert api.get(undelivered).json()["data"] == []
    assert [row["id"] for row in api.get("/api/events?undelivered=false").json()["data"]] == [event_id]
