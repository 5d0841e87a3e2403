"""OAuth 2.0 to endpoints: tokens are kept, renewed, and never trusted further than a token has to be."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import datetime
import json
import threading
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from typing import Any
from urllib.parse import parse_qs

import pytest

from devstack.http_receiver import Received, Receiver, Response
from tests.webhooks.helpers import raw_server, read_request
from webhooks.destinations.http.auth import Auth, ClientCredentials, seal_auth
from webhooks.destinations.http.destination import HttpDestination
from webhooks.destinations.http.endpoint import open_endpoint
from webhooks.destinations.http.oauth import MAX_RESPONSE_BYTES
from webhooks.destinations.outcome import Failure, Outcome
from webhooks.outgoing import SingleOutgoing

ORGANIZATION, OTHER = uuid.uuid4(), uuid.uuid4()
CLIENT_SECRET = "s3cret/with+odd:characters"
NOW = datetime.datetime.now(datetime.UTC)


class AuthorizationServer:
    """Behaves as a token endpoint at `/token` and as a webhook endpoint that takes its newest token at `/hook`.

    answer: what `/token` returns instead.  takes: tokens that `/hook` takes beside the newest.
    """

    def __init__(self, receiver: Receiver) -> None:
        self.receiver = receiver
        self.expires_in: Any = 3600
        self.answer: Response | None = None
        self.issued: list[str] = []
        self.revoked: set[str] = set()
        receiver.behavior = self._respond

    def _respond(self, request: Received, number: int) -> Response:
        if request.path.startswith("/token"):
            if self.answer is not None:
                return self.answer
            self.issued.append(f"token-{len(self.issued) + 1}-{uuid.uuid4().hex}")
            answer = {"access_token": self.issued[-1], "token_type": "Bearer", "expires_in": self.expires_in}
            return Response(body=json.dumps(answer).encode())
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        taken = given in self.issued and given not in self.revoked
        # Some endpoints repeat what they got.
        return Response(200 if taken else 401, {"x-echo": given}, f"you sent {given}".encode())

    @property
    def token_requests(self) -> list[Received]:
        return [request for request in self.receiver.requests if request.path.startswith("/token")]

    @property
    def hooks(self) -> list[Received]:
        return [request for request in self.receiver.requests if request.path.startswith("/hook")]


@pytest.fixture
def server(receiver: Receiver) -> AuthorizationServer:
    return AuthorizationServer(receiver)


def credentials(url: str, **more: Any) -> ClientCredentials:
    return ClientCredentials(**{"token_url": url, "client_id": "app", "client_secret": CLIENT_SECRET, **more})


def event_for(url: str, auth: Auth | None, organization_id: uuid.UUID = ORGANIZATION) -> SingleOutgoing:
    endpoint = open_endpoint(url, "", "", sealed_auth=seal_auth(auth) if auth else "")
    assert endpoint.fault == ""
    return SingleOutgoing(uuid.uuid4(), "a.b", NOW, "{}", endpoint, organization_id)


def through(work: Callable[[Callable[[SingleOutgoing], Awaitable[Outcome]]], Awaitable[Any]]) -> Any:
    """Do `work` with the `send` of one destination."""

    async def run() -> Any:
        destination = HttpDestination()
        try:
            return await work(lambda outgoing: destination.send(outgoing, time.time()))
        finally:
            await destination.aclose()

    return asyncio.run(run())


def send_in_turn(*events: SingleOutgoing) -> list[Outcome]:
    async def work(send: Callable[[SingleOutgoing], Awaitable[Outcome]]) -> list[Outcome]:
        return [await send(event) for event in events]

    outcomes: list[Outcome] = through(work)
    return outcomes


def test_a_token_is_asked_for_once_and_used_until_it_ends(server: AuthorizationServer) -> None:
    event = event_for(
        server.receiver.url("/hook"), credentials(server.receiver.url("/token"), scope="hooks write", audience="shop")
    )
    outcomes = send_in_turn(event, event, event)
    assert [outcome.status_code for outcome in outcomes] == [200] * 3
    (asked,) = server.token_requests
    assert parse_qs(asked.body.decode()) == {
        "grant_type": ["client_credentials"], "scope": ["hooks write"], "audience": ["shop"],
    }  # fmt: skip
    pair = base64.b64decode(asked.headers["authorization"].removeprefix("Basic ")).decode()
    assert pair == "app:s3cret%2Fwith%2Bodd%3Acharacters", "RFC 6749 §2.3.1"
    assert {request.headers["authorization"] for request in server.hooks} == {f"Bearer {server.issued[0]}"}


def test_the_client_may_authenticate_in_the_body(server: AuthorizationServer) -> None:
    auth = credentials(server.receiver.url("/token"), client_authentication="body")
    assert send_in_turn(event_for(server.receiver.url("/hook"), auth))[0].succeeded
    (asked,) = server.token_requests
    assert "authorization" not in asked.headers
    form = parse_qs(asked.body.decode())
    assert (form["client_id"], form["client_secret"]) == (["app"], [CLIENT_SECRET])


@pytest.mark.parametrize("expires_in", [0, -5, "0", 0.0001])
def test_a_token_that_ends_is_renewed_before_the_next_request(server: AuthorizationServer, expires_in: Any) -> None:
    server.expires_in = expires_in
    event = event_for(server.receiver.url("/hook"), credentials(server.receiver.url("/token")))
    outcomes = send_in_turn(event, event)
    assert [outcome.status_code for outcome in outcomes] == [200, 200]
    assert len(server.issued) == 2
    assert [request.headers["authorization"][7:] for request in server.hooks] == server.issued


@pytest.mark.parametrize("expires_in", ["3600", 3600.5, None, "soon", {}, [], True, 1e300, 10**30])
def test_whatever_is_said_of_a_tokens_life_it_is_used(server: AuthorizationServer, expires_in: Any) -> None:
    server.expires_in = expires_in
    event = event_for(server.receiver.url("/hook"), credentials(server.receiver.url("/token")))
    assert [outcome.status_code for outcome in send_in_turn(event, event)] == [200, 200]
    assert len(server.issued) == 1


def test_a_token_that_the_endpoint_does_not_take_any_more_is_replaced_once(server: AuthorizationServer) -> None:
    event = event_for(server.receiver.url("/hook"), credentials(server.receiver.url("/token")))

    async def work(send: Callable[[SingleOutgoing], Awaitable[Outcome]]) -> list[Outcome]:
        first = await send(event)
        server.revoked.add(server.issued[0])
        return [first, await send(event)]

    assert [outcome.status_code for outcome in through(work)] == [200, 200]
    assert len(server.issued) == 2
    assert len(server.hooks) == 3
    # The signed request goes out the same, with another token.
    assert len({request.headers["webhook-id"] for request in server.hooks}) == 1


def test_an_endpoint_that_takes_no_token_costs_one_token_request_an_attempt(server: AuthorizationServer) -> None:
    event = event_for(server.receiver.url("/hook"), credentials(server.receiver.url("/token")))
    server.receiver.behavior = _refusing(server.receiver.behavior)
    outcomes = send_in_turn(event, event)
    assert [(outcome.status_code, outcome.failure) for outcome in outcomes] == [(401, Failure.HTTP_STATUS)] * 2
    assert len(server.token_requests) == 2
    assert len(server.hooks) == 2


def _refusing(behavior: Callable[[Received, int], Response]) -> Callable[[Received, int], Response]:
    return lambda request, number: Response(401) if request.path == "/hook" else behavior(request, number)


def test_those_who_need_the_same_token_wait_for_one_request(server: AuthorizationServer) -> None:
    event = event_for(server.receiver.url("/hook"), credentials(server.receiver.url("/token")))
    outcomes = through(lambda send: asyncio.gather(*(send(event) for _ in range(20))))
    assert {outcome.status_code for outcome in outcomes} == {200}
    assert len(server.issued) == 1


def test_no_two_organizations_or_credentials_share_a_token(server: AuthorizationServer) -> None:
    hook, url = server.receiver.url("/hook"), server.receiver.url("/token")
    send_in_turn(
        event_for(hook, credentials(url)),
        event_for(hook, credentials(url), OTHER),
        event_for(hook, credentials(url, client_secret="another")),
        event_for(hook, credentials(url, scope="more")),
        event_for(hook, credentials(url)),
    )
    assert len(server.issued) == 4
    used = [request.headers["authorization"][7:] for request in server.hooks]
    assert used == [*server.issued, server.issued[0]]


def test_a_token_that_an_endpoint_repeats_is_not_kept(server: AuthorizationServer) -> None:
    event = event_for(server.receiver.url("/hook"), credentials(server.receiver.url("/token")))
    (outcome,) = send_in_turn(event)
    assert outcome.body == "you sent ***"
    assert outcome.exchange is not None
    assert ("authorization", None) in outcome.exchange.request_headers
    assert server.issued[0] not in repr(outcome)


LIES: dict[str, tuple[Response, str]] = {
    "html": (Response(body=b"<html>CANARY</html>"), "isn't JSON"),
    "nothing": (Response(204, body=b""), "isn't JSON"),
    "an array": (Response(body=b'["CANARY"]'), "isn't JSON"),
    "no token": (Response(body=b'{"token":"CANARY"}'), "isn't JSON with an access_token"),
    "a number": (Response(body=b'{"access_token":5}'), "isn't JSON with an access_token"),
    "an empty token": (Response(body=b'{"access_token":""}'), "can't be sent in a header"),
    "a line break": (Response(body=b'{"access_token":"CANARY\\r\\nX-Evil: 1"}'), "can't be sent in a header"),
    "not ascii": (Response(body='{"access_token":"CANARYé"}'.encode()), "can't be sent in a header"),
    "a long token": (Response(body=json.dumps({"access_token": "CANARY" * 5000}).encode()), "can't be sent"),
    "another type": (Response(body=b'{"access_token":"CANARY","token_type":"mac"}'), "another token_type"),
    "deep": (Response(body=b"[" * 20_000 + b"CANARY"), "isn't JSON"),
    "10 MB": (Response(body=b'{"access_token":"' + b"CANARY" * 1_700_000 + b'"}'), "larger than 64 KiB"),
    "endless": (Response(body=b"CANARY" * 1000, endless=True), "larger than 64 KiB"),
    "an error": (
        Response(401, body=b'{"error":"invalid_client","error_description":"CANARY"}'),
        "responded with 401 (invalid_client).",
    ),
    "another error": (Response(400, body=b'{"error":"CANARY"}'), "responded with 400."),
    "a redirect inward": (Response(302, {"location": "http://169.254.169.254/CANARY"}), "redirect (302)"),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_a_token_endpoint_that_lies_is_a_failure_of_its_own_and_its_words_are_not_repeated(
    server: AuthorizationServer, lie: str
) -> None:
    server.answer, words = LIES[lie]
    (outcome,) = send_in_turn(event_for(server.receiver.url("/hook"), credentials(server.receiver.url("/token"))))
    assert (outcome.failure, outcome.status_code) == (Failure.OAUTH_FAILED, None)
    assert words in outcome.detail
    assert "CANARY" not in repr(outcome)
    assert CLIENT_SECRET not in repr(outcome)
    assert outcome.is_overload, "its deliveries are sent less often, as with an endpoint that is away"
    assert server.hooks == [], "nothing goes out without a token"


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://169.254.169.254/latest/meta-data/", "address not allowed"),
        ("http://[::1]/token", "address not allowed"),
        ("http://127.0.0.1:1/token", "The endpoint refused the connection."),
        ("http://nowhere.invalid/token", "The host name has no address."),
    ],
)
def test_a_token_url_is_under_the_same_policy_as_an_endpoint(
    server: AuthorizationServer, url: str, words: str, settings: Any
) -> None:
    settings.WEBHOOK_ALLOWED_PORTS = frozenset({1, 80, server.receiver.port})
    (outcome,) = send_in_turn(event_for(server.receiver.url("/hook"), credentials(url)))
    assert outcome.failure is Failure.OAUTH_FAILED
    assert "token URL" in outcome.detail
    assert server.hooks == []


@contextlib.contextmanager
def hanging() -> Iterator[tuple[int, threading.Event]]:
    """Yield the port of a token endpoint that never answers, and what tells that it was asked."""
    asked, over = threading.Event(), threading.Event()

    def handle(stream: Any) -> None:
        read_request(stream)
        asked.set()
        over.wait(30)

    with raw_server(handle) as port:
        yield port, asked
        over.set()


def test_a_token_endpoint_that_hangs_delays_only_those_who_need_its_token(
    server: AuthorizationServer, settings: Any
) -> None:
    settings.DELIVERY_TIMEOUT = 2.0
    hook = server.receiver.url("/hook")
    with hanging() as (port, asked):
        slow = event_for(hook, credentials(f"http://127.0.0.1:{port}/"))

        async def work(send: Callable[[SingleOutgoing], Awaitable[Outcome]]) -> tuple[list[Outcome], list[Outcome]]:
            waiting = [asyncio.ensure_future(send(slow)) for _ in range(5)]
            await asyncio.to_thread(asked.wait, 30)
            others = [await send(event_for(hook, credentials(server.receiver.url("/token")))) for _ in range(5)]
            assert not any(task.done() for task in waiting), "they were sent while the others waited"
            return others, await asyncio.gather(*waiting)

        others, failed = through(work)
    assert {outcome.status_code for outcome in others} == {200}
    assert {outcome.failure for outcome in failed} == {Failure.OAUTH_FAILED}
    assert {outcome.detail for outcome in failed} == {"The token URL did not respond within 1 s."}


def test_a_new_token_after_a_401_has_only_what_is_left_of_the_attempt(
    server: AuthorizationServer, settings: Any
) -> None:
    settings.DELIVERY_TIMEOUT = 2.0
    event = event_for(server.receiver.url("/hook"), credentials(server.receiver.url("/token")))
    usual = server.receiver.behavior

    async def work(send: Callable[[SingleOutgoing], Awaitable[Outcome]]) -> Outcome:
        assert (await send(event)).succeeded
        # Late, but in time; then the token endpoint has a second by itself, and the attempt half of one.
        server.receiver.behavior = lambda request, number: (
            Response(401, delay=1.5) if request.path == "/hook" else Response(delay=30.0)
        )
        return await send(event)

    outcome = through(work)
    server.receiver.behavior = usual
    assert (outcome.failure, outcome.detail) == (
        Failure.OAUTH_FAILED, "The attempt's time was over before there was a new token.",
    )  # fmt: skip


def test_the_bound_of_an_answer_is_what_the_message_says() -> None:
    assert MAX_RESPONSE_BYTES == 64 * 1024
