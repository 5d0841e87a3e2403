"""Duplicates: a retry is safe, and different data is never dropped silently."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from django.db import connection
from django.db.models import F
from django.utils import timezone

from events.models import DedupKey, Event
from tests.api.helpers import assert_problem


def send(client: Any, data: str = "1", dedup_id: str = "d", event_type: str = "order.created") -> Any:
    return client.post("/api/events", raw=b'{"type":"%s","dedup_id":"%s","data":%s}' % (
        event_type.encode(), dedup_id.encode(), data.encode()))  # fmt: skip


def test_a_retry_gets_the_first_events_id_and_stores_nothing(api: Any) -> None:
    first = send(api)
    assert (first.status_code, first.json()["status"]) == (202, "accepted")
    again = send(api)
    assert (again.status_code, again.json()["status"]) == (200, "duplicate")
    assert again.json()["id"] == first.json()["id"]
    assert again["Location"] == first["Location"] == f"/api/events/{first.json()['id']}"
    assert Event.objects.count() == 1


def test_the_same_id_with_other_content_is_a_conflict_that_names_the_first_event(api: Any) -> None:
    first = send(api, "1").json()["id"]
    response = send(api, "2")
    problem = assert_problem(response, 409, "/dedup_id")
    assert problem["code"] == "dedup_conflict"
    assert problem["event_id"] == first
    assert response["Location"] == f"/api/events/{first}"
    assert_problem(send(api, "1", event_type="order.paid"), 409, "/dedup_id")
    assert Event.objects.count() == 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ('{"a":1,"b":2}', '{"b":2,"a":1}'),
        ('{"a":[1,2]}', ' { "a" : [ 1 ,\n\t2 ] } '),
        ('"A"', '"\\u0041"'),
        ('"/"', '"\\/"'),
        ('"😀"', '"\\ud83d\\ude00"'),
        ('{"a":{"x":1,"y":[{"p":1,"q":2}]}}', '{"a":{"y":[{"q":2,"p":1}],"x":1}}'),
        ('{"a":1,"a":2}', '{"a":2}'),
        ("[1e400]", "[ 1e400 ]"),
        ('{"b":"\\uD800","a":1}', '{"a":1,"b":"\\ud800"}'),
        ('{"b":"\\u0000","a":{"y":2,"x":[1,true,null]}}', '{"a":{"x":[1, true, null],"y":2},"b":"\\u0000"}'),
    ],
)
def test_white_space_order_of_members_and_escapes_do_not_matter(api: Any, one: str, other: str) -> None:
    first = send(api, one).json()["id"]
    again = send(api, other)
    assert (again.status_code, again.json()["id"]) == (200, first)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("9007199254740992", "9007199254740993"),
        ("123456789012345678901234567890", "123456789012345678901234567891"),
        ("0.1", "0.10000000000000000001"),
        ("1e400", "1e401"),
        ("1e400", "-1e400"),
        ('"\\ud800"', '"\\ud801"'),
        ('"\\ud800"', '"?"'),
        ('"\\ud800\\u0041"', '"\\ud800\\udc41"'),
        ('"\\u0000"', '""'),
        ('{"a\\u0000":1}', '{"a":1}'),
        # A payload can't pass for another one's number, however it is marked inside.
        ("1", '["\\u0000","1"]'),
        ('[1,"\\u0000"]', '[["\\u0000","1"],"\\u0000"]'),
        ('["\\u0000",1]', '["\\u0000","1"]'),
        ("1", '"1"'),
        ("1", "true"),
        ("0", "false"),
        ("null", '""'),
        ("[]", "{}"),
        ("[1,2]", "[2,1]"),
        ('"a"', '"A"'),
        ('"é"', '"e\\u0301"'),
        ("1", "1.0"),
    ],
)
def test_what_differs_is_a_conflict_even_beyond_the_precision_of_floats(api: Any, one: str, other: str) -> None:
    first = send(api, one)
    assert first.status_code == 202
    assert_problem(send(api, other), 409)


def test_data_and_payload_are_the_same_content(api: Any) -> None:
    first = send(api, "[1]").json()["id"]
    again = api.post("/api/events", {"type": "order.created", "payload": [1], "dedup_id": "d"})
    assert (again.status_code, again.json()["id"]) == (200, first)


def test_after_the_window_the_id_is_new_again_and_remembered_anew(api: Any) -> None:
    first = send(api, "1").json()["id"]
    DedupKey.objects.update(expires_at=timezone.now())
    second = send(api, "2")
    assert second.status_code == 202
    assert second.json()["id"] != first
    assert send(api, "2").json()["id"] == second.json()["id"]
    assert_problem(send(api, "1"), 409)


def test_a_retry_does_not_prolong_the_window(api: Any) -> None:
    send(api)
    DedupKey.objects.update(expires_at=F("expires_at") - timezone.timedelta(hours=1))
    before = DedupKey.objects.get().expires_at
    send(api)
    assert DedupKey.objects.get().expires_at == before


def test_ids_are_scoped_to_the_organization(api: Any, other_api: Any) -> None:
    mine = send(api, "1").json()["id"]
    theirs = send(other_api, "2")
    assert theirs.status_code == 202
    assert theirs.json()["id"] != mine


@pytest.mark.parametrize("dedup_id", ["a", "A", " ", "é", "e\u0301", "😀", "x" * 255, "😀" * 255, "'; --", "%s", "\\"])
def test_every_spelling_of_an_id_is_an_id_of_its_own(api: Any, dedup_id: str) -> None:
    body = {"type": "a", "data": 1, "dedup_id": dedup_id}
    first = api.post("/api/events", body)
    assert first.status_code == 202
    assert api.get(first["Location"]).json()["dedup_id"] == dedup_id
    assert api.post("/api/events", body).status_code == 200
    assert api.post("/api/events", {**body, "dedup_id": dedup_id[:-1] + "z"}).status_code == 202


def test_null_is_no_dedup_id(api: Any) -> None:
    for _ in range(2):
        assert api.post("/api/events", {"type": "a", "data": 1, "dedup_id": None}).status_code == 202
    assert Event.objects.count() == 2


def in_threads(count: int, work: Any) -> list[Any]:
    results: list[Any] = []
    gate = threading.Barrier(count)

    def run(number: int) -> None:
        try:
            gate.wait()
            results.append(work(number))
        finally:
            connection.close()

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


@pytest.mark.django_db(transaction=True)
def test_of_concurrent_posts_with_one_dedup_id_exactly_one_is_accepted(api: Any) -> None:
    for round_number in range(5):
        answers = in_threads(6, lambda _, r=round_number: send(api, dedup_id=f"d{r}"))
        assert sorted(answer.status_code for answer in answers) == [200] * 5 + [202]
        assert len({answer.json()["id"] for answer in answers}) == 1
    assert Event.objects.count() == 5


@pytest.mark.django_db(transaction=True)
def test_of_concurrent_batches_in_opposite_order_each_id_is_accepted_once(api: Any) -> None:
    items = [{"type": "a", "data": i, "dedup_id": f"d{i}"} for i in range(50)]
    answers = in_threads(6, lambda n: api.post("/api/events/batch", items if n % 2 else items[::-1]))
    statuses = [item["status"] for answer in answers for item in answer.json()["data"]]
    assert statuses.count("accepted") == 50
    assert statuses.count("duplicate") == 250
    assert Event.objects.count() == 50
