"""The parts of the Python client that need no installation: signatures, retries, errors, the shape of both clients."""

from __future__ import annotations

import asyncio
import base64
import datetime
import inspect
import json
import time
import warnings
from collections.abc import Callable
from typing import Any

import httpx
import pytest
import triggers_client
from standardwebhooks import Webhook
from triggers_client import (
    ApiDeprecationWarning,
    AsyncClient,
    Client,
    ConnectionFailedError,
    TriggersError,
    WebhookVerificationError,
    calls,
    client,
    errors,
    new_secret,
    sign,
    verify,
)
from triggers_client.event_stream import Following

from core.problems import problem_types
from devstack.http_receiver import Received, Receiver, Response
from scripts import sync_client

# The vector of Standard Webhooks 1.0.
SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
BODY = b'{"test": 2432232314}'
HEADERS = {
    "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
    "webhook-timestamp": "1614265330",
    "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
}
SENT = 1614265330


# --- signatures -------------------------------------------------------------------------------------


def test_the_vector_of_standard_webhooks_is_genuine() -> None:
    assert verify(BODY, HEADERS, SECRET, now=SENT) == {"test": 2432232314}
    assert verify(BODY.decode(), {name.title(): value for name, value in HEADERS.items()}, SECRET, now=SENT)
    assert verify(BODY, list(HEADERS.items()), SECRET.removeprefix("whsec_"), now=SENT)
    assert sign(BODY, HEADERS["webhook-id"], SENT, SECRET) == HEADERS["webhook-signature"]


def test_one_of_several_signatures_and_secrets_is_enough() -> None:
    given = HEADERS["webhook-signature"]
    several = {**HEADERS, "webhook-signature": f"v1a,bm9uZQ== v1,{base64.b64encode(bytes(32)).decode()} {given}"}
    assert verify(BODY, several, [new_secret(), SECRET], now=SENT)
    with pytest.raises(WebhookVerificationError, match="No signature"):
        verify(BODY, several, [new_secret(), new_secret()], now=SENT)


@pytest.mark.parametrize("seconds", [-300, 300])
def test_clocks_may_differ_by_five_minutes(seconds: int) -> None:
    assert verify(BODY, HEADERS, SECRET, now=SENT + seconds)
    with pytest.raises(WebhookVerificationError, match="past" if seconds > 0 else "future"):
        verify(BODY, HEADERS, SECRET, now=SENT + seconds + (1 if seconds > 0 else -1))
    assert verify(BODY, HEADERS, SECRET, now=SENT + 2 * seconds, tolerance=600)


@pytest.mark.parametrize(
    "change",
    [
        {"webhook-id": "msg_other"},
        {"webhook-timestamp": str(SENT + 1)},
        {"webhook-timestamp": "soon"},
        {"webhook-timestamp": "-1"},
        {"webhook-timestamp": "\u0661614265330"},
        {"webhook-signature": ""},
        {"webhook-signature": "g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="},
        {"webhook-signature": "v2,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="},
        {"webhook-signature": "v1,\u00e9"},
    ],
)
def test_what_is_not_genuine_is_refused(change: dict[str, str]) -> None:
    with pytest.raises(WebhookVerificationError):
        verify(BODY, {**HEADERS, **change}, SECRET, now=SENT)


def test_another_body_a_missing_header_and_a_body_without_json_are_refused() -> None:
    with pytest.raises(WebhookVerificationError):
        verify(BODY + b" ", HEADERS, SECRET, now=SENT)
    for name in HEADERS:
        with pytest.raises(WebhookVerificationError, match=name):
            verify(BODY, {key: value for key, value in HEADERS.items() if key != name}, SECRET, now=SENT)
    signature = sign(b"text", "a", SENT, SECRET)
    with pytest.raises(WebhookVerificationError, match="JSON"):
        verify(b"text", {**HEADERS, "webhook-id": "a", "webhook-signature": signature}, SECRET, now=SENT)


@pytest.mark.parametrize("secret", ["", "whsec_", "whsec_!!!!", "whsec_c2hvcnQ=", []])
def test_what_is_no_secret_is_said_so(secret: Any) -> None:
    with pytest.raises(ValueError, match="secret"):
        verify(BODY, HEADERS, secret, now=SENT)


