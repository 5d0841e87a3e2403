"""Every route of the URL configuration, walked by those who may not."""

from __future__ import annotations

import datetime
import re
import uuid
from typing import Any

import pytest
from django.apps import apps
from django.core import serializers
from django.urls import URLPattern, URLResolver, get_resolver
from django.utils import timezone

from orgs.keys import create_api_key
from orgs.models import ApiKey, Organization
from orgs.scopes import Scope
from tests.api.helpers import assert_problem, case
from tests.conftest import ApiClient
from tests.portal.routes import PORTAL, PORTAL_OPEN
from webhooks import subscriptions
from webhooks.models import Delivery

E, S, D, R, K, T, C, P = (
    Scope.EVENTS_WRITE, Scope.SUBSCRIPTIONS_MANAGE, Scope.DELIVERIES_READ, Scope.DELIVERIES_RETRY, Scope.KEYS_MANAGE,
    Scope.EVENT_TYPES_MANAGE, Scope.INBOX_CONSUME, Scope.PORTAL_LINKS,
)  # fmt: skip
EVENT = {"type": "a.b", "data": 1}
ITEMS = {"event_ids": ["0198f2d0-6d3c-7a52-9b1e-2f4c8a7d1e91"]}
SUBSCRIPTION = {"url": "https://a.example/", "event_types": ["*"]}

# What is known of each route under /api/: the method, the scope that it needs, a body that is good.
KNOWN: dict[str, list[tuple[str, Scope | None, Any]]] = {
    "api/me": [("GET", None, None)],
    "api/keys": [("GET", K, None), ("POST", K, {"name": "x"})],
    "api/keys/<uuid:key_id>": [("GET", K, None), ("DELETE", K, None)],
    "api/keys/<uuid:key_id>/rotate": [("POST", K, {"overlap_seconds": 0})],
    "api/audit": [("GET", K, None)],
    "api/events": [("GET", Scope.EVENTS_READ, None), ("POST", E, EVENT)],
    "api/events/batch": [("POST", E, [EVENT])],
    "api/events/<uuid:event_id>": [("GET", Scope.EVENTS_READ, None)],
    "api/events/<uuid:event_id>/payload": [("DELETE", Scope.EVENTS_ERASE, None)],
    "api/event-types": [("GET", Scope.EVENTS_READ, None), ("POST", T, {"name": "b.c"})],
    "api/event-types/import": [("POST", T, {"webhooks": {"c.d": {"post": {}}}})],
    "api/event-types/settings": [("GET", Scope.EVENTS_READ, None), ("PATCH", T, {"strictness": "free"})],
    "api/event-types/<uuid:event_type_id>": [
        ("GET", Scope.EVENTS_READ, None), ("PATCH", T, {"description": "mine"}), ("DELETE", T, None),
    ],
    "api/subscriptions": [("GET", S, None), ("POST", S, SUBSCRIPTION)],
    "api/subscriptions/<uuid:subscription_id>": [
        ("GET", S, None), ("PATCH", S, {"description": "mine"}), ("DELETE", S, None),
    ],
    "api/subscriptions/<uuid:subscription_id>/enable": [("POST", S, None)],
    "api/subscriptions/<uuid:subscription_id>/disable": [("POST", S, None)],
    "api/subscriptions/<uuid:subscription_id>/rotate-secret": [("POST", S, {"overlap_seconds": 0})],
    "api/subscriptions/<uuid:subscription_id>/secrets": [("GET", S, None), ("POST", S, {})],
    "api/subscriptions/<uuid:subscription_id>/secrets/<uuid:secret_id>": [
        ("PATCH", S, {"expires_at": "2030-01-01T00:00:00Z"}), ("DELETE", S, None),
    ],
    "api/subscriptions/<uuid:subscription_id>/test": [("POST", S, None)],
    "api/subscriptions/<uuid:subscription_id>/preview": [("POST", S, EVENT)],
    "api/subscriptions/<uuid:subscription_id>/recover": [("POST", S, {"since": "2026-01-01T00:00:00Z"})],
    "api/subscriptions/<uuid:subscription_id>/recoveries/<uuid:run_id>": [("GET", S, None)],
    "api/deliveries": [("GET", D, None)],
    "api/deliveries/retry": [("POST", R, {"status": "failed"})],
    "api/retries/<uuid:retry_id>": [("GET", R, None)],
    "api/deliveries/<uuid:delivery_id>": [("GET", D, None)],
    "api/deliveries/<uuid:delivery_id>/attempts/<int:number>": [("GET", D, None)],
    "api/deliveries/<uuid:delivery_id>/retry": [("POST", R, None)],
    "api/deliveries/<uuid:delivery_id>/skip": [("POST", R, None)],
    "api/portal-links": [("POST", P, {"name": "x"})],
    "api/hooks": [("GET", S, None), ("POST", S, {"target_url": "https://b.example/", "event": "a.b"})],
    "api/hooks/sample": [("GET", Scope.EVENTS_READ, None)],
    "api/hooks/<uuid:hook_id>": [("DELETE", S, None)],
    "api/inbox": [("GET", C, None)],
    "api/inbox/stream": [("GET", C, None)],
    "api/inbox/ack": [("POST", C, ITEMS)],
    "api/inbox/nack": [("POST", C, ITEMS)],
    "api/inbox/extend": [("POST", C, ITEMS)],
    "api/inbox/<uuid:item_id>/ack": [("POST", C, {})],
    "api/inbox/ack/<uuid:item_id>": [("POST", C, {})],
}  # fmt: skip
# They say nothing about any organization.
OPEN = {
    "", "api/health", "api/health/detailed", "api/schema", "api/docs", "api/problems", "api/problems/<slug:code>",
    "metrics",  # with a token of the operator's own: tests/api/test_metrics.py
}  # fmt: skip
METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD", "TRACE")
OPERATIONS = [(route, method, scope, body) for route, operations in KNOWN.items() for method, scope, body in operations]


