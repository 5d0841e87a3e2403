"""Attacks on the portal: other tenants, other sites, planted sessions, frames, markup."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any

import pytest
from django.test import Client

from events import event_types
from orgs.models import AuditEntry, Organization
from orgs.scopes import Scope
from portal import web
from portal.models import PORTAL_SCOPES, PortalSession
from portal.pages import deliveries
from tests.browser.hostile import PAYLOADS, make_hostile_rows
from tests.console.rows import make_attempt, make_delivery, make_event
from tests.portal.conftest import Visitor, link_for, path_in
from tests.portal.routes import CHANGES, NEEDS, ONLY_FOR_CHANGES, PAGES, PORTAL
from tests.security.test_audit_transactions import everything
from webhooks import subscriptions
from webhooks.models import Delivery, DeliveryAttempt, Subscription


def send(visitor: Visitor, method: str, path: str, fields: dict[str, Any] | None) -> Any:
    """Open a page, or send its form."""
    return visitor.get(path) if method == "GET" else visitor.post(path, **(fields or {}))


def test_another_organization_s_rows_do_not_exist(
    open_portal: Callable[..., Visitor], other_organization: Organization, rows: dict[str, Any]
) -> None:
    visitor = open_portal(other_organization)
    nothing = dict.fromkeys(rows, uuid.uuid4())
    for route, method, fields in PAGES:
        if "<" not in route:
            continue
        before = everything()
        response = send(visitor, method, path_in(route, rows), fields)
        assert response.status_code == 404, route
        assert everything() == before, route
        nowhere = send(visitor, method, path_in(route, nothing), fields)
        assert nowhere.content == response.content, "an id that exists elsewhere is told apart from none"
    for route, method, fields in PAGES:
        if "<" not in route and route != "portal/close":
            response = send(visitor, method, path_in(route, rows), fields)
            assert response.status_code == 200, route
            for mine in ("tenant-data", *map(str, rows.values())):
                assert mine not in response.content.decode(), route


def test_filters_by_another_organization_s_ids_find_nothing(
    open_portal: Callable[..., Visitor], other_organization: Organization, rows: dict[str, Any]
) -> None:
    visitor = open_portal(other_organization)
    for query in ({"endpoint": str(rows["endpoint_id"])}, {"type": "a.b"}):
        text = visitor.get("deliveries", **query).content.decode()
        assert "No matching deliveries" in text
        assert str(rows["delivery_id"]) not in text


def test_another_organization_s_rows_are_in_no_list_and_take_no_place_in_one(
    visitor: Visitor, organization: Organization, other_organization: Organization, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A page, and what a filter looks at, would be full with one of theirs, which are newer.
    monkeypatch.setattr(deliveries, "MAX_SHOWN", 1)
    monkeypatch.setattr(deliveries, "MAX_EVENTS_OF_TYPE", 1)
    made = []
    for owner, name in ((organization, "mine"), (other_organization, "theirs")):
        endpoint, _ = subscriptions.create(owner.pk, url=f"https://{name}.example/", event_types=["*"])
        made.append(make_delivery(make_event(owner, type="order.paid"), endpoint, "failed", attempt_count=1))
        make_attempt(made[-1])
        event_types.create(owner.pk, name=f"{name}.happened")
        AuditEntry.objects.create(
            organization=owner, actor="system", action="subscription.disable", target_name=endpoint.url
        )
    for path, shown in (
        ("", "mine.example"), ("deliveries", str(made[0].pk)), ("deliveries?type=order.paid", str(made[0].pk)),
        ("logs", "mine.example"), ("logs?show=changes", "mine.example"), ("event-types", "mine.happened"),
        ("endpoints/new", "mine.happened"),
    ):  # fmt: skip
        text = visitor.client.get(f"/portal/{path}").content.decode()
        assert shown in text, path
        assert "theirs" not in text, path


def test_a_recovery_is_found_under_its_own_endpoint_only(
    visitor: Visitor, organization: Organization, rows: dict[str, Any]
) -> None:
    other, _ = subscriptions.create(organization.id, url="https://b.example/", event_types=["*"])
    assert visitor.get(f"endpoints/{other.pk}/recoveries/{rows['run_id']}").status_code == 404
    assert visitor.get(f"endpoints/{rows['endpoint_id']}/recoveries/{rows['run_id']}").status_code == 200


def test_nobody_without_a_session_sees_or_changes_anything(rows: dict[str, Any]) -> None:
    before = everything()
    for route, method, fields in PAGES:
        response = send(Visitor(), method, path_in(route, rows), fields)
        assert response.status_code == 403, route
        assert "tenant-data" not in response.content.decode()
    assert everything() == before


def test_a_session_that_can_only_look_changes_nothing(looker: Visitor, rows: dict[str, Any]) -> None:
    before = everything()
    for route, fields in CHANGES:
        response = looker.post(path_in(route, rows), **(fields or {}))
        assert response.status_code == 403, route
        assert "You have read-only access" in response.content.decode()
    assert everything() == before


@pytest.mark.parametrize("allowed", [None, *PORTAL_SCOPES])
def test_a_session_does_nothing_that_its_link_does_not_allow(
    open_portal: Callable[..., Visitor], rows: dict[str, Any], allowed: Scope | None
) -> None:
    visitor = open_portal(scopes=[allowed.value] if allowed else [])
    before = everything()
    for route, method, fields in PAGES:
        if route == "portal/close":
            continue
        changes = method == "POST" or route in ONLY_FOR_CHANGES
        needs = {NEEDS.get(route)} - {None}
        if changes:
            needs = (
                {Scope.DELIVERIES_READ, Scope.DELIVERIES_RETRY}
                if "deliveries/" in route
                else {Scope.SUBSCRIPTIONS_MANAGE}
            )
        if needs <= {allowed}:
            if method == "GET":
                text = visitor.get(path_in(route, rows)).content.decode()
                for name, path in (("Event types", "event-types"), ("Deliveries", "deliveries")):
                    assert (f'href="/portal/{path}' in text) is (NEEDS[f"portal/{path}"] == allowed), (route, name)
                if allowed != Scope.SUBSCRIPTIONS_MANAGE:
                    assert text.count('method="post"') == 1, route  # signing out
                    assert 'class="button primary"' not in text, route
            continue
        response = send(visitor, method, path_in(route, rows), fields)
        assert response.status_code == 403, route
        assert "Your link doesn&#x27;t allow this" in response.content.decode()
        assert "tenant-data" not in response.content.decode()
    assert everything() == before
    if allowed != Scope.DELIVERIES_READ:
        for path in ("logs", f"endpoints/{rows['endpoint_id']}"):
            assert str(rows["delivery_id"]) not in visitor.get(path).content.decode()


def test_a_session_that_can_only_look_is_shown_no_buttons(looker: Visitor, rows: dict[str, Any]) -> None:
    for route, methods in PORTAL.items():
        if methods[0][0] != "GET":
            continue
        response = looker.get(path_in(route, rows))
        if route in ONLY_FOR_CHANGES:
            assert response.status_code == 403
            continue
        assert response.status_code == 200
        text = response.content.decode()
        assert text.count('method="post"') == 1, route  # signing out
        assert "read-only" in text
        for other in ONLY_FOR_CHANGES:
            assert f'href="/{path_in(other, rows)}' not in text
            assert f'href="/portal/{path_in(other, rows)}"' not in text


# --- other sites ------------------------------------------------------------------------------------


def test_a_form_of_another_site_changes_nothing(
    visitor: Visitor, open_portal: Callable[..., Visitor], rows: dict[str, Any]
) -> None:
    good, stranger = web.form_token(visitor.token), web.form_token(open_portal().token)
    before = everything()
    for route, fields in CHANGES:
        path = f"/portal/{path_in(route, rows)}"
        for token in (None, "x", stranger, "é"):
            given = {} if token is None else {"form_token": token}
            assert visitor.client.post(path, {**given, **(fields or {})}).status_code == 403, route
        for site in ("cross-site", "same-site"):
            given = {"form_token": good, **(fields or {})}
            response = visitor.client.post(path, given, headers={"Sec-Fetch-Site": site})
            assert response.status_code == 403, route
    assert "wasn&#x27;t sent from the portal" in response.content.decode()
    assert everything() == before


def test_another_site_cannot_open_a_link_in_somebody_s_browser(organization: Organization) -> None:
    url = link_for(organization)
    response = Client().post("/portal/open", {"token": url.partition("#")[2]}, headers={"Sec-Fetch-Site": "cross-site"})
    assert response.status_code == 403
    assert PortalSession.objects.get().opened_at is None


def test_a_planted_session_is_worth_nothing(organization: Organization, other_organization: Organization) -> None:
    """Session fixation: whatever cookie a browser has before, opening a link makes a token of its own."""
    attacker, victim = Visitor(), Visitor()
    attacker.open(link_for(other_organization))
    victim.client.cookies[web.COOKIE] = planted = attacker.token
    victim.open(link_for(organization))
    assert victim.token != planted
    assert "Acme" in victim.get().content.decode()
    assert "Acme" not in attacker.get().content.decode()
    made_up = Visitor()
    made_up.client.cookies[web.COOKIE] = "a" * 43
    made_up.open(link_for(organization))
    assert made_up.token != "a" * 43


@pytest.mark.parametrize(("framed", "https"), [(False, False), (False, True), (True, False)])
def test_the_cookie_is_for_the_portal_alone(
    organization: Organization, settings: Any, framed: bool, https: bool
) -> None:
    settings.PORTAL_FRAME_ORIGINS = ["https://app.example.com"] if framed else []
    settings.USE_HTTPS = https
    cookie = Visitor().open(link_for(organization))["Set-Cookie"]
    _, *attributes = cookie.split("; ")
    assert {"HttpOnly", "Path=/portal/", "Max-Age=28800"} <= set(attributes)
    assert ("Secure" in attributes) is (framed or https)
    assert ("SameSite=None" in attributes) is framed
    assert ("Partitioned" in attributes) is framed
    assert ("SameSite=Lax" in attributes) is not framed


def test_only_the_allowed_sites_may_frame_any_page(
    visitor: Visitor, rows: dict[str, Any], settings: Any, organization: Organization
) -> None:
    pages = [path_in(route, rows) for route, methods in PORTAL.items() if methods[0][0] == "GET"]
    pages += ["open", f"deliveries/{uuid.uuid4()}"]
    for path in pages:
        response = visitor.get(path)
        assert "frame-ancestors 'none'" in response["Content-Security-Policy"]
        assert response["X-Frame-Options"] == "DENY"
        assert response["Cache-Control"] == "no-store"
    settings.PORTAL_FRAME_ORIGINS = ["https://app.example.com", "https://*.example.org"]
    for path in pages:
        response = visitor.get(path)
        policy = response["Content-Security-Policy"]
        assert "frame-ancestors 'self' https://app.example.com https://*.example.org;" in policy
        assert "script-src 'self';" in policy
        assert "X-Frame-Options" not in response
    admin = Client().get("/admin/login/")
    assert "frame-ancestors 'none'" in admin["Content-Security-Policy"]


# --- markup -----------------------------------------------------------------------------------------


class _Elements(HTMLParser):
    """Finds what the hostile texts would be if a page took them for its own."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.scripts = 0

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        words = (given.get("class") or "").split()
        if ("hostile" in words and tag != "pre") or any(name.startswith("on") for name in given):
            self.found.append(self.get_starttag_text() or tag)
        if tag in {"iframe", "object", "embed", "base", "svg"} and "hostile" in (self.get_starttag_text() or ""):
            self.found.append(tag)
        if (given.get("href") or "").lower().lstrip().startswith(("javascript:", "vbscript:")):
            self.found.append(str(given["href"]))
        self.scripts += tag == "script" and "src" not in given


