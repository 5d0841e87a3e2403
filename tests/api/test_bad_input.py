"""Bad input: a 4xx problem that names what is wrong, nothing stored, and never a 500."""

from __future__ import annotations

import gzip
import json
import uuid
from typing import Any

import pytest

from events.models import Event
from tests.api.helpers import assert_problem, case, rows
from webhooks.models import Subscription

GOOD = b'{"type":"order.created","data":1}'
DEEP = b"[" * 10_000 + b"]" * 10_000
DEEP_OBJECT = b'{"a":' * 10_000 + b"1" + b"}" * 10_000

# Not a JSON object that could be anything; what is wrong is the whole body.
NOT_AN_OBJECT = {
    "not JSON": b"type=order.created",
    "cut short": b'{"type":"a","data":',
    "trailing text": GOOD + b"x",
    "two values": GOOD + GOOD,
    "single quotes": b"{'type':'a','data':1}",
    "trailing comma": b'{"type":"a","data":1,}',
    "NaN": b'{"type":"a","data":NaN}',
    "Infinity": b'{"type":"a","data":Infinity}',
    "negative Infinity": b'{"type":"a","data":-Infinity}',
    "invalid UTF-8": b'{"type":"a","data":"\xff\xfe"}',
    "overlong UTF-8": b'{"type":"a","data":"\xc0\xaf"}',
    "UTF-8 surrogate": b'{"type":"a","data":"\xed\xa0\x80"}',
    "UTF-16": GOOD.decode().encode("utf-16"),
    "byte order mark": b"\xef\xbb\xbf" + GOOD,
    "cut short after a lone surrogate": b'{"type":"a","data":["\\ud800"',
    "lone surrogate and then NaN": b'{"type":"a","data":["\\ud800",NaN]}',
    "escape cut short": b'{"type":"a","data":"\\ud8"}',
    "large number and a trailing comma": b'{"type":"a","data":[1e400,]}',
    "large number 10,000 deep": b'{"type":"a","data":' + b"[" * 10_000 + b"1e400" + b"]" * 10_000 + b"}",
    "large number 65 deep in data": b'{"type":"a","data":' + b"[" * 64 + b"1e400" + b"]" * 64 + b"}",
    "raw control character": b'{"type":"a","data":"a\x00b"}',
    "raw line feed in a string": b'{"type":"a","data":"a\nb"}',
    "10,000 arrays deep": DEEP,
    "10,000 objects deep": DEEP_OBJECT,
    "10,000 deep in data": b'{"type":"a","data":' + DEEP + b"}",
    "65 deep in data": b'{"type":"a","data":' + b"[" * 64 + b"]" * 64 + b"}",
    "an array": b"[1]",
    "a string": b'"order.created"',
    "a number": b"1",
    "null": b"null",
    "true": b"true",
    "white space": b" \n ",
    "leading zero": b'{"type":"a","data":01}',
    "hexadecimal": b'{"type":"a","data":0x1}',
    "plus sign": b'{"type":"a","data":+1}',
}


@pytest.mark.parametrize("path", ["/api/events", "/api/subscriptions", "/api/keys"])
def test_a_body_that_is_no_json_object_is_refused_and_stores_nothing(api: Any, path: str) -> None:
    before = rows()
    for name, body in NOT_AN_OBJECT.items():
        with case(name):
            assert_problem(api.post(path, raw=body), 400)
            assert rows() == before


def event(**members: Any) -> dict[str, Any]:
    return {"type": "order.created", "data": {"a": 1}, **members}


