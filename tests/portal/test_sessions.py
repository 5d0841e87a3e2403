"""Links and sessions: what opens, once, until when, and what is kept of them."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from django.core import signing
from django.db import connection, transaction
from django.test import Client
from django.utils import timezone
from structlog.testing import capture_logs

from core import ratelimits
from devstack.waiting import wait_until
from orgs.keys import create_api_key, revoke
from orgs.models import ApiKey, AuditEntry, Organization
from orgs.scopes import Scope
from portal import sessions, web
from portal.models import PortalSession
from portal.sessions import Refusal
from tests.api.helpers import assert_problem
from tests.conftest import ApiClient
from tests.portal.conftest import Visitor, link_for
from tests.security.test_audit_transactions import everything

PAST = timezone.now() - datetime.timedelta(days=1)


def refused(response: Any, reason: Refusal) -> None:
    """Check that a response is the page of a refusal, in the portal's own look."""
    status, title, _ = web.REFUSALS[reason]
    text = response.content.decode().replace("&#x27;", "'")
    assert response.status_code == status, text[:300]
    assert f"<h1>{title}</h1>" in text
    assert "Set-Cookie" not in response.headers


def test_a_link_says_what_it_is_and_only_hashes_are_kept(api: ApiClient, organization: Organization) -> None:
    made = api.post("/api/portal-links", {"name": "ana@shop.example", "read_only": True, "session_seconds": 600})
    assert made.status_code == 201
    assert made["Cache-Control"] == "no-store"
    link = made.json()
    assert (link["name"], link["read_only"], link["session_seconds"]) == ("ana@shop.example", True, 600)
    assert link["scopes"] == ["subscriptions:manage", "deliveries:read", "deliveries:retry", "events:read"]
    path, _, token = link["url"].partition("#")
    assert path == "http://testserver/portal/open"
    row = PortalSession.objects.get()
    assert row.organization == organization
    assert 290 < (row.link_expires_at - timezone.now()).total_seconds() <= 300
    visitor = Visitor()
    assert visitor.open(link["url"]).status_code == 302
    kept = str(PortalSession.objects.values().get())
    assert token not in kept
    assert visitor.token
    assert visitor.token not in kept
    assert visitor.token != token
    opened = PortalSession.objects.get()
    assert opened.expires_at - opened.opened_at == datetime.timedelta(seconds=600)
    audited = str(list(AuditEntry.objects.values()))
    assert token not in audited
    assert visitor.token not in audited
    entry = AuditEntry.objects.get(action="portal.open")
    assert (entry.actor, entry.organization_id) == (f"portal:{row.pk}", organization.pk)
    assert entry.detail == {"portal_user": "ana@shop.example"}
    assert AuditEntry.objects.get(action="portal.link").target == str(row.pk)


def test_the_address_that_links_begin_with_can_be_set(api: ApiClient, settings: Any) -> None:
    settings.PORTAL_URL = "https://hooks.example.com"
    url = api.post("/api/portal-links").json()["url"]
    assert url.startswith("https://hooks.example.com/portal/open#")


@pytest.mark.parametrize(
    "body", [{"link_seconds": 59}, {"link_seconds": 86_401}, {"session_seconds": 604_801}, {"session_seconds": 0},
             {"read_only": "yes"}, {"name": "a\nb"}, {"name": "x" * 101}, {"scope": "*"},
             {"scopes": ["keys:manage"]}, {"scopes": "deliveries:read"}],
)  # fmt: skip
def test_what_a_link_is_asked_for_has_bounds(api: ApiClient, body: dict[str, Any]) -> None:
    assert_problem(api.post("/api/portal-links", body), 400)
    assert not PortalSession.objects.exists()


def test_links_are_limited_for_each_organization(api: ApiClient, other_api: ApiClient, organization: Any) -> None:
    ratelimits.hit("portal-links", str(organization.pk), sessions.PER_MINUTE, sessions.PER_MINUTE)
    response = api.post("/api/portal-links")
    assert assert_problem(response, 429)["code"] == "too_many_portal_links"
    assert int(response["Retry-After"]) > 0
    assert other_api.post("/api/portal-links").status_code == 201


