"""POST /api/events/batch: an answer for each item, in order, and no item that harms its neighbors."""

from __future__ import annotations

import json
import uuid
from typing import Any

import pytest

from events.models import Event
from tests.api.helpers import assert_problem

PATH = "/api/events/batch"
GOOD: dict[str, Any] = {"type": "order.created", "data": 1}


def test_items_are_answered_in_order_and_a_bad_one_leaves_its_neighbors_alone(api: Any) -> None:
    first = api.post("/api/events", {**GOOD, "dedup_id": "old"}).json()["id"]
    response = api.post(PATH, [
        {**GOOD, "data": "first"},
        {"type": "", "data": 1},
        {**GOOD, "dedup_id": "old"},
        {**GOOD, "dedup_id": "old", "data": 2},
        {**GOOD, "dedup_id": "new"},
        {**GOOD, "dedup_id": "new"},
        {**GOOD, "dedup_id": "new", "data": 2},
        5,
        {**GOOD, "dedup_id": "b\x00"},
        {**GOOD, "data": "last"},
    ])  # fmt: skip
    assert response.status_code == 202
    items = response.json()["data"]
    assert [item["status"] for item in items] == [
        "accepted", "invalid", "duplicate", "conflict", "accepted", "duplicate", "conflict", "invalid", "invalid",
        "accepted",
    ]  # fmt: skip
    assert response.json()["accepted"] == 3
    assert items[2]["id"] == items[3]["id"] == first
    assert items[4]["id"] == items[5]["id"] == items[6]["id"]
    assert items[1]["errors"][0]["pointer"] == "/type"
    assert items[7]["errors"][0]["pointer"] == ""
    assert items[8]["errors"][0]["pointer"] == "/dedup_id"
    assert all(error["detail"] for item in items if item["status"] == "invalid" for error in item["errors"])
    assert api.get(f"/api/events/{items[0]['id']}").json()["data"] == "first"
    assert api.get(f"/api/events/{items[9]['id']}").json()["data"] == "last"
    assert Event.objects.count() == 4


def test_ndjson_is_one_event_a_line(api: Any) -> None:
    lines = [
        b'{"type":"a","data":12345678901234567890123}', b"", b"   ", b"not json", b'{"type":"a"}',
        b'{"type":"a","data":"\xff"}', b'{"type":"a","payload":[1, 2 ]}\r',
    ]  # fmt: skip
    response = api.post(PATH, raw=b"\n".join(lines), content_type="application/x-ndjson")
    assert response.status_code == 202
    items = response.json()["data"]
    assert [item["status"] for item in items] == ["accepted", "invalid", "invalid", "invalid", "accepted"]
    assert Event.objects.get(id=items[0]["id"]).data == "12345678901234567890123"
    assert Event.objects.get(id=items[4]["id"]).data == "[1, 2 ]"


def test_a_batch_without_anything_new_is_200(api: Any) -> None:
    batch = [{**GOOD, "dedup_id": "a"}, {"type": 1}]
    assert api.post(PATH, batch).status_code == 202
    again = api.post(PATH, batch)
    assert (again.status_code, again.json()["accepted"]) == (200, 0)
    assert [item["status"] for item in again.json()["data"]] == ["duplicate", "invalid"]


BAD = {
    "an object": b'{"type":"a","data":1}',
    "no events": b"[]",
    "empty": b"",
    "cut short": b"[1,",
    "NaN": b"[NaN]",
    "a string": b'"a"',
    "null": b"null",
    "a million deep": b"[" * 1_000_000 + b"]" * 1_000_000,  # how deep a parser goes depends on Python's version
    "invalid UTF-8": b'["\xff"]',
}


@pytest.mark.parametrize("body", BAD.values(), ids=BAD.keys())
def test_a_body_that_is_no_array_is_refused_as_a_whole(api: Any, body: bytes) -> None:
    assert_problem(api.post(PATH, raw=body, content_type="application/json"), 415 if not body else 400)
    assert not Event.objects.exists()


def test_a_deep_or_large_item_is_invalid_and_its_neighbors_are_accepted(api: Any) -> None:
    deep = b'{"type":"a","data":' + b"[" * 200 + b"]" * 200 + b"}"
    large = b'{"type":"a","data":"' + b"x" * 262144 + b'"}'
    body = b"[" + b",".join([b'{"type":"a","data":1}', deep, large, b'{"type":"a","data":2}']) + b"]"
    items = api.post(PATH, raw=body).json()["data"]
    assert [item["status"] for item in items] == ["accepted", "invalid", "invalid", "accepted"]


def test_1000_events_are_accepted_and_1001_are_413(api: Any) -> None:
    assert_problem(api.post(PATH, [GOOD] * 1001), 413)
    assert not Event.objects.exists()
    response = api.post(PATH, [GOOD] * 1000)
    assert response.json()["accepted"] == 1000
    assert len({item["id"] for item in response.json()["data"]}) == 1000
    lines = (json.dumps(GOOD).encode() + b"\n") * 1001
    assert_problem(api.post(PATH, raw=lines, content_type="application/x-ndjson"), 413)
    assert Event.objects.count() == 1000