BAD_EVENTS = {
    "missing type": ({"data": 1}, "/type"),
    "empty type": (event(type=""), "/type"),
    "type with a space": (event(type="order created"), "/type"),
    "type with a space before": (event(type=" order"), "/type"),
    "type of blanks": (event(type="  "), "/type"),
    "type of 300 characters": (event(type="a" * 300), "/type"),
    "type of 256 characters": (event(type="a" * 256), "/type"),
    "type with a line feed after": (event(type="order\n"), "/type"),
    "type with U+0000": (event(type="a\x00b"), "/type"),
    "type in another script": (event(type="заказ"), "/type"),
    "type with two dots": (event(type="a..b"), "/type"),
    "type that ends in a dot": (event(type="a."), "/type"),
    "type that is a pattern": (event(type="order.*"), "/type"),
    "type that is a number": (event(type=5), "/type"),
    "type that is null": (event(type=None), "/type"),
    "type that is a list": (event(type=["a"]), "/type"),
    "type that is an object": (event(type={}), "/type"),
    "both data and payload": (event(payload=1), "/payload"),
    "neither data nor payload": ({"type": "a"}, "/data"),
    "dedup id that is a number": (event(dedup_id=5), "/dedup_id"),
    "dedup id that is true": (event(dedup_id=True), "/dedup_id"),
    "dedup id that is a list": (event(dedup_id=["a"]), "/dedup_id"),
    "dedup id that is an object": (event(dedup_id={"a": 1}), "/dedup_id"),
    "empty dedup id": (event(dedup_id=""), "/dedup_id"),
    "dedup id of 256 characters": (event(dedup_id="x" * 256), "/dedup_id"),
    "dedup id with U+0000": (event(dedup_id="a\x00"), "/dedup_id"),
    "unknown field": (event(priority=1), "/priority"),
    "unknown field with a slash and a tilde": (event(**{"a/b~c": 1}), "/a~1b~0c"),
    "unknown empty field": (event(**{"": 1}), "/"),
    "field in capitals": ({"Type": "a", "type": "a", "data": 1}, "/Type"),
    "U+0000 in an unknown field's name": (event(**{"a\x00": 1}), "/a\x00"),
    "lone surrogate in the type": (event(type="a\ud800"), "/type"),
    "lone surrogate in the dedup id": (event(dedup_id="\udc00"), "/dedup_id"),
    "lone surrogate in an unknown field's name": (event(**{"a\ud800": 1}), "/a\\ud800"),
    "a number beyond all floats as the type": (b'{"type":1e400,"data":1}', "/type"),
    "a number beyond all floats as the dedup id": (b'{"type":"a","data":1,"dedup_id":1e400}', "/dedup_id"),
    "a bad type and data that orjson refuses": (b'{"type":5,"data":"\\ud800"}', "/type"),
}


def test_a_bad_event_is_refused_with_the_field_named(api: Any) -> None:
    before = rows()
    for name, (body, pointer) in BAD_EVENTS.items():
        with case(name):
            raw = body if isinstance(body, bytes) else json.dumps(body).encode()
            assert_problem(api.post("/api/events", raw=raw), 400, pointer)
            assert rows() == before


def test_every_wrong_field_is_named_at_once(api: Any) -> None:
    problem = assert_problem(api.post("/api/events", {"type": "", "dedup_id": 1, "nonsense": 1}), 400)
    assert {error["pointer"] for error in problem["errors"]} == {"/type", "/dedup_id", "/nonsense", "/data"}


@pytest.mark.parametrize(
    ("path", "size"), [("/api/events", 300 * 1024), ("/api/subscriptions", 70_000), ("/api/keys", 70_000)]
)
def test_a_body_over_the_limit_is_413_and_tells_the_limit(api: Any, path: str, size: int) -> None:
    before = rows()
    problem = assert_problem(api.post(path, {"type": "a", "data": "x" * size}), 413)
    assert problem["limit_bytes"] < size
    assert rows() == before


def test_a_body_exactly_at_the_limit_is_accepted(api: Any) -> None:
    frame = b'{"type":"a","data":"%s"}'
    body = frame % (b"x" * (262144 - len(frame) + 2))
    assert len(body) == 262144
    assert api.post("/api/events", raw=body).status_code == 202
    assert_problem(api.post("/api/events", raw=body + b" "), 413)


CONTENT_TYPES = ["", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x",
                 "application/jsonx", "application/xml", "json", "application/json-patch+json", "*/*"]  # fmt: skip


