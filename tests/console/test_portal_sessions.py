"""The admin's pages of portal sessions: who has one, for which organization, until when; and ending it."""

from __future__ import annotations

import datetime

from django.test import Client
from django.utils import timezone

from orgs.models import AuditEntry, Organization
from portal.models import PortalSession
from portal.sessions import Refusal
from tests.console.rows import act, ask, list_url, page_url, said
from tests.portal.conftest import Visitor, link_for
from tests.portal.test_sessions import refused


def test_the_list_says_who_has_a_session_for_whom_and_until_when(
    organization: Organization, other_organization: Organization, viewer: Client
) -> None:
    Visitor().open(link_for(organization, name="ana@shop.example", read_only=True))
    link_for(organization, name="bob@shop.example")
    link_for(other_organization, name="eve@other.example")
    PortalSession.objects.filter(name="eve@other.example").update(link_expires_at=timezone.now())
    page = viewer.get(list_url(PortalSession)).content.decode()
    session = PortalSession.objects.get(name="ana@shop.example")
    assert session.expires_at is not None
    for text in (
        "ana@shop.example", "bob@shop.example", "eve@other.example", organization.name, other_organization.name,
        f"{session.expires_at:%Y-%m-%d %H:%M:%S}", ">open<", ">not opened yet<", ">expired<", ">read-only<",
    ):  # fmt: skip
        assert text in page, text
    only = viewer.get(list_url(PortalSession), {"state": "open", "organization": organization.pk}).content.decode()
    assert "ana@shop.example" in only
    assert "bob@shop.example" not in only
    found = viewer.get(list_url(PortalSession), {"q": session.actor}).content.decode()
    assert "ana@shop.example" in found
    assert "bob@shop.example" not in found
    row = PortalSession.objects.values().get(pk=session.pk)
    shown = viewer.get(page_url(session)).content.decode()
    assert not {bytes(row["token_hash"]).hex(), bytes(row["link_hash"]).hex()} & set(shown.split('"'))
    assert 'value="end_session"' not in shown
    assert f"{session.expires_at:%Y-%m-%d %H:%M:%S} UTC" in shown, "a time without its zone"


def test_an_operator_ends_a_session_and_a_link_for_a_reason(organization: Organization, operator: Client) -> None:
    visitor, url = Visitor(), link_for(organization, name="bob")
    visitor.open(link_for(organization, name="ana"))
    over = Visitor()
    over.open(link_for(organization, name="eve"))
    PortalSession.objects.filter(name="eve").update(expires_at=timezone.now() - datetime.timedelta(hours=1))
    rows = list(PortalSession.objects.order_by("created_at"))
    asked = ask(operator, "end_session", rows).content.decode()
    assert "End 2 portal sessions?" in asked
    assert 'class="button danger"' in asked
    assert visitor.get().status_code == 200, "nothing ends before it is confirmed"
    answer = act(operator, "end_session", rows, reason="Ana has left.")
    assert "2 portal sessions ended. 1 skipped: 1 already over." in said(answer)
    refused(visitor.get(), Refusal.ENDED)
    refused(visitor.post("endpoints/new", url="https://a.example/", which="all"), Refusal.ENDED)
    refused(Visitor().open(url), Refusal.ACCESS_ENDED)
    (entry,) = AuditEntry.objects.filter(action="portal.end")
    assert (entry.actor, entry.organization_id, entry.reason) == ("user:operator-1", organization.pk, "Ana has left.")
    assert sorted(entry.targets) == sorted(str(row.pk) for row in rows if row.name != "eve")
    assert "already over" in said(act(operator, "end_session", rows, reason="Once more."))
    assert AuditEntry.objects.filter(action="portal.end").count() == 1


def test_a_viewer_ends_nothing(organization: Organization, viewer: Client) -> None:
    visitor = Visitor()
    visitor.open(link_for(organization))
    act(viewer, "end_session", list(PortalSession.objects.all()), reason="Because.")
    assert visitor.get().status_code == 200
    assert not AuditEntry.objects.filter(action="portal.end").exists()
