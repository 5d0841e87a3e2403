"""The handshake: an endpoint is subscribed only if it repeats `X-Hook-Secret`, for those who ask for that."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import pytest
from django.db import connection
from pytest_django import Settings

from core.db import in_transaction
from devstack.http_receiver import Received, Receiver, Response
from devstack.sockets import free_port
from orgs.models import AuditEntry, Organization
from tests.api.helpers import assert_problem
from tests.webhooks.transactions import another_transaction
from webhooks import handshake, probes
from webhooks.models import Subscription

SUBSCRIPTIONS, HOOKS = "/api/subscriptions", "/api/hooks"


def echo(request: Received, number: int) -> Response:
    return Response(headers={"X-Hook-Secret": request.headers.get("x-hook-secret", "")})


def make(api: Any, receiver: Receiver, **more: Any) -> Any:
    body = {"url": receiver.url("/hook"), "event_types": ["order.*"], "handshake": True, **more}
    return api.post(SUBSCRIPTIONS, body)


def test_an_endpoint_that_confirms_is_subscribed(api: Any, receiver: Receiver) -> None:
    receiver.behavior = echo
    answer = make(api, receiver, headers={"X-Warehouse": "north", "X-Hook-Secret": "mine"}, auth={
        "type": "bearer", "token": "t0ken-of-the-endpoint"
    })  # fmt: skip
    assert answer.status_code == 201, answer.content
    assert "handshake" not in answer.json()
    (request,) = receiver.requests
    assert len(request.headers["x-hook-secret"]) >= 32
    assert request.headers["x-warehouse"] == "north"
    assert request.headers["authorization"] == "Bearer t0ken-of-the-endpoint"
    assert request.document == {}
    assert "webhook-signature" not in request.headers
    assert AuditEntry.objects.get().detail == {"handshake": True}


def test_without_asking_nothing_is_sent(api: Any, receiver: Receiver) -> None:
    for more in ({}, {"handshake": False}):
        body = {"url": receiver.url("/hook"), "event_types": ["*"], **more}
        assert api.post(SUBSCRIPTIONS, body).status_code == 201
        assert api.post(HOOKS, {"target_url": receiver.url("/zap"), **more}).status_code in (200, 201)
    assert not receiver.requests


@pytest.mark.parametrize(
    ("behavior", "said", "status", "error"),
    [
        (lambda request, number: Response(), "had no X-Hook-Secret", 200, None),
        (lambda request, number: Response(headers={"X-Hook-Secret": "guess"}), "had another X-Hook-Secret", 200, None),
        (lambda request, number: Response(400, echo(request, number).headers), "responded with 400", 400,
         "http_status"),
        (lambda request, number: Response(302, {**echo(request, number).headers, "location": "/"}),
         "responded with 302", 302, "redirect"),
        (lambda request, number: Response(reset=True), "without a response", None, "connection_lost"),
    ],
    ids=["no echo", "a wrong echo", "refused", "redirected", "reset"],
)  # fmt: skip
def test_one_that_does_not_is_refused_and_nothing_is_stored(
    api: Any, receiver: Receiver, behavior: Callable[[Received, int], Response], said: str, status: Any, error: Any
) -> None:
    receiver.behavior = behavior
    for path, name in ((SUBSCRIPTIONS, "url"), (HOOKS, "hookUrl")):
        body = {name: receiver.url("/hook"), "event_types": ["order.*"], "handshake": True}
        problem = assert_problem(api.post(path, body), 422, f"/{name}")
        assert (problem["code"], problem["status_code"], problem["error"]) == ("handshake_failed", status, error)
        assert said in problem["detail"]
        for request in receiver.requests:
            assert request.headers["x-hook-secret"] not in str(problem)
    assert not Subscription.objects.exists()
    assert not AuditEntry.objects.exists()


def test_one_that_hangs_or_may_not_be_reached_is_refused(
    api: Any, receiver: Receiver, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probes, "MAX_SECONDS", 0.2)
    receiver.hold()
    assert assert_problem(make(api, receiver), 422, "/url")["error"] == "timeout"
    receiver.release()
    refused = assert_problem(make(api, receiver, url=f"http://127.0.0.1:{free_port()}/"), 422, "/url")
    assert refused["error"] == "connection_refused"
    # A literal address is refused as ever; a name that leads inward, when it is resolved.
    settings.WEBHOOK_ALLOWED_SUBNETS = ()
    assert_problem(make(api, receiver), 400, "/url")
    inward = make(api, receiver, url=receiver.url("/hook").replace("127.0.0.1", "localhost"))
    assert inward.status_code in (400, 422), inward.content
    assert not Subscription.objects.exists()


def test_a_token_url_that_hangs_is_what_is_blamed(
    api: Any, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probes, "MAX_SECONDS", 0.2)
    receiver.hold()
    auth = {"type": "oauth2", "token_url": receiver.url("/token"), "client_id": "c", "client_secret": "s"}
    made = make(api, receiver, handshake=False, auth=auth).json()
    shown = api.post(f"{SUBSCRIPTIONS}/{made['id']}/test").json()
    problem = assert_problem(make(api, receiver, auth=auth), 422, "/url")
    receiver.release()
    assert (shown["error"], problem["error"]) == ("oauth_failed", "oauth_failed")
    assert "token" in shown["error_detail"]
    assert not receiver.of("/hook")


def test_a_changed_url_is_asked_before_it_is_stored(api: Any, receiver: Receiver) -> None:
    made = make(api, receiver, handshake=False).json()
    path = f"{SUBSCRIPTIONS}/{made['id']}"
    change = {"url": receiver.url("/new"), "handshake": True}
    assert_problem(api.patch(path, change), 422, "/url")
    assert api.get(path).json()["url"] == made["url"]
    assert_problem(api.patch(path, {"description": "x", "handshake": True}), 422, "/handshake")
    assert_problem(api.patch(path, {"handshake": True}), 400, "/handshake")
    receiver.behavior = echo
    assert api.patch(path, change).json()["url"] == receiver.url("/new")
    assert AuditEntry.objects.order_by("-id")[0].detail == {"fields": ["url"], "handshake": True}


def test_an_inbox_has_none(api: Any) -> None:
    body = {"kind": "inbox", "inbox": "orders", "event_types": ["*"], "handshake": True}
    assert_problem(api.post(SUBSCRIPTIONS, body), 400, "/handshake")


def test_a_keyed_request_asks_once_and_its_replay_not_at_all(api: Any, receiver: Receiver) -> None:
    receiver.behavior = echo
    body = {"url": receiver.url("/hook"), "event_types": ["order.*"], "handshake": True}
    first, again = (api.post(SUBSCRIPTIONS, body, **{"Idempotency-Key": "once"}) for _ in range(2))
    assert (first.status_code, again.status_code) == (201, 201)
    assert first.json() == again.json()
    assert again["Idempotency-Replayed"] == "true"
    assert len(receiver.requests) == 1


@pytest.mark.django_db(transaction=True)
def test_no_transaction_is_open_while_the_endpoint_is_asked(api: Any, receiver: Receiver) -> None:
    with another_transaction() as other:
        other.autocommit = True

        def look(request: Received, number: int) -> Response:
            states.append(other.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = %s AND state LIKE 'idle in transaction%%'",
                [connection.settings_dict["NAME"]],
            ).fetchone())  # fmt: skip
            return echo(request, number)

        states: list[Any] = []
        receiver.behavior = look
        for path in (SUBSCRIPTIONS, HOOKS):
            for number, headers in enumerate(({}, {"Idempotency-Key": f"key {path}"})):
                body = {"url": receiver.url(f"{path}/{number}"), "event_types": ["*"], "handshake": True}
                assert api.post(path, body, **headers).status_code == 201
    assert states == [(0,)] * 4
    with pytest.raises(RuntimeError):
        in_transaction(lambda: handshake.shake_hands(uuid.uuid4(), receiver.url(), {}))


def test_a_place_for_each_organization(
    api: Any, other_api: Any, organization: Organization, receiver: Receiver, settings: Settings
) -> None:
    settings.WEB_THREADS = 4
    receiver.behavior = echo
    with probes.places.place(organization.pk):
        # Whoever has one under way waits, and takes nobody else's place.
        refused = make(api, receiver)
        assert assert_problem(refused, 429)["code"] == "too_many_handshakes"
        assert int(refused["Retry-After"]) >= 1
        assert make(other_api, receiver).status_code == 201
        with probes.places.place(uuid.uuid4()):  # half of the threads
            assert_problem(make(other_api, receiver), 429)
    assert make(api, receiver).status_code == 201


def test_so_many_a_minute(api: Any, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handshake, "PER_MINUTE", 1)
    assert_problem(make(api, receiver), 422)
    assert assert_problem(make(api, receiver), 429)["code"] == "too_many_handshakes"