@pytest.mark.parametrize("path", ["/api/events", "/api/events/batch", "/api/subscriptions", "/api/keys"])
def test_a_body_that_is_not_said_to_be_json_is_415(api: Any, path: str) -> None:
    before = rows()
    for content_type in CONTENT_TYPES:
        with case(content_type):
            assert_problem(api.post(path, raw=GOOD, content_type=content_type), 415, "#Content-Type")
            assert rows() == before


@pytest.mark.parametrize("content_type", ["application/json", "application/json; charset=utf-8", "Application/JSON"])
def test_json_is_accepted_however_its_content_type_is_spelt(api: Any, content_type: str) -> None:
    assert api.post("/api/events", raw=GOOD, content_type=content_type).status_code == 202


@pytest.mark.parametrize("path", ["/api/events", "/api/events/batch", "/api/subscriptions", "/api/keys"])
def test_a_body_that_is_compressed_with_anything_but_gzip_is_415(api: Any, path: str) -> None:
    for encoding in ("br", "deflate", "gzip, gzip", "gzip, identity", "nonsense"):
        with case(encoding):
            response = api.post(path, raw=GOOD, **{"Content-Encoding": encoding})
            assert assert_problem(response, 415)["code"] == "unsupported_content_encoding"


@pytest.mark.parametrize("encoding", ["gzip", "GZIP", " x-gzip"])
def test_a_body_may_be_compressed_with_gzip(api: Any, encoding: str) -> None:
    whole, parts = gzip.compress(GOOD), gzip.compress(GOOD[:9]) + gzip.compress(GOOD[9:])
    for body in (whole, parts):
        response = api.post("/api/events", raw=body, **{"Content-Encoding": encoding})
        assert response.status_code == 202, response.content
    body = gzip.compress(b"[" + GOOD + b"," + GOOD + b"]")
    batch = api.post("/api/events/batch", raw=body, **{"Content-Encoding": encoding})
    assert [item["status"] for item in batch.json()["data"]] == ["accepted"] * 2
    made = api.post("/api/keys", raw=gzip.compress(b'{"name": "x"}'), **{"Content-Encoding": encoding})
    assert made.status_code == 201


@pytest.mark.parametrize("path", ["/api/events", "/api/events/batch", "/api/subscriptions"])
def test_a_compressed_body_that_can_t_be_used_stores_nothing(api: Any, settings: Any, path: str) -> None:
    settings.MAX_EVENT_BYTES = settings.MAX_BATCH_BYTES = 65536
    bombs = [gzip.compress(b" " * 40_000_000), gzip.compress(b" " * 65536) + gzip.compress(b"{}")]
    short, checksum = gzip.compress(GOOD)[:-3], gzip.compress(GOOD)[:-8] + b"00000000"
    cases = [(bomb, 413, "too_large") for bomb in bombs]
    cases += [(short, 400, "incomplete_body"), (short[:5], 400, "incomplete_body")]
    cases += [(bad, 400, "bad_request") for bad in (GOOD, checksum, gzip.compress(GOOD) + b"more")]
    for body, status, code in cases:
        response = api.post(path, raw=body, **{"Content-Encoding": "gzip"})
        assert assert_problem(response, status)["code"] == code, body[:20]
    assert not Event.objects.exists()


def new_subscription(**members: Any) -> dict[str, Any]:
    return {"url": "https://example.com/hook", "event_types": ["*"], **members}


BAD_URLS = ["", " ", "example.com", "//example.com", "ftp://example.com", "file:///etc/passwd", "javascript:alert(1)",
            "http://", "https:///path", "https://user:secret@example.com", "https://user@example.com",
            "https://example.com/a b", "https://example.com\\@evil.example",
            "https://example.com/#fragment", "https://example.com:0", "https://example.com:99999",
            "https://example.com:x", "https://[::1", "https://example..com", "https://" + "a" * 2050, "gopher://a",
            "http://10.0.0.1", "http://169.254.169.254/latest", "http://[fd00::1]/", "http://0x0a000001/",
            "https://example.com:22", "http://a%00b/", "https://example.com\x7f",
            "https://-", "http://.", "http://a_b@/"]  # fmt: skip