@pytest.mark.parametrize("turn", range(0, len(PAYLOADS), 7))
def test_what_others_sent_is_text_on_every_page(open_portal: Callable[..., Visitor], turn: int) -> None:
    made = make_hostile_rows("https://canary.example/c", turn)
    organization = next(row for row in made if isinstance(row, Organization))
    endpoint = next(row for row in made if isinstance(row, Subscription))
    delivery = next(row for row in made if isinstance(row, Delivery))
    assert any(isinstance(row, DeliveryAttempt) for row in made)
    AuditEntry.objects.create(
        organization=organization, actor="portal:x", action="subscription.change", target_name="<b class=hostile>",
        detail={"portal_user": "<b class=hostile>"},
    )  # fmt: skip
    visitor = open_portal(organization, name="<b class=hostile>")
    one = f"endpoints/{endpoint.pk}"
    for path in ("", one, f"{one}/edit", f"{one}/disable", f"{one}/secret", f"{one}/recover", "event-types", "logs",
                 "deliveries", f"deliveries/{delivery.pk}", "deliveries?type=<b class=hostile>",
                 "deliveries?until=\"><b class=hostile>"):  # fmt: skip
        response = visitor.client.get(f"/portal/{path}")
        assert response.status_code in {200, 422}, path
        parser = _Elements()
        parser.feed(response.content.decode())
        assert not parser.found, path
        assert not parser.scripts, path


def test_a_form_that_is_refused_shows_what_was_sent_as_text(visitor: Visitor) -> None:
    for payload in PAYLOADS:
        response = visitor.post(
            "endpoints/new", url=payload, description=payload, which="some", other_types=payload, headers_text=payload
        )
        assert response.status_code == 422
        parser = _Elements()
        parser.feed(response.content.decode())
        assert not parser.found, payload


def test_other_methods_do_nothing(visitor: Visitor, rows: dict[str, Any]) -> None:
    before = everything()
    for route in PORTAL:
        for method in ("PUT", "DELETE", "TRACE"):
            assert visitor.client.generic(method, f"/portal/{path_in(route, rows)}").status_code in {403, 405}
    assert everything() == before