def test_signatures_are_those_of_the_official_library() -> None:
    secret, now = new_secret(), int(time.time())
    headers = {"webhook-id": "a", "webhook-timestamp": str(now), "webhook-signature": sign(b"{}", "a", now, secret)}
    assert Webhook(secret).verify(b"{}", headers) == {}


# --- errors -----------------------------------------------------------------------------------------


def test_every_problem_code_becomes_the_class_of_its_status() -> None:
    known = {problem.code: problem.status for problem in problem_types()}
    assert set(errors.BY_CODE) <= set(known)
    for code, status in known.items():
        expected = errors.BY_STATUS.get(status, errors.ServerError if status >= 500 else errors.BadRequestError)
        assert issubclass(errors.error_class(code, status), expected)
    assert all(name in triggers_client.__all__ for name in vars(errors) if name.endswith("Error") and name[0] != "_")


def test_a_problem_tells_all_that_the_server_said() -> None:
    body = {
        "code": "invalid", "status": 400, "detail": "The event is not valid.", "request_id": "r-1",
        "errors": [{"pointer": "/type", "detail": "is required"}],
    }  # fmt: skip
    problem = errors.read_problem(400, json.dumps(body).encode())
    assert type(problem) is errors.BadRequestError
    assert (problem.code, problem.status, problem.request_id) == ("invalid", 400, "r-1")
    assert [(error.pointer, error.detail) for error in problem.errors] == [("/type", "is required")]
    assert str(problem) == "The event is not valid: /type is required (invalid)"
    assert problem.members == body
    for strange in (b"", b"<html>", b"[]", b'{"code": 1}', b"\xff"):
        assert errors.read_problem(502, strange).code == "http_502"


# --- retries ----------------------------------------------------------------------------------------

RECEIPT = Response(202, body=b'{"id": "e", "status": "accepted", "message": ""}')


def scripted(*responses: Response) -> Callable[[Received, int], Response]:
    """Return the responses in turn; the last one again and again."""
    left = list(responses)
    return lambda request, number: left.pop(0) if len(left) > 1 else left[0]