BAD_SUBSCRIPTIONS: dict[str, tuple[Any, str]] = {
    **{f"url {url[:30]!r}": (new_subscription(url=url), "/url") for url in BAD_URLS},
    "missing url": ({"event_types": ["*"]}, "/url"),
    "url that is a number": (new_subscription(url=5), "/url"),
    "url that is null": (new_subscription(url=None), "/url"),
    "url that is a list": (new_subscription(url=["https://a"]), "/url"),
    "missing event_types": ({"url": "https://example.com"}, "/event_types"),
    "no event types": (new_subscription(event_types=[]), "/event_types"),
    "event_types that is text": (new_subscription(event_types="*"), "/event_types"),
    "event_types that is null": (new_subscription(event_types=None), "/event_types"),
    "101 event types": (new_subscription(event_types=[f"a{i}" for i in range(101)]), "/event_types"),
    "event type with a space": (new_subscription(event_types=["a", "b c"]), "/event_types/1"),
    "event type that is a number": (new_subscription(event_types=[1]), "/event_types/0"),
    "event type with a star inside": (new_subscription(event_types=["a.*.b"]), "/event_types/0"),
    "event type of 300 characters": (new_subscription(event_types=["a" * 300]), "/event_types/0"),
    "headers that is a list": (new_subscription(headers=[]), "/headers"),
    "headers that is null": (new_subscription(headers=None), "/headers"),
    "header name with a newline": (new_subscription(headers={"X-A\nX-B": "1"}), "/headers/X-A\nX-B"),
    "header name with a colon": (new_subscription(headers={"X:": "1"}), "/headers/X:"),
    "empty header name": (new_subscription(headers={"": "1"}), "/headers/"),
    "header value with a newline": (new_subscription(headers={"X-A": "1\r\nX-B: 2"}), "/headers/X-A"),
    "header value that is a number": (new_subscription(headers={"X-A": 1}), "/headers/X-A"),
    "header value outside ASCII": (new_subscription(headers={"X-A": "é"}), "/headers/X-A"),
    "header value of 3,000 characters": (new_subscription(headers={"X-A": "x" * 3000}), "/headers/X-A"),
    "header of ours": (new_subscription(headers={"Webhook-Id": "1"}), "/headers/Webhook-Id"),
    "header Host": (new_subscription(headers={"Host": "a"}), "/headers/Host"),
    "header twice": (new_subscription(headers={"X-A": "1", "x-a": "2"}), "/headers"),
    "21 headers": (new_subscription(headers={f"X-{i}": "1" for i in range(21)}), "/headers"),
    "description with a newline": (new_subscription(description="a\nb"), "/description"),
    "description of 501 characters": (new_subscription(description="x" * 501), "/description"),
    "description that is a number": (new_subscription(description=1), "/description"),
    "max_in_flight of zero": (new_subscription(max_in_flight=0), "/max_in_flight"),
    "max_in_flight as text": (new_subscription(max_in_flight="5"), "/max_in_flight"),
    "max_in_flight that is true": (new_subscription(max_in_flight=True), "/max_in_flight"),
    "max_in_flight that is a fraction": (new_subscription(max_in_flight=1.5), "/max_in_flight"),
    "max_in_flight over 64 bits": (new_subscription(max_in_flight=10**30), "/max_in_flight"),
    "rate of zero": (new_subscription(deliveries_per_second=0), "/deliveries_per_second"),
    "negative rate": (new_subscription(deliveries_per_second=-1), "/deliveries_per_second"),
    "rate beyond floats": (new_subscription(deliveries_per_second=10**300), "/deliveries_per_second"),
    "rate as text": (new_subscription(deliveries_per_second="1"), "/deliveries_per_second"),
    "unknown field": (new_subscription(secret="whsec_x"), "/secret"),
    "id chosen by the caller": (new_subscription(id=str(uuid.UUID(int=1))), "/id"),
}


