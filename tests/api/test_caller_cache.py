"""A process remembers a key for some seconds; what the key is now still decides."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest
from django.db.models.functions import Now

from core.front_door.http import Message, Request, Response
from events.models import Event
from orgs import caller_cache
from orgs.caller_cache import CallerCache
from orgs.front_door import MOST_CHANGES, Authenticator, KeyChanged
from orgs.keys import Caller, create_api_key
from orgs.models import ApiKey, Organization
from orgs.scopes import Scope
from tests.api.helpers import assert_problem
from tests.conftest import ApiClient
from triggers_project.asgi import events_door

GOOD = {"type": "a", "data": 1}


@pytest.fixture
def remembered(api: ApiClient) -> ApiClient:
    """Return a client whose key the front door remembers; one event is stored."""
    assert api.post("/api/events", GOOD).status_code == 202
    return api


def end_key(how: str) -> None:
    """End every key in one of the ways in which it can end."""
    if how == "revoked":
        ApiKey.objects.update(revoked_at=Now())
    elif how == "expired":
        ApiKey.objects.update(expires_at=Now())
    elif how == "deleted":
        ApiKey.objects.all().delete()
    else:
        Organization.objects.update(is_active=False)


@pytest.mark.parametrize("how", ["revoked", "expired", "deleted", "organization switched off"])
@pytest.mark.parametrize(
    "body",
    [GOOD, {**GOOD, "dedup_id": "d"}, {**GOOD, "dedup_id": "known"}, {"type": 5}, {"type": "a", "data": "x" * 300_000}],
    ids=["good", "with a dedup id", "a duplicate", "invalid", "too large"],
)
def test_a_key_that_ended_is_401_whatever_it_sends_and_nothing_is_stored(
    remembered: ApiClient, how: str, body: Any
) -> None:
    assert remembered.post("/api/events", {**GOOD, "dedup_id": "known"}).status_code == 202
    end_key(how)
    for _ in range(2):
        assert assert_problem(remembered.post("/api/events", body), 401)["code"] == "invalid_api_key"
    assert Event.objects.count() == 2


def test_a_scope_that_was_taken_away_is_gone_and_one_that_was_given_is_there(remembered: ApiClient) -> None:
    ApiKey.objects.update(scopes=["events:read"])
    for body in (GOOD, {"type": 5}):
        assert assert_problem(remembered.post("/api/events", body), 403)["scope"] == "events:write"
    ApiKey.objects.update(scopes=["events:write"])
    assert remembered.post("/api/events", GOOD).status_code == 202
    assert remembered.get("/api/events").status_code == 403
    assert Event.objects.count() == 2


@pytest.mark.parametrize("dedup_id", [None, "d"])
def test_a_rate_counts_from_the_request_after_it_was_set(
    remembered: ApiClient, organization: Organization, dedup_id: str | None
) -> None:
    organization.events_per_minute = 2
    organization.save()
    body = GOOD if dedup_id is None else {**GOOD, "dedup_id": dedup_id}
    assert remembered.post("/api/events", body).status_code == 202  # by the old rate, which is told, too
    assert remembered.post("/api/events", GOOD)["RateLimit-Policy"] == '"events";q=2;w=60'
    while (refused := remembered.post("/api/events", GOOD)).status_code != 429:
        assert Event.objects.count() < 10
    assert "2 events a minute" in refused.json()["detail"]
    organization.events_per_minute = 100
    organization.save()
    answer = remembered.post("/api/events", GOOD)
    assert answer.status_code == 202
    assert answer["RateLimit-Policy"] == '"events";q=100;w=60'


def test_duplicates_and_conflicts_are_told_as_ever(remembered: ApiClient) -> None:
    first = remembered.post("/api/events", {**GOOD, "dedup_id": "d"})
    assert first.status_code == 202
    for _ in range(2):
        again = remembered.post("/api/events", {**GOOD, "dedup_id": "d"})
        assert (again.status_code, again.json()["id"]) == (200, first.json()["id"])
        other = remembered.post("/api/events", {"type": "a", "data": 2, "dedup_id": "d"})
        assert assert_problem(other, 409)["event_id"] == first.json()["id"]
    assert Event.objects.count() == 2


def test_a_key_of_another_organization_is_never_taken_for_one_that_is_remembered(
    remembered: ApiClient,
    other_api: ApiClient,
    other_organization: Organization,
    client_of: Callable[[str], ApiClient],
) -> None:
    for _ in range(2):
        assert other_api.post("/api/events", GOOD).status_code == 202
    assert Event.objects.filter(organization=other_organization).count() == 2
    prefix = "_".join(str(remembered.key).split("_")[:2])
    wrong = client_of(f"{prefix}_{'x' * 43}")
    assert wrong.post("/api/events", GOOD).status_code == 401


def test_a_key_is_looked_up_again_after_seconds_and_its_last_use_is_noted_on(
    remembered: ApiClient, door: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    ApiKey.objects.update(last_used_at=None)
    assert remembered.post("/api/events", GOOD).status_code == 202
    assert (ApiKey.objects.get().last_used_at is None) == (door is not None)
    monkeypatch.setattr(events_door.authenticator, "cache", CallerCache(seconds=0))
    for _ in range(2):
        assert remembered.post("/api/events", GOOD).status_code == 202
    assert ApiKey.objects.get().last_used_at is not None


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(("changes", "served"), [(MOST_CHANGES - 1, True), (MOST_CHANGES, False), (100, False)])
def test_a_request_starts_over_only_so_often(organization: Organization, changes: int, served: bool) -> None:
    _, key = create_api_key(organization)
    begun = 0

    async def serve(request: Request, caller: Caller) -> Response:
        nonlocal begun
        begun += 1
        if begun <= changes:
            raise KeyChanged
        return Response(200, b"{}")

    async def receive() -> Message:
        return {"type": "http.request", "body": b""}

    handle = Authenticator().requires(Scope.EVENTS_WRITE, serve)
    scope = {"headers": [(b"x-api-key", key.encode())], "client": ("127.0.0.1", 1)}
    request = Request(scope, receive, "id")
    if served:
        assert asyncio.run(_awaited(handle(request))).status == 200
    else:
        with pytest.raises(KeyChanged):
            asyncio.run(_awaited(handle(request)))
    assert begun == MOST_CHANGES


async def _awaited(response: Awaitable[Response]) -> Response:
    return await response


def test_of_too_many_callers_the_one_that_was_looked_up_first_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caller_cache, "MOST_CALLERS", 2)
    cache, caller = CallerCache(), cast(Any, object())
    for key in ("a", "b", "a", "c"):
        cache.add(key, caller)
    assert [cache.get(key) for key in "abc"] == [caller, None, caller]