def test_looking_at_a_link_does_not_use_it_up(organization: Organization) -> None:
    url = link_for(organization)
    visitor = Visitor()
    for _ in range(2):
        page = visitor.client.get(url.partition("#")[0])
        assert page.status_code == 200
        assert "data-open" in page.content.decode()
    assert visitor.open(url).status_code == 302
    assert visitor.get().status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {}, {"Sec-Purpose": "prefetch"}, {"Sec-Purpose": "prefetch;prerender"}, {"Purpose": "prefetch"},
        {"User-Agent": "Slackbot-LinkExpanding 1.0"},
    ],
)  # fmt: skip
def test_what_only_looks_at_a_link_does_not_open_it(organization: Organization, headers: dict[str, str]) -> None:
    """Previews of chats, scanners of mail, and browsers that fetch ahead: with whatever they do but a POST."""
    url = link_for(organization)
    path, _, token = url.partition("#")
    before = everything()
    for method in ("get", "head", "options"):
        # Some keep the fragment, some make a query of it.
        for target in (path, f"{path}?link", f"{path}?token={token}", f"{path}%23{token}"):
            response = getattr(Client(), method)(target, headers=headers)
            assert "Set-Cookie" not in response.headers
            assert response.status_code in {200, 404}
    assert everything() == before
    assert Visitor().open(url).status_code == 302


def test_a_link_opens_once(organization: Organization) -> None:
    url = link_for(organization)
    assert Visitor().open(url).status_code == 302
    refused(Visitor().open(url), Refusal.LINK_USED)
    assert AuditEntry.objects.filter(action="portal.open").count() == 1


def test_an_expired_link_says_so(organization: Organization) -> None:
    url = link_for(organization)
    PortalSession.objects.update(link_expires_at=PAST)
    refused(Visitor().open(url), Refusal.LINK_EXPIRED)
    PortalSession.objects.all().delete()  # and so does one whose row is gone
    refused(Visitor().open(url), Refusal.LINK_EXPIRED)


def test_a_forged_link_is_refused_without_a_look_at_the_database(
    organization: Organization, django_assert_num_queries: Any
) -> None:
    url = link_for(organization)
    random, _, signature = url.partition("#")[2].partition(".")
    other = random[:-1] + ("A" if random[-1] != "A" else "B")
    elsewhere = signing.Signer(key="another installation's key", salt="portal.link", sep=".").sign(random)
    for token in ("", "x", random, f"{random}.", f"{other}.{signature}", elsewhere, "a.b" * 9999, "\x00.é"):
        with django_assert_num_queries(0):
            refused(Visitor().open(f"#{token}"), Refusal.FORGED)
    assert Visitor().open(url).status_code == 302


def _forged(url: str, organization: Organization) -> str:
    return url[:-1] + ("A" if url[-1] != "A" else "B")


def _used(url: str, organization: Organization) -> str:
    assert Visitor().open(url).status_code == 302
    return url


def _expired(url: str, organization: Organization) -> str:
    PortalSession.objects.filter(organization=organization).update(link_expires_at=PAST)
    return url


def _ended(url: str, organization: Organization) -> str:
    PortalSession.objects.filter(organization=organization).update(ended_at=timezone.now())
    return url


def _deactivated(url: str, organization: Organization) -> str:
    _deactivate(organization)
    return url


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (_forged, Refusal.FORGED), (_used, Refusal.LINK_USED), (_expired, Refusal.LINK_EXPIRED),
        (_ended, Refusal.ACCESS_ENDED), (_deactivated, Refusal.ACCESS_ENDED),
    ],
)  # fmt: skip
def test_a_link_that_is_refused_says_why_and_changes_nothing(
    organization: Organization, other_organization: Organization, spoil: Callable[..., str], reason: Refusal
) -> None:
    """Neither a row nor the session that the browser has, of whatever organization."""
    visitor = Visitor()
    visitor.open(link_for(other_organization))
    mine = visitor.token
    url = spoil(link_for(organization), organization)
    before = everything()
    response = visitor.open(url)
    refused(response, reason)
    assert web.REFUSALS[reason][2] in response.content.decode().replace("&#x27;", "'")
    assert everything() == before
    assert organization.name not in response.content.decode()
    assert visitor.token == mine
    assert visitor.get().status_code == 200


def _deactivate(organization: Organization) -> None:
    Organization.objects.filter(pk=organization.pk).update(is_active=False)


def _revoke(organization: Organization) -> None:
    for key in ApiKey.objects.filter(organization=organization):
        revoke(key)


def _expire(organization: Organization) -> None:
    ApiKey.objects.filter(organization=organization).update(expires_at=PAST)


def _take_the_scope(organization: Organization) -> None:
    ApiKey.objects.filter(organization=organization).update(scopes=[Scope.EVENTS_WRITE.value])