def test_a_bad_subscription_is_refused_with_the_field_named(api: Any) -> None:
    for name, (body, pointer) in BAD_SUBSCRIPTIONS.items():
        with case(name):
            assert_problem(api.post("/api/subscriptions", body), 400, pointer)
            assert not Subscription.objects.exists()


BAD_CHANGES = {name: one for name, one in BAD_SUBSCRIPTIONS.items() if {"url", "event_types"} <= one[0].keys()}


def test_a_bad_change_is_refused_and_changes_nothing(api: Any, subscription: Subscription) -> None:
    before = api.get(f"/api/subscriptions/{subscription.id}").json()
    for name, (body, pointer) in BAD_CHANGES.items():
        with case(name):
            assert_problem(api.patch(f"/api/subscriptions/{subscription.id}", body), 400, pointer)
            assert api.get(f"/api/subscriptions/{subscription.id}").json() == before


BAD_TIMES = ["", "yesterday", "2026-13-01T00:00:00Z", "2026-02-30T00:00:00Z", 5, True, [], {}, None, "2026",
             "9999-12-31T23:59:59-12:00", "0001-01-01T00:00:00+12:00", "2026-01-01T25:00:00Z"]  # fmt: skip


def test_a_time_that_is_none_is_refused(api: Any, subscription: Subscription) -> None:
    before = rows()
    for moment in BAD_TIMES:
        with case(repr(moment)):
            assert_problem(api.post(f"/api/subscriptions/{subscription.id}/recover", {"since": moment}), 400, "/since")
            if moment is not None:
                assert_problem(api.post("/api/keys", {"expires_at": moment}), 400, "/expires_at")
                assert rows() == before


BAD_KEYS = {
    "name that is a number": ({"name": 5}, "/name"),
    "name of 201 characters": ({"name": "x" * 201}, "/name"),
    "name with a newline": ({"name": "a\nb"}, "/name"),
    "name with U+0000": ({"name": "a\x00"}, "/name"),
    "no scopes": ({"scopes": []}, "/scopes"),
    "scopes that is text": ({"scopes": "events:read"}, "/scopes"),
    "unknown scope": ({"scopes": ["events:read", "root"]}, "/scopes/1"),
    "scope that is a number": ({"scopes": [1]}, "/scopes/0"),
    "scope that is a list": ({"scopes": [["events:read"]]}, "/scopes/0"),
    "scope that is an object": ({"scopes": [{}]}, "/scopes/0"),
    "expiry in the past": ({"expires_at": "2001-01-01T00:00:00Z"}, "/expires_at"),
    "unknown field": ({"prefix": "x"}, "/prefix"),
}


def test_a_bad_key_is_refused_with_the_field_named(api: Any) -> None:
    before = rows()
    for name, (body, pointer) in BAD_KEYS.items():
        with case(name):
            assert_problem(api.post("/api/keys", body), 400, pointer)
            assert rows() == before


def test_a_bad_overlap_is_refused(api: Any, subscription: Subscription) -> None:
    key_id = api.get("/api/me").json()["key"]["id"]
    before = rows()
    for overlap in (-1, 10**9, 10**30, "5", 1.5, True, None, [], 2592001):
        for path in (f"/api/keys/{key_id}/rotate", f"/api/subscriptions/{subscription.id}/rotate-secret"):
            with case(path, repr(overlap)):
                assert_problem(api.post(path, {"overlap_seconds": overlap}), 400, "/overlap_seconds")
    assert rows() == before