def _routes(resolver: URLResolver, prefix: str = "") -> set[str]:
    found = set()
    for entry in resolver.url_patterns:
        path = prefix + str(entry.pattern)
        if isinstance(entry, URLResolver):
            found |= _routes(entry, path)
        else:
            assert isinstance(entry, URLPattern)
            found.add(path)
    return found


def test_the_walk_knows_every_route() -> None:
    found = {route for route in _routes(get_resolver()) if not route.startswith("admin/")}
    assert found == OPEN | set(KNOWN) | set(PORTAL) | PORTAL_OPEN, "a new route needs its line in this walk"


def test_the_walk_knows_every_method_of_every_route(api: Any, ids: dict[str, Any]) -> None:
    for route, operations in KNOWN.items():
        allowed = {"OPTIONS", *(method for method, _, _ in operations)}
        allowed |= {"HEAD"} & {"HEAD" if "GET" in allowed else ""}
        for method in METHODS:
            if method not in allowed:
                response = api.request(method, path_of(route, ids))
                assert response.status_code == 405, f"{method} {route}"


def path_of(route: str, ids: dict[str, Any]) -> str:
    """Return the path of a route with the ids filled in."""
    return "/" + re.sub(r"<(?:uuid|int|slug):(\w+)>", lambda match: str(ids[match[1]]), route)


def _everything() -> str:
    """Return all rows of all our tables, as text, but for when a key was last used."""
    rows = [
        row
        for app in ("orgs", "events", "webhooks", "portal")
        for model in apps.get_app_config(app).get_models()
        for row in model.objects.order_by("pk")
    ]
    for row in rows:
        if isinstance(row, ApiKey):
            row.last_used_at = None
    return serializers.serialize("json", rows)


def test_another_organization_s_rows_do_not_exist(other_api: Any, ids: dict[str, Any]) -> None:
    before = _everything()
    for route, method, _, body in [one for one in OPERATIONS if "<" in one[0]]:
        with case(method, route):
            theirs = assert_problem(other_api.request(method, path_of(route, ids), body), 404)
            assert _everything() == before
            unknown = dict.fromkeys(ids, uuid.uuid4()) | {"number": ids["number"]}
            nowhere = other_api.request(method, path_of(route, unknown), body)
            same = {**assert_problem(nowhere, 404), "request_id": None}
            assert {**theirs, "request_id": None} == same, "an id that exists elsewhere is told apart from none"
    for route, method, _, body in [one for one in OPERATIONS if "<" not in one[0]]:
        with case(method, route):
            response = other_api.request(method, path_of(route, ids), body)
            if method == "GET" and response["Content-Type"] != "text/event-stream" and "data" in response.json():
                assert not [row for row in response.json()["data"] if row["id"] in map(str, ids.values())]
            assert "tenant-data" not in response.content.decode()


def test_a_recovery_is_found_under_its_own_subscription_only(
    other_api: Any, ids: dict[str, Any], other_organization: Organization
) -> None:
    mine, _ = subscriptions.create(other_organization.id, url="https://b.example/", event_types=["*"])
    assert_problem(other_api.get(f"/api/subscriptions/{mine.id}/recoveries/{ids['run_id']}"), 404)


def test_filters_by_another_organization_s_ids_find_nothing(other_api: Any, ids: dict[str, Any]) -> None:
    for query in (f"event={ids['event_id']}", f"subscription={ids['subscription_id']}"):
        response = other_api.get(f"/api/deliveries?{query}")
        assert response.json() == {"data": [], "next_cursor": None}


