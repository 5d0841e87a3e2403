"""What every answer has in common: ids, times, problem documents, methods, media types, slashes."""

from __future__ import annotations

import re
import uuid
from typing import Any

import pytest
from django.test import Client
from structlog.testing import capture_logs

from core.problems import MEDIA_TYPE
from tests.api.helpers import assert_problem, beat, rows, table_away
from webhooks.models import Subscription

TIME = re.compile(r"\d+\.\d\dms")
COLLECTIONS = ["/api/events", "/api/subscriptions", "/api/deliveries", "/api/keys", "/api/audit", "/api/me"]


def test_every_answer_bears_an_id_of_its_own_and_the_server_s_time(api: Any) -> None:
    answers = [api.get(path) for path in ("/api/me", "/api/events/x", "/api/health", "/api/schema", "/api/docs", "/")]
    answers.append(api.post("/api/events", {"type": "a", "data": 1}))
    answers.append(api.post("/api/events", raw=b"nonsense"))
    for answer in answers:
        assert TIME.fullmatch(answer["X-Response-Time"])
        uuid.UUID(answer["X-Request-Id"])
    assert len({answer["X-Request-Id"] for answer in answers}) == len(answers)


@pytest.mark.parametrize("given", ["a", "0198f2d0-6d3c-7a52-9b1e-2f4c8a7d1e90", "trace:1.span_2-x", "x" * 128])
def test_a_sane_request_id_is_echoed(api: Any, given: str) -> None:
    for path in ("/api/me", "/api/nonsense", "/api/health"):
        answer = api.get(path, **{"X-Request-Id": given})
        assert answer["X-Request-Id"] == given
    assert assert_problem(api.get("/api/nonsense", **{"X-Request-Id": given}), 404)["request_id"] == given


@pytest.mark.parametrize("given", ["", " ", "a b", "x" * 129, 'a","level":"', "é", "a\n", "a\r\nSet-Cookie: x=1", "<b>",
                                   "a\x00", "\x1b[2J"])  # fmt: skip
def test_a_hostile_request_id_is_replaced(api: Any, given: str) -> None:
    answer = api.get("/api/me", **{"X-Request-Id": given})
    assert answer.status_code == 200
    uuid.UUID(answer["X-Request-Id"])
    assert "Set-Cookie" not in answer


@pytest.mark.parametrize("path", ["/api", "/api/", "/api/nonsense", "/api/events/x/y", "/api/Events", "/api/events/%ff",
                                  "/api/../api/x", "/api/deliveries/retries", "/api/%2e%2e/admin"])  # fmt: skip
def test_what_is_not_there_is_a_404_problem(api: Any, path: str) -> None:
    assert_problem(api.get(path), 404)
    api.key = None
    assert_problem(api.get(path), 404)


def test_a_trailing_slash_changes_nothing(api: Any, subscription: Subscription) -> None:
    for path in (*COLLECTIONS, f"/api/subscriptions/{subscription.id}", "/api/health", "/api/health/detailed"):
        assert api.get(path + "/").status_code == api.get(path).status_code, path
        assert api.get(path + "/").status_code in {200, 503}
    created = api.post("/api/events/", {"type": "a", "data": 1})
    assert created.status_code == 202
    assert api.get(created["Location"] + "/?").json()["id"] == created.json()["id"]
    assert api.get("/api/events/?limit=1").json()["data"]


WRONG_METHODS = [
    ("/api/events", ["PUT", "PATCH", "DELETE", "TRACE"], "GET, POST, HEAD, OPTIONS"),
    ("/api/events/batch", ["GET", "HEAD", "PUT"], "POST, OPTIONS"),
    ("/api/events/0198f2d0-6d3c-7a52-9b1e-2f4c8a7d1e90", ["POST", "DELETE", "PATCH"], "GET, HEAD, OPTIONS"),
    ("/api/subscriptions", ["PUT", "DELETE"], "GET, POST, HEAD, OPTIONS"),
    ("/api/subscriptions/0198f2d0-6d3c-7a52-9b1e-2f4c8a7d1e90", ["PUT", "POST"], "GET, PATCH, DELETE, HEAD, OPTIONS"),
    ("/api/deliveries", ["POST", "DELETE"], "GET, HEAD, OPTIONS"),
    ("/api/me", ["POST"], "GET, HEAD, OPTIONS"),
]