LISTS = ["/api/events", "/api/subscriptions", "/api/deliveries", "/api/keys", "/api/audit"]
BAD_LIMITS = ["", "0", "-1", "201", "1.5", "x", "1e2", "%2B5", "9" * 40, "٣", "%00", " 5", "0x10"]
BAD_CURSORS = ["", "x", "%00", "!!!!", "A" * 500, "=", "====", "AAAA", "bm90IGEgY3Vyc29y", "é", "%ff", "%F0%9F%98%80",
               "MjAyNi0wMS0wMVQwMDowMDowMCswMDowMH4=", "fg",
               "MjAyNi0wMS0wMVQwMDowMDowMH4wMTk4ZjJkMC02ZDNjLTdhNTItOWIxZS0yZjRjOGE3ZDFlOTA",
               "OTk5OS0xMi0zMVQyMzo1OTo1OS0yMzowMH4wMTk4ZjJkMC02ZDNjLTdhNTItOWIxZS0yZjRjOGE3ZDFlOTA",
               "MDAwMS0wMS0wMVQwMDowMDowMCsyMzowMH4wMTk4ZjJkMC02ZDNjLTdhNTItOWIxZS0yZjRjOGE3ZDFlOTA"]  # fmt: skip


@pytest.mark.parametrize("path", LISTS)
def test_a_bad_limit_cursor_or_parameter_is_refused_with_its_name(api: Any, path: str) -> None:
    for limit in BAD_LIMITS:
        assert_problem(api.get(f"{path}?limit={limit}"), 400, "?limit")
    for cursor in BAD_CURSORS:
        assert_problem(api.get(f"{path}?cursor={cursor}"), 400, "?cursor")
    assert_problem(api.get(f"{path}?nonsense=1"), 400, "?nonsense")
    assert_problem(api.get(f"{path}?limit=1&limit=2"), 400, "?limit")
    assert_problem(api.get(f"{path}?limit=1;cursor=2"), 400, "?limit")
    assert_problem(api.get(f"{path}?a%00b=1"), 400, "?a\x00b")
    assert_problem(api.get(f"{path}?{'x' * 300}=1"), 400)
    problem = assert_problem(api.get(f"{path}?limit=x&cursor=x&y=1"), 400)
    assert {error["pointer"] for error in problem["errors"]} == {"?limit", "?cursor", "?y"}


BAD_FILTERS = [
    ("/api/events", "type", ["", "%00", "x" * 258, "order.*.created", "a b"]),
    ("/api/events", "status", ["", "nonsense", "ACCEPTED", "%00", "pending"]),
    ("/api/events", "undelivered", ["", "1", "True", "yes"]),
    ("/api/deliveries", "status", ["", "nonsense", "accepted"]),
    ("/api/deliveries", "event", ["", "1", "%00", "0198f2d06d3c7a529b1e2f4c8a7d1e90", "x" * 36]),
    ("/api/deliveries", "subscription", ["", "1", "{0198f2d0-6d3c-7a52-9b1e-2f4c8a7d1e}"]),
    ("/api/audit", "action", ["", "%00"]),
    ("/api/subscriptions", "url", ["%00", "https://a.example/%00"]),
    ("/api/subscriptions", "host", ["", "%00"]),
    ("/api/subscriptions", "uid", ["", "%00"]),
    ("/api/hooks", "target_url", ["%00"]),
    ("/api/hooks/sample", "event", ["", "%00", "a b"]),
    ("/api/hooks/sample", "limit", ["", "0", "21", "%00", "x"]),
    *[
        (path, name, ["", "x", "%00", "2026-13-01T00:00:00Z", "9" * 30, "2026-01-01T00:00:00+99:99"])
        for path in ("/api/events", "/api/deliveries", "/api/audit")
        for name in ("since", "until")
    ],
]


def test_a_bad_filter_is_refused_with_its_name(api: Any) -> None:  # also those of /api/events
    for path, name, values in BAD_FILTERS:
        for value in values:
            with case(path, name, value):
                assert_problem(api.get(f"{path}?{name}={value}"), 400, f"?{name}")