@pytest.fixture
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let clients wait for milliseconds between attempts."""
    monkeypatch.setattr(calls.RetryPolicy, "delay", lambda self, retry: 0.001)


def call_both(base_url: str, what: Callable[[Any], Any]) -> list[Any]:
    """Return what the sync and the async client make of a call: a value, or the error that it raises."""

    async def run() -> Any:
        async with AsyncClient("key", base_url) as asynchronous:
            return await what(asynchronous)

    outcomes: list[Any] = []
    with Client("key", base_url) as synchronous:
        for one in (lambda: what(synchronous), lambda: asyncio.run(run())):
            try:
                outcomes.append(one())
            except TriggersError as error:
                outcomes.append(error)
    return outcomes


@pytest.mark.usefixtures("_quick")
@pytest.mark.parametrize("fault", [Response(503), Response(429), Response(500), Response(reset=True)])
def test_an_event_is_sent_again_with_the_same_dedup_id(fault: Response) -> None:
    with Receiver(lambda request, number: fault if number % 2 else RECEIPT) as server:
        receipts = call_both(server.url(""), lambda one: one.events.send("order.created", {"id": 1}))
        assert [receipt.id for receipt in receipts] == ["e", "e"]
        bodies = [request.document for request in server.requests]
    assert len(bodies) == 4
    assert bodies[0] == bodies[1] != bodies[2] == bodies[3]
    assert bodies[0]["dedup_id"]


@pytest.mark.usefixtures("_quick")
@pytest.mark.parametrize("fault", [Response(500), Response(reset=True)])
def test_what_might_have_been_done_is_not_done_twice(fault: Response) -> None:
    with Receiver(lambda request, number: fault) as server:
        for failed in call_both(server.url(""), lambda one: one.subscriptions.test("s")):
            assert isinstance(failed, errors.ServerError if fault.status == 500 else ConnectionFailedError)
        assert len(server.requests) == 2


@pytest.mark.usefixtures("_quick")
def test_what_creates_carries_a_key_and_is_repeated_if_it_was_refused() -> None:
    made = Response(
        201,
        body=json.dumps(
            {"id": "s", "kind": "http", "event_types": [], "state": "active", "status": "active",
             "created_at": "2027-01-31T12:00:00Z", "updated_at": "2027-01-31T12:00:00Z", "new_member": 1}
        ).encode(),
    )  # fmt: skip
    with Receiver(lambda request, number: Response(429) if number % 2 else made) as server:
        found = call_both(server.url(""), lambda one: one.subscriptions.create("https://example.com", ["*"]))
        keys = [request.headers["idempotency-key"] for request in server.requests]
    assert [one.id for one in found] == ["s", "s"]
    assert keys[0] == keys[1] != keys[2] == keys[3]


@pytest.mark.usefixtures("_quick")
def test_a_deletion_whose_response_was_lost_has_succeeded() -> None:
    faults = scripted(Response(reset=True), Response(404), Response(502), Response(404), Response(404))
    with Receiver(faults) as server:
        assert call_both(server.url(""), lambda one: one.subscriptions.delete("s")) == [None, None]
        for failed in call_both(server.url(""), lambda one: one.subscriptions.delete("s")):
            assert isinstance(failed, errors.NotFoundError)


@pytest.mark.usefixtures("_quick")
def test_attempts_end_and_a_long_retry_after_is_not_waited_for() -> None:
    with Receiver(lambda request, number: Response(503)) as server:
        assert [error.status for error in call_both(server.url(""), lambda one: one.me())] == [503, 503]
        assert len(server.requests) == 8
    with Receiver(lambda request, number: Response(429, {"retry-after": "3600"})) as server:
        assert [error.retry_after for error in call_both(server.url(""), lambda one: one.me())] == [3600, 3600]
        assert len(server.requests) == 2


@pytest.mark.usefixtures("_quick")
def test_retry_after_is_waited_for() -> None:
    with Receiver(lambda request, number: RECEIPT if number > 1 else Response(429, {"retry-after": "1"})) as server:
        Client("key", server.url("")).events.send("a")
        first, second = server.requests
        assert second.monotonic - first.monotonic >= 1.0


@pytest.mark.usefixtures("_quick")
def test_nobody_at_the_port_and_nonsense_from_it_are_errors_of_ours() -> None:
    with Receiver() as server:
        url = server.url("")
        assert {error.code for error in call_both(url, lambda one: one.me())} == {"unexpected_response"}
    for failed in call_both(url, lambda one: one.me()):
        assert isinstance(failed, ConnectionFailedError)
        assert (failed.code, failed.status) == ("connection_failed", 0)


def test_the_key_is_not_carried_to_another_server() -> None:
    with Receiver() as other, Receiver(lambda request, number: Response(302, {"location": other.url("/")})) as server:
        assert {error.status for error in call_both(server.url(""), lambda one: one.me())} == {302}
        assert other.requests == []


def test_waits_grow_twofold_to_a_limit_and_are_spread() -> None:
    policy = calls.RetryPolicy(base=0.5, longest=8.0)
    for retry, longest in enumerate([0.5, 1.0, 2.0, 4.0, 8.0, 8.0]):
        waits = [policy.delay(retry) for _ in range(50)]
        assert longest / 2 <= min(waits) < max(waits) <= longest


def test_retry_after_is_seconds_or_a_date() -> None:
    now = datetime.datetime(2027, 1, 31, 12, 0, tzinfo=datetime.UTC)
    assert calls.retry_after("7", now) == 7
    assert calls.retry_after("Sun, 31 Jan 2027 12:00:30 GMT", now) == 30
    assert calls.retry_after("Sun, 31 Jan 2027 11:00:00 GMT", now) == 0
    assert [calls.retry_after(value, now) for value in (None, "", "soon", "-1")] == [None] * 4


def test_a_client_wants_a_key_and_a_url(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRIGGERS_API_KEY", raising=False)
    with pytest.raises(ValueError, match="TRIGGERS_API_KEY"):
        Client()
    with pytest.raises(ValueError, match="http"):
        Client("key", "localhost:8000")
    for key in ("trk_ü", "trk_a b", "trk_a\n"):
        with pytest.raises(ValueError, match="ASCII"):
            Client(key)
    monkeypatch.setenv("TRIGGERS_API_KEY", "key")
    Client().close()


# --- deprecations -----------------------------------------------------------------------------------


def test_what_is_deprecated_is_warned_of_once_for_each_endpoint_where_it_is_used() -> None:
    headers = {
        "deprecation": "@1801353600", "sunset": "Sat, 31 Jul 2027 00:00:00 GMT",
        "link": '<https://example.com/next>; rel="next", </api/docs>; rel="deprecation"; type="text/html"',
    }  # fmt: skip

    async def follow(url: str) -> None:
        async with AsyncClient("key", url, max_retries=0) as client:
            async for _ in client.inbox.stream():
                break

    event = {
        "id": "e", "type": "a", "payload": 1, "created_at": "2027-01-31T12:00:00Z", "delivery_id": "d",
        "delivery_status": "pending",
    }  # fmt: skip
    stream = f"id: 1\ndata: {json.dumps(event)}\n\n".encode()
    with (
        Receiver(lambda request, number: Response(404, headers)) as server,
        Receiver(lambda request, number: Response(200, {**headers, "deprecation": "true"}, stream)) as other,
        warnings.catch_warnings(record=True) as found,
    ):
        warnings.simplefilter("always")
        for id_ in ("0198f2d0-6d3c-7a52-9b1e-2f4c8a1b3d5e", "0198f2d1-6d3c-7a52-9b1e-2f4c8a1b3d5e"):
            call_both(server.url(""), lambda one, id_=id_: one.deliveries.get(id_))
        asyncio.run(follow(other.url("")))
    # Python warns of its own meanwhile, as of a socket of an earlier test that it finds unclosed.
    ours = [warned for warned in found if issubclass(warned.category, ApiDeprecationWarning)]
    assert [str(warned.message) for warned in ours] == [
        f"A request to GET /api/deliveries/{{id}} uses what is deprecated since 2027-01-31 and works until 2027-07-31: "
        f"see {server.url('/api/docs')}",
        f"A request to GET /api/inbox/stream uses what is deprecated and works until 2027-07-31: "
        f"see {other.url('/api/docs')}",
    ]
    assert {warned.filename for warned in ours} == {__file__}


# --- the stream -------------------------------------------------------------------------------------


def test_a_stream_goes_on_from_the_last_complete_event() -> None:
    event = {
        "id": "e", "type": "a", "payload": {"text": "x"}, "created_at": "2027-01-31T12:00:00Z", "delivery_id": "d",
        "delivery_status": "pending",
    }  # fmt: skip
    text = json.dumps(event, indent=1).splitlines()
    lines = ["retry: 20", "id: 1", "", ": alive", "id: 2", *(f"data: {line}" for line in text)]
    following = Following("", None, None, Client("key", "http://localhost").configuration.attempts)
    assert following.request()["params"] == {"cursor": ""}
    following.opened(httpx.Response(200))
    assert [found for line in lines if (found := following.feed(line))] == []
    assert following.ended() == 0.02  # in the middle of an event
    assert following.request()["params"] == {"cursor": "1"}
    found = [found for line in [*lines, ""] if (found := following.feed(line))]
    assert [(one.cursor, one.event.payload) for one in found] == [("2", {"text": "x"})]
    following.opened(httpx.Response(200))
    following.ended()
    assert following.request()["params"] == {"cursor": "2"}


# --- both clients and the API -----------------------------------------------------------------------


def test_the_sync_client_is_written_from_the_async_one() -> None:
    assert sync_client.WRITTEN.read_text() == sync_client.written(), "run python -m scripts.sync_client"
    for name in ("Events", "Subscriptions", "Deliveries", "EventTypes", "Inbox"):
        members = {member for member in vars(getattr(client, name)) if not member.startswith("_")}
        assert all(inspect.getdoc(getattr(getattr(client, name), member)) for member in members)