@pytest.mark.parametrize(("path", "methods", "allowed"), WRONG_METHODS)
def test_a_method_that_is_not_there_is_a_405_that_names_those_that_are(
    api: Any, path: str, methods: list[str], allowed: str
) -> None:
    before = rows()
    for method in methods:
        answer = api.request(method, path)
        if method == "HEAD":
            assert answer.status_code == 405
        else:
            assert assert_problem(answer, 405)["code"] == "method_not_allowed"
        assert set(answer["Allow"].split(", ")) == set(allowed.split(", "))
    assert rows() == before


@pytest.mark.parametrize("path", ["/api/health", "/api/health/detailed", "/api/schema"])
def test_open_pages_only_read(api: Any, path: str) -> None:
    beat()
    answer = api.post(path, {})
    assert_problem(answer, 405)
    assert answer["Allow"] == "GET, HEAD"
    assert api.request("HEAD", path).status_code == 200


def test_head_answers_as_get_does_without_the_body(api: Any, subscription: Subscription) -> None:
    for path in (*COLLECTIONS, f"/api/subscriptions/{subscription.id}", "/api/events/x"):
        head, get = api.request("HEAD", path), api.get(path)
        assert head.status_code == get.status_code, path
        assert head["Content-Type"] == get["Content-Type"]
        assert head.content == b""


def test_options_names_the_methods_and_nothing_else(api: Any) -> None:
    answer = api.request("OPTIONS", "/api/events")
    assert (answer.status_code, answer.content) == (200, b"")
    assert set(answer["Allow"].split(", ")) == {"GET", "POST", "HEAD", "OPTIONS"}
    api.key = None
    assert_problem(api.request("OPTIONS", "/api/events"), 401)


@pytest.mark.parametrize("accept", ["application/json", "text/html", "application/xml", "nonsense", "*/*;q=0", ""])
def test_json_is_answered_whatever_is_asked_for(api: Any, accept: str) -> None:
    for path in ("/api/me", "/api/events", "/api/health"):
        answer = api.get(path, Accept=accept)
        assert (answer.status_code, answer["Content-Type"]) == (200, "application/json")
    assert api.get("/api/nonsense", Accept=accept)["Content-Type"] == MEDIA_TYPE


def test_no_answer_of_the_api_may_be_cached_or_framed(api: Any) -> None:
    for path in ("/api/me", "/api/nonsense"):
        answer = api.get(path)
        assert answer["Cache-Control"] == "no-store"
        assert answer["X-Content-Type-Options"] == "nosniff"
        assert answer["X-Frame-Options"] == "DENY"


def test_a_host_that_is_not_ours_is_a_400_problem(db: None) -> None:
    answer = Client(raise_request_exception=False).get("/api/health", headers={"Host": "evil.example"})
    assert_problem(answer, 400)


def test_a_fault_of_ours_is_a_500_problem_that_tells_nothing_but_the_request_id(api: Any) -> None:
    with table_away("events_event"), capture_logs() as logged:
        answer = api.get("/api/events", **{"X-Request-Id": "fault-1"})
    problem = assert_problem(answer, 500)
    assert set(problem) == {"type", "title", "status", "detail", "code", "request_id"}
    assert (problem["code"], problem["request_id"]) == ("internal_error", "fault-1")
    assert b"events_event" not in answer.content
    faults = [line for line in logged if line["event"] == "unhandled_error"]
    assert [str(line["exc_info"]).split("\n")[0] for line in faults] == ['relation "events_event" does not exist']


@pytest.mark.parametrize("path", ["/api/me", "/api/events", "/api/subscriptions", "/api/deliveries", "/api/keys"])
def test_without_a_key_nothing_is_told(api: Any, path: str) -> None:
    api.key = None
    answer = api.get(path)
    assert assert_problem(answer, 401)["code"] == "not_authenticated"
    assert answer["WWW-Authenticate"] == 'Bearer realm="triggers"'


@pytest.mark.parametrize(
    "header",
    [("X-API-Key", "{}"), ("X-API-Key", "  {} "), ("Authorization", "Bearer {}"), ("Authorization", "bearer  {} ")],
)
def test_a_key_is_taken_in_either_header(api: Any, header: tuple[str, str]) -> None:
    key, api.key = api.key, None
    assert api.get("/api/me", **{header[0]: header[1].format(key)}).status_code == 200


def test_the_root_leads_to_the_documentation(api: Any) -> None:
    answer = api.get("/")
    assert (answer.status_code, answer["Location"]) == (302, "/api/docs")
