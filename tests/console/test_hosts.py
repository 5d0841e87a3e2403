"""“Stop this host”: previewed, for one organization or all, written down for each, and with a way back."""

from __future__ import annotations

import re

import pytest
from django.test import Client

from orgs.models import AuditEntry, Organization
from tests.console.rows import act, ask, make_delivery, make_event, page_url, said
from tests.webhooks.helpers import subscribe
from webhooks import hosts, subscriptions
from webhooks.models import Delivery, DisabledCause, Subscription

pytestmark = pytest.mark.django_db

HOST = "hooks.example.com"


def states() -> dict[str, bool]:
    """Return whether each subscription is active, by its URL."""
    return dict(Subscription.objects.values_list("url", "is_active"))


@pytest.fixture
def ours(organization: Organization) -> Subscription:
    """Return the first of an organization's subscriptions to the host."""
    first = subscribe(organization, f"https://{HOST}/a")
    subscribe(organization, f"https://{HOST.upper()}:8443/b?x=1")
    subscribe(organization, f"https://{HOST}.evil.example/c")
    gone = subscribe(organization, f"http://{HOST}/gone")
    subscriptions.disable_automatically(gone.pk, DisabledCause.GONE, "The endpoint returned 410 Gone.")
    return first


def test_the_host_is_that_of_the_url_however_it_is_written(organization: Organization) -> None:
    for url, host in (
        ("https://example.com", "example.com"), ("https://EXAMPLE.com:8443/x", "example.com"),
        ("http://example.com?x=http://other/", "example.com"), ("http://[2606:4700::1]:80/x", "[2606:4700::1]"),
        ("http://a.example/b@c.example/", "a.example"), ("http://192.0.2.1#x", "192.0.2.1"),
    ):  # fmt: skip
        row = subscribe(organization, url)
        assert row.host == host
        assert Subscription.objects.get(host=host, pk=row.pk)
        subscriptions.change(row, {"url": "https://moved.example/"})
        assert row.host == "moved.example"


def test_a_host_is_stopped_for_one_organization_and_enabled_again(
    ours: Subscription, operator: Client, other_organization: Organization
) -> None:
    theirs = subscribe(other_organization, f"https://{HOST}/theirs")
    delivery = make_delivery(make_event(ours.organization), ours, "pending")
    page = re.sub(r"\s+", " ", re.sub("<[^>]+>", " ", ask(operator, "stop_host", [delivery]).content.decode()))
    assert f"Stop {HOST}?" in page
    assert "Only Acme: 2 subscriptions" in page
    assert "All organizations: 3 subscriptions" in page
    assert all(states()[url] for url in (ours.url, theirs.url))
    answer = act(operator, "stop_host", [delivery], reason="they asked us to")
    assert "2 subscriptions disabled." in said(answer)
    stopped = {f"https://{HOST}/a", f"https://{HOST.upper()}:8443/b?x=1"}
    assert {url for url, active in states().items() if not active} == {*stopped, f"http://{HOST}/gone"}
    ours.refresh_from_db()
    assert ours.disabled_reason == f"Host {HOST} stopped by the operator: they asked us to"
    assert ours.disabled_cause == DisabledCause.WITH_HOST
    assert Delivery.objects.get().status == "held"
    entry = AuditEntry.objects.get(action="host.stop")
    assert (entry.organization_id, entry.target, entry.reason) == (ours.organization_id, HOST, "they asked us to")
    assert entry.detail == {"host": HOST, "count": 2}
    assert "they asked us to" in operator.get(page_url(ours, "history"), follow=True).content.decode()
    # The way back enables what was stopped, and not what was disabled before.
    answer = act(operator, "enable_host", [ours])
    assert "2 subscriptions enabled." in said(answer)
    assert {url for url, active in states().items() if not active} == {f"http://{HOST}/gone"}
    assert Delivery.objects.get().status == "pending"
    assert AuditEntry.objects.get(action="host.enable").detail["count"] == 2
    assert "0 subscriptions enabled." in said(act(operator, "enable_host", [ours]))


def test_a_host_is_stopped_for_all_organizations_with_an_entry_in_the_log_of_each(
    ours: Subscription, operator: Client, other_organization: Organization
) -> None:
    subscribe(other_organization, f"https://{HOST}/theirs")
    assert "3 subscriptions disabled." in said(act(operator, "stop_host", [ours], scope="all"))
    entries = AuditEntry.objects.filter(action="host.stop")
    assert {entry.organization_id: entry.detail["count"] for entry in entries} == {
        ours.organization_id: 2, other_organization.pk: 1
    }  # fmt: skip
    assert states()[f"https://{HOST}.evil.example/c"]
    act(operator, "enable_host", [ours], scope="all")
    assert sum(states().values()) == 4


def test_one_that_was_enabled_and_disabled_since_is_not_enabled_with_the_host(ours: Subscription) -> None:
    hosts.stop(HOST, None, "x", lambda owner, rows: None)
    subscriptions.enable(ours)
    subscriptions.disable_automatically(ours.pk, DisabledCause.GONE, "The endpoint returned 410 Gone.")
    hosts.enable(HOST, ours.organization_id, lambda owner, rows: None)
    assert not states()[ours.url]


def test_a_viewer_stops_no_host(ours: Subscription, viewer: Client) -> None:
    for do in (ask, act):
        do(viewer, "stop_host", [ours], scope="all")
        do(viewer, "enable_host", [ours], scope="all")
    assert sum(states().values()) == 3
    assert "Stop this host" not in viewer.get(page_url(ours)).content.decode()
