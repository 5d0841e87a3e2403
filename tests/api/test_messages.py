"""What somebody who is new here gets wrong: each answer says what is wrong and what would be right."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from core.problems import problem_types
from core.serializers import StrictSerializer
from orgs.models import AuditEntry
from tests.api.helpers import assert_problem
from tests.conftest import ApiClient
from webhooks.models import FORMATS, Subscription

NOBODY = "0198f2d0-6d3c-7a52-9b1e-2f4c8a7d1e91"
SUBSCRIPTION = {"url": "https://example.com/", "event_types": ["*"]}


def errors(answer: Any) -> dict[str, str]:
    return {one["pointer"]: one["detail"] for one in assert_problem(answer, 400)["errors"]}


def test_a_choice_lists_its_values(api: Any) -> None:
    found = errors(api.post("/api/subscriptions", {**SUBSCRIPTION, "format": "events", "kind": 5}))
    assert found == {
        "/format": "must be one of " + ", ".join(FORMATS),
        "/kind": "must be one of http, inbox",
    }
    found = errors(api.post("/api/subscriptions", {**SUBSCRIPTION, "secret_type": "rsa", "ordered_on_failure": ["x"]}))
    assert found == {
        "/secret_type": "must be one of hmac-sha256, ed25519",
        "/ordered_on_failure": "must be one of skip, block",
    }
    assert (
        "events:write, events:read" in errors(api.post("/api/keys", {"name": "k", "scopes": ["events"]}))["/scopes/0"]
    )
    found = errors(api.patch("/api/event-types/settings", {"strictness": "strict"}))
    assert found == {"/strictness": "must be one of free, known, schema"}


@pytest.mark.parametrize(
    ("body", "pointer", "expected"),
    [
        ({"url": "https://example.com/", "eventTypes": ["*"]}, "/eventTypes", "did you mean event_types?"),
        ({"url": "https://example.com/", "events": ["*"]}, "/events", "did you mean event_types?"),
        ({"target_url": "https://example.com/", "event_types": ["*"]}, "/target_url", "did you mean url?"),
        ({**SUBSCRIPTION, "desciption": "x"}, "/desciption", "did you mean description?"),
        ({**SUBSCRIPTION, "zzz": "x"}, "/zzz", "there are: "),
        ({**SUBSCRIPTION, "id": "mine"}, "/id", "keep one of your own in `uid`"),
    ],
)
def test_an_unknown_field_names_the_one_that_was_meant(api: Any, body: Any, pointer: str, expected: str) -> None:
    found = errors(api.post("/api/subscriptions", body))
    assert list(found) == [pointer]
    assert expected in found[pointer]


def test_all_faults_are_told_in_one_round(api: Any) -> None:
    found = errors(api.post("/api/subscriptions", {"zzz": 1, "event_types": [], "max_in_flight": 0}))
    assert set(found) == {"/zzz", "/url", "/event_types", "/max_in_flight"}
    assert found["/max_in_flight"] == "must be from 1 to 10000"
    assert set(errors(api.post("/api/subscriptions", {}))) == {"/url", "/event_types"}
    assert set(errors(api.post("/api/subscriptions", {"kind": "inbox"}))) == {"/inbox", "/event_types"}
    assert set(errors(api.post("/api/hooks", {"zzz": 1}))) == {"/zzz", "/target_url"}


def _serializers(of: type[Any] = StrictSerializer) -> Iterator[type[Any]]:
    for one in of.__subclasses__():
        yield one
        yield from _serializers(one)


def test_every_field_of_a_request_speaks_as_the_others_do() -> None:
    """DRF's own messages are sentences ("This field may not be null."), which don't say what would be right."""

    def messages(field: Any) -> Iterator[str]:
        limits = {"max_value", "min_value", "max_length", "min_length", "max_string_length"}
        yield from (str(text) for code, text in field.error_messages.items() if code not in limits)
        yield from (str(one.message) for one in field.validators if hasattr(one, "limit_value"))
        if getattr(field, "child", None) is not None:
            yield from messages(field.child)

    found = [
        f"{one.__name__}.{name}: {text}"
        for one in _serializers()
        if one.__module__.split(".")[0] != "tests"
        for name, field in one().fields.items()
        for text in messages(field)
        if text[:1].isupper()
    ]
    assert found == []


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        ("PUT", f"/api/subscriptions/{NOBODY}", "There is no PUT here. Use GET, PATCH, or DELETE."),
        ("PUT", f"/api/events/{NOBODY}", "There is no PUT here. Events can't be changed."),
        ("DELETE", "/api/events", "There is no DELETE here. Use GET or POST."),
        ("GET", f"/api/subscriptions/{NOBODY}/disable", "There is no GET here. Use POST."),
        ("POST", "/api/health", "There is no POST here. Use GET."),
    ],
)
def test_a_wrong_method_is_answered_with_the_right_ones(api: Any, method: str, path: str, expected: str) -> None:
    answer = api.request(method, path)
    assert assert_problem(answer, 405)["detail"] == expected
    assert set(answer["Allow"].split(", ")) >= set(re.findall("[A-Z]{3,}", expected)[1:])


@pytest.mark.parametrize("path", ["/events", "/API/events", "/events/"])
def test_a_program_that_forgot_api_is_told_so_and_a_browser_gets_a_page(api: Any, path: str) -> None:
    problem = assert_problem(api.get(path), 404)
    assert "Did you mean /api/events?" in problem["detail"]
    assert api.get(path, Accept="text/html,*/*")["Content-Type"].startswith("text/html")
    assert api.get("/nothing")["Content-Type"].startswith("text/html")


def test_a_wrong_parameter_names_the_right_one(api: Any) -> None:
    found = errors(api.get("/api/deliveries?eventId=1&page=2&per_page=5&zzz=1"))
    for name, meant in (("eventId", "event_id"), ("page", "cursor"), ("per_page", "limit")):
        assert f"did you mean {meant}? (it has: cursor, " in found[f"?{name}"]
    assert "did you mean" not in found["?zzz"]


@pytest.mark.parametrize(
    ("body", "pointer", "expected"),
    [
        ({"eventType": "a", "data": 1}, "/eventType", "did you mean type?"),
        ({"type": "a", "Data": 1}, "/Data", "did you mean data?"),
        ({"type": "a", "body": 1}, "/body", "did you mean data?"),
        ({"type": "a", "data": 1, "idempotency_key": "k"}, "/idempotency_key", "did you mean dedup_id?"),
        ([{"type": "a", "data": 1}], "", "`POST /api/events/batch` takes an array"),
        ({"type": "a", "data": 1, "zzz": 1}, "/zzz", "(there are: type, data, payload, dedup_id, "),
    ],
)
def test_an_event_s_unknown_field_names_the_one_that_was_meant(
    api: Any, body: Any, pointer: str, expected: str
) -> None:
    assert expected in errors(api.post("/api/events", body))[pointer]


@pytest.mark.parametrize("name", ["status", "state", "active", "enabled"])
def test_a_switch_that_can_t_be_changed_leads_to_what_can(api: Any, name: str) -> None:
    path = f"/api/subscriptions/{api.post('/api/subscriptions', SUBSCRIPTION).json()['id']}"
    found = errors(api.patch(path, {name: "disabled"}))
    assert "POST /api/subscriptions/{id}/disable" in found[f"/{name}"]
    assert Subscription.objects.get().is_active


def test_a_change_of_nothing_is_refused_and_leaves_no_trace(api: Any) -> None:
    subscription = f"/api/subscriptions/{api.post('/api/subscriptions', SUBSCRIPTION).json()['id']}"
    event_type = f"/api/event-types/{api.post('/api/event-types', {'name': 'a'}).json()['id']}"
    before = AuditEntry.objects.count()
    for path, field in ((subscription, "event_types"), (event_type, "schema"), ("/api/event-types/settings", "")):
        found = errors(api.patch(path, {}))
        assert field in "".join(found.values())
    assert AuditEntry.objects.count() == before


@pytest.mark.parametrize("path", ["/api/events", "/api/events/batch", "/api/subscriptions"])
def test_a_body_in_latin_1_is_called_not_utf_8(api: Any, path: str) -> None:
    body = '{"type": "a", "data": "caf\u00e9"}'.encode("latin-1")
    problem = assert_problem(api.post(path, raw=body), 400)
    assert problem["code"] == "invalid_json"
    assert "is not UTF-8: the byte 0xE9 at position 26" in problem["detail"]
    lines = b'{"type": "a", "data": 1}\n' + body
    if path.endswith("batch"):
        shown = api.post(path, raw=lines, content_type="application/x-ndjson").json()["data"]
        assert [one["status"] for one in shown] == ["accepted", "invalid"]
        assert "is not UTF-8" in shown[1]["errors"][0]["detail"]


@pytest.mark.parametrize(
    ("path", "code", "expected"),
    [
        ("/api/subscriptions/12", "not_found", "`12` is not a valid subscription_id: an id is a UUID in lowercase"),
        ("/api/events/0198F2D0-6D3C-7A52-9B1E-2F4C8A7D1E91", "not_found", "is not a valid event_id"),
        (f"/api/subscriptions/{NOBODY}", "not_found", "There is no subscription with this id"),
        (f"/api/events/{NOBODY}", "not_found", "There is no event with this id"),
        (f"/api/deliveries/{NOBODY}", "not_found", "There is no delivery with this id"),
        ("/api/subscription", "path_not_found", "There is no /api/subscription. Did you mean /api/subscriptions?"),
        (f"/api/deliveries/{NOBODY}/resend", "path_not_found", "There are: /attempts/{number}, /retry, /skip."),
        (f"/api/deliveries/{NOBODY}/re-try", "path_not_found", f"Did you mean /api/deliveries/{NOBODY}/retry?"),
        (f"/api/subscriptions/{NOBODY}/activate", "path_not_found", "There are: /disable, /enable, "),
        ("/api/event", "path_not_found", "Did you mean /api/events?"),
        ("/api/webhooks/endpoints/", "path_not_found", "/api/docs lists what there is."),
        ("/api", "path_not_found", "There is no /api. "),
        ("/api/v1/events", "path_not_found", "There is no /api/v1: paths have no version. Use /api/events."),
        ("/api/v2", "path_not_found", "There is no /api/v2: paths have no version."),
        ("/api/problems/invalid_jsno", "path_not_found", "Did you mean /api/problems/invalid_json?"),
    ],
)  # fmt: skip
def test_nothing_at_a_path_says_what_is_wrong_with_it(api: Any, path: str, code: str, expected: str) -> None:
    problem = assert_problem(api.get(path), 404)
    assert problem["code"] == code
    assert expected in problem["detail"]


def test_every_problem_s_type_is_a_page_about_it() -> None:
    client = ApiClient(None)
    listed = {one["code"]: one for one in client.get("/api/problems").json()["data"]}
    page = client.get("/api/problems", Accept="text/html,*/*").content.decode()
    for one in problem_types():
        shown = client.get(one.uri)
        assert (shown.status_code, shown.json()) == (200, listed[one.code])
        assert (shown.json()["code"], shown.json()["status"]) == (one.code, one.status)
        assert f'href="{one.uri}"' in page
    document = client.get("/api/problems/invalid", Accept="text/html")
    assert document["Content-Type"].startswith("text/html")
    assert "<h1>Invalid</h1>" in document.content.decode()
    assert_problem(client.request("POST", "/api/problems/invalid"), 405)