def test_over_5_mib_is_413(api: Any) -> None:
    item = b'{"type":"a","data":"' + b"x" * 250_000 + b'"}'
    body = b"[" + b",".join([item] * 22) + b"]"
    problem = assert_problem(api.post(PATH, raw=body), 413)
    assert problem["limit_bytes"] == 5242880
    assert not Event.objects.exists()


def test_ids_are_in_the_order_of_the_items(api: Any) -> None:
    ids = [uuid.UUID(item["id"]) for item in api.post(PATH, [GOOD] * 100).json()["data"]]
    assert ids == sorted(ids)


def ndjson(api: Any, body: bytes) -> Any:
    return api.post(PATH, raw=body, content_type="application/x-ndjson")


@pytest.mark.parametrize(
    ("body", "statuses"),
    [
        (b'{"type":"a","data":1}', ["accepted"]),
        (b'{"type":"a","data":1}\n', ["accepted"]),
        (b'\n\n{"type":"a","data":1}\n\n', ["accepted"]),
        (b'{"type":"a","data":1}\r\n{"type":"b","data":2}\r\n', ["accepted", "accepted"]),
        (b'{"type":"a",\n"data":1}', ["invalid", "invalid"]),
        (b'[{"type":"a","data":1}]', ["invalid"]),
        (b'{"type":"a","data":1}{"type":"b","data":2}', ["invalid"]),
        (b'{"type":"a","data":"\\n\\u2028"}', ["accepted"]),
        (b'{"type":"a","data":"\xe2\x80\xa8\xc2\x85"}', ["accepted"]),
        (b'{"type":"a","data":NaN}\n{"type":"a","data":1}', ["invalid", "accepted"]),
        (b"[" * 10_000 + b'\n{"type":"a","data":1}', ["invalid", "accepted"]),
        (b'null\n1\n"a"\ntrue', ["invalid"] * 4),
        (b'\xef\xbb\xbf{"type":"a","data":1}', ["invalid"]),
        (b'{"type":"a","data":1,"dedup_id":"\\u0000"}\n{"type":"a","data":1}', ["invalid", "accepted"]),
    ],
)
def test_of_ndjson_each_line_is_judged_alone(api: Any, body: bytes, statuses: list[str]) -> None:
    response = ndjson(api, body)
    assert [item["status"] for item in response.json()["data"]] == statuses
    assert response.json()["accepted"] == statuses.count("accepted") == Event.objects.count()
    assert response.status_code == (202 if "accepted" in statuses else 200)
    for item in response.json()["data"]:
        assert set(item) == ({"status", "errors"} if item["status"] == "invalid" else {"status", "id"})


@pytest.mark.parametrize("body", [b"\n", b" \n\t\n", b"\r\n"])
def test_ndjson_without_an_event_is_refused(api: Any, body: bytes) -> None:
    assert_problem(ndjson(api, body), 400, "")


def test_data_of_a_batch_is_kept_byte_for_byte_in_both_forms(api: Any) -> None:
    values = ["1.0", "12345678901234567890123", '{ "b" : 1, "a":2 }', '"\\/"', "[1 ,2]", "-0", "1E5"]
    items = [f'{{"type":"a","data":{value}}}' for value in values]
    for body, content_type in (("[" + " ,\n".join(items) + " ]", "application/json"),
                               ("\n".join(items), "application/x-ndjson")):  # fmt: skip
        answer = api.post(PATH, raw=body.encode(), content_type=content_type)
        stored = [Event.objects.get(id=item["id"]).data for item in answer.json()["data"]]
        assert stored == values


def test_a_conflict_within_a_batch_names_the_first_event_also_after_a_bad_item(api: Any) -> None:
    answer = api.post(PATH, [{"type": "!", "dedup_id": "d"}, {**GOOD, "dedup_id": "d"}, {**GOOD, "dedup_id": "d"},
                             {**GOOD, "dedup_id": "d", "type": "other"}])  # fmt: skip
    items = answer.json()["data"]
    assert [item["status"] for item in items] == ["invalid", "accepted", "duplicate", "conflict"]
    assert items[1]["id"] == items[2]["id"] == items[3]["id"]
    assert Event.objects.count() == 1


def test_another_organization_s_dedup_ids_are_no_duplicates_in_a_batch(api: Any, other_api: Any) -> None:
    batch = [{**GOOD, "dedup_id": str(number)} for number in range(3)]
    assert api.post(PATH, batch).json()["accepted"] == 3
    assert other_api.post(PATH, batch).json()["accepted"] == 3


def test_every_item_invalid_is_a_200_that_stores_nothing(api: Any) -> None:
    answer = api.post(PATH, [1, {}, {"type": "a"}])
    assert (answer.status_code, answer.json()["accepted"]) == (200, 0)
    assert "RateLimit" not in answer
    assert not Event.objects.exists()