@pytest.mark.parametrize("end", [_deactivate, _revoke, _expire, _take_the_scope])
def test_link_and_session_end_with_the_organization_and_the_key(
    organization: Organization, other_organization: Organization, end: Callable[[Organization], None]
) -> None:
    url, visitor, other = link_for(organization), Visitor(), Visitor()
    visitor.open(link_for(organization))
    other.open(link_for(other_organization))
    assert visitor.get().status_code == 200
    end(organization)
    refused(visitor.get(), Refusal.ACCESS_ENDED)
    refused(visitor.post("endpoints/new", url="https://a.example/", which="all"), Refusal.ACCESS_ENDED)
    refused(Visitor().open(url), Refusal.ACCESS_ENDED)
    assert other.get().status_code == 200


def test_a_session_ends_at_its_time(visitor: Visitor) -> None:
    PortalSession.objects.update(expires_at=PAST)
    refused(visitor.get(), Refusal.SESSION_EXPIRED)


def test_signing_out_ends_the_session_for_good(visitor: Visitor) -> None:
    token = visitor.token
    response = visitor.post("close")
    assert response.status_code == 200
    assert "Max-Age=0" in response["Set-Cookie"]
    visitor.client.cookies[web.COOKIE] = token
    refused(visitor.get(), Refusal.ENDED)
    assert AuditEntry.objects.filter(action="portal.close").count() == 1


def test_nobody_gets_in_without_a_session(db: None) -> None:
    visitor = Visitor()
    for token in ("", "x", "x" * 5000, '"><script>'):
        visitor.client.cookies[web.COOKIE] = token
        response = visitor.get()
        assert response.status_code == 403
        assert "sessionid" not in response.cookies


def test_what_has_been_over_for_long_is_deleted_with_the_next_link(organization: Organization) -> None:
    visitor = Visitor()
    visitor.open(link_for(organization))
    link_for(organization)
    long_ago = timezone.now() - sessions.KEPT_AFTER_END - datetime.timedelta(hours=1)
    PortalSession.objects.update(link_expires_at=long_ago)
    link_for(organization)
    assert PortalSession.objects.count() == 2  # the session is going on; the link that nobody opened is gone
    assert visitor.get().status_code == 200
    PortalSession.objects.exclude(expires_at=None).update(expires_at=long_ago)
    link_for(organization)
    assert PortalSession.objects.count() == 2


def test_a_key_needs_the_scope_and_gives_nothing_else(organization: Organization) -> None:
    key = create_api_key(organization, scopes=[Scope.PORTAL_LINKS.value])[1]
    assert ApiClient(key).post("/api/portal-links").status_code == 201
    assert_problem(ApiClient(key).get("/api/subscriptions"), 403)


def test_links_and_sessions_are_in_no_log(organization: Organization) -> None:
    with capture_logs() as logged:
        url, visitor = link_for(organization), Visitor()
        visitor.open(url)
        visitor.open(url)
        visitor.get("deliveries", status="failed")
        visitor.post("endpoints/new", url="https://a.example/", which="all")
    assert [line for line in logged if line.get("path") == "/portal/open"]
    secret_parts = [*url.partition("#")[2].split("."), visitor.token, web.form_token(visitor.token)]
    assert all(len(part) > 40 for part in secret_parts)
    assert not [part for part in secret_parts if part in str(logged)]
    assert visitor.token not in visitor.get().content.decode()


@pytest.mark.django_db(transaction=True)
def test_a_link_that_is_opened_twice_at_the_same_time_opens_once(organization: Organization) -> None:
    url = link_for(organization)
    visitors = [Visitor() for _ in range(6)]

    def open_it(visitor: Visitor) -> Any:
        try:
            return visitor.open(url)
        finally:
            connection.close()

    def everybody_waits() -> bool:
        with connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM pg_locks WHERE NOT granted")
            return cursor.fetchone() == (len(visitors),)

    with ThreadPoolExecutor(len(visitors)) as threads:
        with transaction.atomic():
            PortalSession.objects.select_for_update().get()
            opening = [threads.submit(open_it, visitor) for visitor in visitors]
            wait_until(everybody_waits, "somebody opens the link without waiting for the others")
        answers = [one.result() for one in opening]
    assert sorted(answer.status_code for answer in answers) == [302, *[410] * (len(visitors) - 1)]
    for answer in answers:
        if answer.status_code == 410:
            refused(answer, Refusal.LINK_USED)
    # The one session is the one whose cookie was sent.
    assert [visitor.get().status_code for visitor in visitors if visitor.token] == [200]
    assert AuditEntry.objects.filter(action="portal.open").count() == 1