@pytest.mark.parametrize("path", ["/api/events", "/api/deliveries", "/api/audit"])
def test_a_time_at_the_edge_of_the_calendar_is_no_fault(api: Any, path: str) -> None:
    for moment in ("0001-01-01T00:00:00%2B23:00", "9999-12-31T23:59:59-23:00", "0001-01-01T00:00:00Z",
                   "9999-12-31T23:59:59.999999Z"):  # fmt: skip
        for name in ("since", "until"):
            with case(name, moment):
                assert api.get(f"{path}?{name}={moment}").status_code in {200, 400}


@pytest.mark.parametrize("collection", ["events", "subscriptions", "deliveries", "keys"])
def test_an_id_that_is_none_or_unknown_is_404(api: Any, collection: str) -> None:
    for segment in ("1", "x", "%00", "..%2f", "0198f2d0-6d3c-7a52-9b1e-2f4c8a7d1e9", "%ff", "null",
                    "0198F2D0-6D3C-7A52-9B1E-2F4C8A7D1E90", str(uuid.UUID(int=0))):  # fmt: skip
        with case(segment):
            assert_problem(api.get(f"/api/{collection}/{segment}"), 404)


def test_a_url_of_5000_characters_is_414(api: Any) -> None:
    assert_problem(api.get("/api/events?type=" + "x" * 5000), 414)


@pytest.mark.parametrize("key", ["x", "trk_", "trk__", "trk_a_b", "trk_" + "x" * 300, "é", "trk_\x00_x", "Bearer x"])
def test_a_key_that_is_none_is_401_whatever_it_looks_like(api: Any, key: str) -> None:
    api.key = None
    for header in ({"X-API-Key": key}, {"Authorization": f"Bearer {key}"}, {"Authorization": key}):
        response = api.get("/api/me", **header)
        assert_problem(response, 401)
        assert response["WWW-Authenticate"].startswith("Bearer")


def test_members_given_twice_are_refused_or_the_last_one_counts_everywhere(api: Any) -> None:
    response = api.post("/api/events", raw=b'{"type":"a","data":1,"data":2}')
    if response.status_code == 202:
        assert api.get(response["Location"]).json()["data"] == 2
    else:
        assert_problem(response, 400)


def test_a_body_that_was_cut_anywhere_is_refused(api: Any) -> None:
    whole = json.dumps(event(dedup_id="d")).encode()
    before = rows()
    for cut in range(1, len(whole)):
        assert_problem(api.post("/api/events", raw=whole[:cut]), 400)
    assert rows() == before


def test_a_body_that_is_no_object_changes_nothing_that_is_there(api: Any, subscription: Subscription) -> None:
    one = f"/api/subscriptions/{subscription.id}"
    key_id = api.get("/api/me").json()["key"]["id"]
    before, shown = rows(), api.get(one).json()
    for name, body in NOT_AN_OBJECT.items():
        for method, path in (
            ("PATCH", one),
            ("POST", f"{one}/rotate-secret"),
            ("POST", f"{one}/recover"),
            ("POST", f"/api/keys/{key_id}/rotate"),
        ):
            with case(name, path):
                assert_problem(api.request(method, path, raw=body), 400)
        with case(name):
            assert rows() == before
            assert api.get(one).json() == shown


@pytest.mark.parametrize(
    ("word", "body", "pointer"),
    [
        ("recover", {}, "/since"),
        ("recover", {"since": "2026-01-01T00:00:00Z", "until": "2026-01-02T00:00:00Z"}, "/until"),
        ("rotate-secret", {"secret": "whsec_x"}, "/secret"),
    ],
)
def test_a_missing_or_unknown_field_of_an_action_is_named(
    api: Any, subscription: Subscription, word: str, body: Any, pointer: str
) -> None:
    before = rows()
    assert_problem(api.post(f"/api/subscriptions/{subscription.id}/{word}", body), 400, pointer)
    assert rows() == before


def test_no_two_bad_requests_in_a_row_break_a_good_one(api: Any) -> None:
    for body in list(NOT_AN_OBJECT.values())[:10]:
        api.post("/api/events", raw=body)
    assert api.post("/api/events", raw=GOOD).status_code == 202