def test_a_key_without_the_scope_is_refused_and_changes_nothing(
    organization: Organization, ids: dict[str, Any]
) -> None:
    without = {
        scope: create_api_key(organization, scopes=[one.value for one in Scope if one is not scope])[1]
        for scope in (None, *Scope)
    }
    before = _everything()
    for route, method, scope, body in OPERATIONS:
        with case(method, route):
            response = ApiClient(without[scope]).request(method, path_of(route, ids), body)
            if scope is None:
                assert response.status_code == 200
            else:
                assert assert_problem(response, 403)["scope"] == scope.value
            assert _everything() == before


@pytest.mark.parametrize(
    ("route", "method", "scope", "body"), OPERATIONS, ids=[f"{method} {route}" for route, method, *_ in OPERATIONS]
)
def test_the_scope_alone_is_enough(
    organization: Organization, ids: dict[str, Any], route: str, method: str, scope: Scope | None, body: Any
) -> None:
    key = create_api_key(organization, scopes=[scope.value] if scope else [])[1]
    if method == "POST" and route.endswith("/rotate"):
        ids["key_id"] = create_api_key(organization, scopes=[K.value])[0].id
    if "item_id" in route:
        ApiClient(key).get("/api/inbox")  # makes the inbox that the event is in
    if route.endswith("/skip"):
        Delivery.objects.update(ordering_key="a", ordered_at=timezone.now())
    response = ApiClient(key).request(method, path_of(route, ids), body)
    assert response.status_code in {200, 201, 202, 204}, response.content


BAD_KEYS = {
    "none": None,
    "empty": "",
    "nonsense": "nonsense",
    "of nobody": "trk_ABCDEFGHJKLM_" + "a" * 43,
    "U+0000": "trk_a\x00b_c",
    "SQL": "trk_' OR 1=1 --_x",
    "very long": "trk_" + "a" * 7000,
    "not ASCII": "trk_ä_x",
    "underscores": "____",
}


KINDS_OF_BAD_KEYS = [*BAD_KEYS, "half", "another secret", "revoked", "expired", "inactive organization"]
# With no key at all, every operation is tried; with a key of another kind, each fifth, and not the same for each kind.
SHARE = 5


@pytest.mark.parametrize("kind", KINDS_OF_BAD_KEYS)
def test_nobody_gets_in_without_a_good_key(
    organization: Organization, ids: dict[str, Any], settings: Any, kind: str
) -> None:
    settings.AUTH_FAILURES_PER_MINUTE = 10_000
    row, key = create_api_key(organization)
    given: str | None = BAD_KEYS.get(kind)
    if kind == "half":
        given = key[: len(key) // 2]
    elif kind == "another secret":
        given = key[:-1] + ("A" if key[-1] != "A" else "B")
    elif kind in {"revoked", "expired"}:
        given = key
        moment = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
        ApiKey.objects.filter(pk=row.pk).update(**{f"{'revoked' if kind == 'revoked' else 'expires'}_at": moment})
    elif kind == "inactive organization":
        given = key
        Organization.objects.filter(pk=organization.pk).update(is_active=False)
    every = [
        (route, method, body)
        for route, operations in KNOWN.items()
        for method, _, body in [*operations, ("OPTIONS", None, None)]
    ]
    tried = every if kind == "none" else every[KINDS_OF_BAD_KEYS.index(kind) % SHARE :: SHARE]
    assert tried
    before = _everything()
    for route, method, body in tried:
        response = ApiClient(given).request(method, path_of(route, ids), body)
        assert_problem(response, 401)
        assert response["WWW-Authenticate"] == 'Bearer realm="triggers"'
        assert "tenant-data" not in response.content.decode()
    assert _everything() == before


def test_head_needs_what_get_needs(organization: Organization, other_api: Any, ids: dict[str, Any]) -> None:
    for route, operations in KNOWN.items():
        for scope in [scope for method, scope, _ in operations if method == "GET" and scope]:
            others = [one.value for one in Scope if one is not scope]
            client = ApiClient(create_api_key(organization, scopes=others)[1])
            assert client.request("HEAD", path_of(route, ids)).status_code == 403
            if "<" in route:
                assert other_api.request("HEAD", path_of(route, ids)).status_code == 404


@pytest.mark.parametrize("route", sorted(OPEN - {""}))
def test_open_routes_name_no_organization(
    api: Any, ids: dict[str, Any], organization: Organization, route: str
) -> None:
    text = ApiClient(None).get(f"/{route}").content.decode()
    for secret in ("tenant-data", organization.name, *map(str, ids.values())):
        assert secret not in text
