"""What tenants do on the portal's pages, and the words that they find there."""

from __future__ import annotations

import datetime
import html
import re
from typing import Any
from urllib.parse import urlencode

import pytest
from django.conf import settings as project
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from devstack.http_receiver import Receiver, Response
from events import event_types
from events.erasure import erase
from events.models import Event
from orgs.models import AuditEntry, Organization
from portal import branding, texts
from portal.pages import logs
from tests.console.rows import make_attempt, make_delivery, make_event
from tests.portal.conftest import Visitor, path_in
from tests.portal.routes import PORTAL
from tests.security.test_audit_transactions import everything
from tests.webhooks.helpers import accept
from webhooks import subscriptions
from webhooks.destinations.http.auth import Bearer
from webhooks.destinations.inbox import fetching
from webhooks.models import BulkRun, Delivery, Rollup, Subscription, SubscriptionQueue
from webhooks.rollups import BUCKETS
from webhooks.upkeep import preview


def text_of(response: Any) -> str:
    """Return a page's text, on one line."""
    text = re.sub(r"<(script|style).*?</\1>|<[^>]+>", " ", response.content.decode(), flags=re.S)
    for name, character in (("&#x27;", "'"), ("&quot;", '"'), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">")):
        text = text.replace(name, character)
    return re.sub(r"\s+", " ", text)


def error_at(response: Any, field: str) -> str:
    """Return the error that stands at a field, which names it to screen readers."""
    page = response.content.decode()
    found = re.search(rf'id="id_{field}_error">(.*?)</p>', page)
    assert found, page
    assert re.search(rf'aria-invalid="true"[^>]*aria-describedby="[^"]*id_{field}_error"', page)
    return found[1]


def test_endpoints_are_found_by_their_uid_and_show_what_is_kept_with_them(
    visitor: Visitor, organization: Organization, other_organization: Organization
) -> None:
    for owner in (organization, other_organization):
        for number in range(6):
            subscriptions.create(
                owner.pk, url=f"https://shop.example/{number}", event_types=["*"], uid=f"crm-{number}",
                metadata={"plan": "<b>gold</b>"},
            )  # fmt: skip
    page = visitor.get("")
    assert 'name="q"' in page.content.decode()
    assert "uid crm-5" in text_of(page)
    one = visitor.get("?q=CRM-3")
    assert "shop.example/3" in text_of(one)
    assert "shop.example/5" not in text_of(one)
    assert "No matching endpoints" in text_of(visitor.get("?q=%00crm-99"))
    row = Subscription.objects.get(organization=organization, uid="crm-3")
    shown = visitor.get(f"endpoints/{row.pk}")
    assert "&lt;b&gt;gold&lt;/b&gt;" in shown.content.decode()
    assert "Metadata: plan" in text_of(shown)


def test_an_endpoint_is_asked_first_if_one_wants_that(visitor: Visitor, receiver: Receiver) -> None:
    form = {"url": receiver.url("/hook"), "which": "all", "format": "standard", "handshake": "on"}
    refused = visitor.post("endpoints/new", **form)
    assert refused.status_code == 422
    assert "X-Hook-Secret" in error_at(refused, "url")
    assert not Subscription.objects.exists()
    receiver.behavior = lambda request, number: Response(headers={"X-Hook-Secret": request.headers["x-hook-secret"]})
    assert visitor.post("endpoints/new", **form).status_code == 200
    row = Subscription.objects.get()
    assert AuditEntry.objects.get(action="subscription.create").detail == {"handshake": True}
    receiver.behavior = lambda request, number: Response()
    changed = visitor.post(f"endpoints/{row.pk}/edit", **{**form, "url": receiver.url("/new")})
    assert changed.status_code == 422
    row.refresh_from_db()
    assert row.url == receiver.url("/hook")


def test_an_endpoint_is_added_and_its_secret_shown_once(visitor: Visitor, organization: Organization) -> None:
    event_types.create(organization.pk, name="order.created")
    form = {
        "url": "https://shop.example/hook", "description": "Shop", "which": "some", "types": ["order.created"],
        "other_types": "invoice.*\r\n", "headers_text": "Authorization: Bearer 1", "deliveries_per_second": "2.5",
        "format": "cloudevents",
    }  # fmt: skip
    page = visitor.post("endpoints/new", **form)
    assert page.status_code == 200
    secret = re.search(r"whsec_[A-Za-z0-9+/=]+", page.content.decode())
    assert secret
    row = Subscription.objects.get()
    assert (row.url, row.description, row.format, row.deliveries_per_second) == (
        form["url"],
        "Shop",
        "cloudevents",
        2.5,
    )
    assert row.event_types == ["order.created", "invoice.*"]
    assert row.header_names == ["Authorization"]
    for path in ("", f"endpoints/{row.pk}", f"endpoints/{row.pk}/edit", "logs"):
        shown = visitor.get(path).content.decode()
        assert "whsec_" not in shown
        assert "Bearer 1" not in shown
    assert AuditEntry.objects.get(action="subscription.create").target == str(row.pk)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://10.0.0.1/hook", "Address not allowed: webhooks only go to public addresses."),
        ("http://192.168.0.1/", "Address not allowed"),
        ("ftp://a.example/", "http"),
        ("https://a.example:22/", "22"),
        ("a.example", "http"),
        ("https://ana:secret@a.example/", "add the header Authorization under “Advanced”"),
    ],
)
def test_a_url_that_the_egress_policy_refuses_says_so_at_its_field(visitor: Visitor, url: str, reason: str) -> None:
    row, _ = subscriptions.create(Organization.objects.get().pk, url="https://a.example/", event_types=["*"])
    before = everything()
    for path in ("endpoints/new", f"endpoints/{row.pk}/edit"):
        page = visitor.post(path, url=url, which="all", description="new")
        assert page.status_code == 422
        assert "Nothing has been saved." in text_of(page)
        assert reason in error_at(page, "url")
    assert everything() == before


def test_every_fault_of_a_form_is_said_in_one_round(visitor: Visitor) -> None:
    page = visitor.post(
        "endpoints/new", url="http://10.0.0.1/", which="some", headers_text="no colon", max_in_flight="0",
        format="transform", transform="[",
    )  # fmt: skip
    assert page.status_code == 422
    for field in ("url", "other_types", "headers_text", "max_in_flight", "transform"):
        assert error_at(page, field)
    assert "<details open>" in page.content.decode()
    page = visitor.post("endpoints/new", url="https://a.example/", which="all", format="raw", transform="type")
    assert "An expression needs the format “Custom expression”." in error_at(page, "transform")


def test_editing_changes_what_was_changed(visitor: Visitor, organization: Organization) -> None:
    row, _ = subscriptions.create(
        organization.pk, url="https://a.example/", event_types=["a.*", "b"], headers={"X-Token": "1"}
    )
    SubscriptionQueue.objects.filter(pk=row.pk).update(failing_since=timezone.now(), last_error="timeout")
    form = {"url": row.url, "which": "some", "other_types": "b\na.*", "format": "standard", "description": "new"}
    assert visitor.post(f"endpoints/{row.pk}/edit", **form).status_code == 302
    row.refresh_from_db()
    assert row.description == "new"
    assert row.header_names == ["X-Token"]
    assert AuditEntry.objects.get(action="subscription.change").detail["fields"] == ["description"]
    assert SubscriptionQueue.objects.get(pk=row.pk).failing_since is not None
    form |= {"url": "https://b.example/", "remove_headers": "on"}
    assert visitor.post(f"endpoints/{row.pk}/edit", **form).status_code == 302
    row.refresh_from_db()
    assert (row.url, row.header_names) == ("https://b.example/", [])
    assert SubscriptionQueue.objects.get(pk=row.pk).failing_since is None


def test_as_many_endpoints_as_are_allowed(visitor: Visitor, settings: Any) -> None:
    settings.MAX_SUBSCRIPTIONS = 1
    assert visitor.post("endpoints/new", url="https://a.example/", which="all").status_code == 200
    page = visitor.post("endpoints/new", url="https://b.example/", which="all")
    assert page.status_code == 409
    assert "There are too many endpoints" in text_of(page)


def test_a_test_event_shows_the_response_and_what_to_do(
    visitor: Visitor, organization: Organization, settings: Any
) -> None:
    from ipaddress import ip_network

    settings.WEBHOOK_ALLOWED_SUBNETS = (ip_network("127.0.0.0/8"),)
    answer = Response(500, {}, b'{"error":"<b>no table</b>"}')
    with Receiver(lambda request, number: answer) as receiver:
        row, _ = subscriptions.create(organization.pk, url=receiver.url("/hook"), event_types=["*"])
        text = text_of(visitor.post(f"endpoints/{row.pk}/test"))
        assert "The test event failed" in text
        assert "HTTP 500" in text
        assert "no table" in text
        assert "Your code failed." in text
        answer = Response(204, {}, b"")
        assert "The test event arrived" in text_of(visitor.post(f"endpoints/{row.pk}/test"))


def test_the_title_of_a_result_is_the_result(visitor: Visitor, organization: Organization, receiver: Receiver) -> None:
    """Screen readers speak it first."""
    receiver.behavior = lambda request, number: Response(500)
    row, _ = subscriptions.create(organization.pk, url=receiver.url("/hook"), event_types=["*"])
    assert "<title>The test event failed |" in visitor.post(f"endpoints/{row.pk}/test").content.decode()
    receiver.behavior = lambda request, number: Response()
    assert "<title>The test event arrived |" in visitor.post(f"endpoints/{row.pk}/test").content.decode()
    assert "<title>Secret rotated |" in visitor.post(f"endpoints/{row.pk}/secret", overlap="0").content.decode()
    assert "<title>Error: Edit endpoint |" in visitor.post(f"endpoints/{row.pk}/edit", url="x").content.decode()
    assert "<title>Failed attempts |" in visitor.get("logs", failed="").content.decode()


def test_the_address_of_an_action_opens_a_page_that_says_nothing_was_done(
    visitor: Visitor, rows: dict[str, Any], organization: Organization
) -> None:
    """A browser that restores its tabs asks for it with GET."""
    before = everything()
    for route, methods in PORTAL.items():
        if methods[0][0] == "POST":
            page = visitor.get(path_in(route, rows))
            assert page.status_code == 405, route
            assert page["Allow"] == "POST, OPTIONS"
            assert "Nothing was done" in text_of(page)
            assert 'href="/portal/"' in page.content.decode()
    assert everything() == before


def test_what_is_said_of_the_old_secret_is_true(visitor: Visitor, organization: Organization) -> None:
    row, _ = subscriptions.create(organization.pk, url="https://a.example/", event_types=["*"])
    text = text_of(visitor.post(f"endpoints/{row.pk}/secret", overlap="3600"))
    assert "The old secret stops working in 1 hour. Until then, each webhook carries both signatures" in text
    text = text_of(visitor.post(f"endpoints/{row.pk}/secret", overlap="0"))
    assert "The old secret no longer works." in text
    assert "both signatures" not in text
    assert "https://a.example/" in text


def test_links_say_where_they_lead_without_what_stands_around_them(
    visitor: Visitor, organization: Organization
) -> None:
    row, _ = subscriptions.create(organization.pk, url="https://a.example/", event_types=["*"])
    make_attempt(make_delivery(make_event(organization), row, "failed", attempt_count=1))
    page = visitor.get(f"endpoints/{row.pk}").content.decode()
    for name in ("Retrying: 0", "Held: 0", "Show deliveries that failed for good", "Show all deliveries"):
        assert f'aria-label="{name}"' in page
    for path in (f"endpoints/{row.pk}", "deliveries", "logs", "logs?show=changes"):
        tables = re.findall("<table[^>]*>", visitor.client.get(f"/portal/{path}").content.decode())
        assert tables, path
        assert all("aria-label" in table for table in tables), path


def test_an_endpoint_that_is_paused_says_why_and_what_to_do(visitor: Visitor, organization: Organization) -> None:
    row, _ = subscriptions.create(organization.pk, url="https://a.example/", event_types=["*"])
    now = timezone.now()
    SubscriptionQueue.objects.filter(pk=row.pk).update(
        failing_since=now, breaker_trips=3, paused_until=now + datetime.timedelta(hours=2), consecutive_failures=30,
        last_error="http_status", last_status_code=401, last_failure_at=now,
    )  # fmt: skip
    text = text_of(visitor.get(f"endpoints/{row.pk}"))
    assert texts.STATES["paused"] in text
    assert "HTTP 401. The next attempt is in 2 h." in text
    assert "What to do: Your endpoint rejected us." in text
    assert "paused" in text_of(visitor.get())


def test_what_is_cut_in_a_list_is_whole_on_its_page_and_no_figures_are_made_up(
    visitor: Visitor, organization: Organization
) -> None:
    long_type, about = "com.example." + "x" * 221, "Parcels. " * 50
    row, _ = subscriptions.create(
        organization.pk, url="https://a.example/", event_types=[long_type], description=about.strip()
    )
    delivery = make_delivery(make_event(organization, type=long_type), row, "failed")
    page, listed = text_of(visitor.get(f"endpoints/{row.pk}")), text_of(visitor.get())
    assert long_type in page
    assert about.strip() in page
    assert about.strip() not in listed
    assert long_type in text_of(visitor.get(f"deliveries/{delivery.pk}"))
    assert long_type not in text_of(visitor.get("deliveries"))
    assert "No figures for the last 24 hours. They appear about a minute after an attempt." in page
    add_rollup(row, outcome="delivered", attempts=1)
    assert "1 delivered 1 attempt 100% success rate 0 failed attempts" in text_of(visitor.get(f"endpoints/{row.pk}"))
    add_rollup(row, outcome="timeout", attempts=2900)
    text = text_of(visitor.get(f"endpoints/{row.pk}"))
    assert "no figures in this time" in visitor.get(f"endpoints/{row.pk}").content.decode()
    assert "no response in time 2,900 100%" in text
    table = text_of(visitor.get(f"endpoints/{row.pk}", table="1"))
    assert "period (UTC) attempts delivered failed attempts no attempts left success rate response time p50" in table


def add_rollup(row: Subscription, *, outcome: str, attempts: int) -> None:
    """Add what workers write about a minute of an endpoint's attempts."""
    at = timezone.now().replace(second=0, microsecond=0) - datetime.timedelta(minutes=60)
    at = at.replace(minute=at.minute // 10 * 10)
    for step in (1, 10):
        Rollup.objects.create(
            step=step, organization_id=row.organization_id, subscription_id=row.pk, at=at, outcome=outcome,
            attempts=attempts, durations=[attempts] + [0] * (BUCKETS - 1), latencies=[0] * BUCKETS,
        )  # fmt: skip


def test_a_delivery_shows_its_attempts_and_is_retried(visitor: Visitor, organization: Organization) -> None:
    row, _ = subscriptions.create(organization.pk, url="https://a.example/", event_types=["*"])
    failed = make_delivery(
        make_event(organization), row, "failed", attempt_count=1, last_error="http_status", last_status_code=500
    )
    make_attempt(failed)
    text = text_of(visitor.get(f"deliveries/{failed.pk}"))
    assert "out of order" in text
    assert "All attempts have failed." in text
    assert visitor.post(f"deliveries/{failed.pk}/retry").status_code == 302
    failed.refresh_from_db()
    assert (failed.status, failed.cause) == ("pending", "manual")
    subscriptions.disable(row)
    page = visitor.post(f"deliveries/{failed.pk}/retry")
    assert page.status_code == 409
    assert "The delivery is held; enable its endpoint first." in text_of(page)


def test_deliveries_are_filtered(visitor: Visitor, organization: Organization) -> None:
    first, _ = subscriptions.create(organization.pk, url="https://first.example/", event_types=["*"])
    second, _ = subscriptions.create(organization.pk, url="https://second.example/", event_types=["*"])
    failed = make_delivery(make_event(organization, type="order.paid"), first, "failed", last_error="timeout")
    old = make_delivery(make_event(organization), second, "delivered")
    three_days_ago = timezone.now() - datetime.timedelta(days=3)
    Event.objects.filter(pk=old.event_id).update(created_at=three_days_ago)
    Delivery.objects.filter(pk=old.pk).update(created_at=three_days_ago)

    def found(**query: str) -> set[Any]:
        page = visitor.get("deliveries", **query)
        assert page.status_code == 200
        return {row.pk for row in (failed, old) if str(row.pk) in page.content.decode()}

    assert found() == {failed.pk, old.pk}
    assert found(status="failed") == {failed.pk}
    # Bounded in time: PostgreSQL may walk through the whole history for deliveries of some events.
    with CaptureQueriesContext(connection) as captured:
        assert found(type="order.created") == {old.pk}
    lists = [row["sql"] for row in captured if '"event_id" IN (' in row["sql"] and "LIMIT" in row["sql"]]
    assert lists
    assert [sql for sql in lists if '"created_at" >= ' not in sql] == []
    assert found(type="order.created", age="24h") == set()
    assert found(type="none.such") == set()
    assert found(endpoint=str(first.pk)) == {failed.pk}
    assert found(age="24h") == {failed.pk}
    until = (timezone.now() - datetime.timedelta(days=1)).strftime("%Y-%m-%dT%H:%M")
    assert found(until=until) == {old.pk}
    assert found(status="failed", until=until) == set()
    for query in ({"status": "lost"}, {"endpoint": "x"}, {"age": "1y"}, {"until": "then"}, {"cursor": "x"}):
        page = visitor.get("deliveries", **query)
        assert page.status_code == 422
        assert 'role="alert"' in page.content.decode()


def test_missed_webhooks_are_recovered_after_a_look(visitor: Visitor, organization: Organization) -> None:
    make_event(organization)
    row, _ = subscriptions.create(organization.pk, url="https://a.example/", event_types=["order.*"])
    path, since = f"endpoints/{row.pk}/recover", "2026-01-01T00:00"
    assert "1 webhook would be sent" in text_of(visitor.get(path, since=since))
    assert not BulkRun.objects.exists()
    assert visitor.get(path, since="2999-01-01T00:00").status_code == 422
    assert visitor.post(path, since="soon").status_code == 422
    response = visitor.post(path, since=since)
    run = BulkRun.objects.get()
    assert run.actor.startswith("portal:")
    assert response["Location"] == f"/portal/endpoints/{row.pk}/recoveries/{run.pk}"
    assert "This continues on its own" in text_of(visitor.client.get(response["Location"]))
    BulkRun.objects.update(state="cancelled", visited=12_345)
    cancelled = text_of(visitor.client.get(response["Location"]))
    assert "Somebody stopped it." in cancelled
    assert "Events checked 12,345" in cancelled


def test_event_types_are_shown_with_an_example(visitor: Visitor, organization: Organization) -> None:
    event_types.create(organization.pk, name="order.paid", description="It is paid.", examples=[{"total": 17}])
    event_types.create(organization.pk, name="order.old", archived=True)
    text = text_of(visitor.get("event-types"))
    assert "It is paid." in text
    assert '"total": 17' in text
    assert "order.old" not in text


def test_the_log_names_people_of_the_tenant_and_nobody_else(visitor: Visitor, organization: Organization) -> None:
    for actor, detail in (("user:olga", {}), ("key:abcdef", {}), ("portal:x", {"portal_user": "ben@shop.example"})):
        AuditEntry.objects.create(
            organization=organization, actor=actor, action="subscription.disable", detail=detail, address="192.0.2.1",
            target_name="https://a.example/",
        )  # fmt: skip
    AuditEntry.objects.create(organization=organization, actor="user:olga", action="key.create", target_name="a key")
    text = text_of(visitor.get("logs", show="changes"))
    assert "You opened the portal" in text
    assert "Support disabled an endpoint https://a.example/" in text
    assert "API key abcdef disabled" in text
    assert "ben@shop.example disabled" in text
    for word in ("olga", "192.0.2.1", "a key"):
        assert word not in text


def test_the_log_leads_through_everything_a_page_at_a_time(
    visitor: Visitor, organization: Organization, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "PER_PAGE", 3)
    monkeypatch.setattr(logs, "MOST_DELIVERIES", 5)
    row, _ = subscriptions.create(organization.pk, url="https://a.example/hook", event_types=["*"])
    at = timezone.now()
    for number in range(12):  # the oldest failed, and one of the others
        failed = number in {4, 10, 11}
        made = make_delivery(make_event(organization), row, "failed" if failed else "delivered", attempt_count=1)
        # As when one event is for many endpoints, some were created in the same instant.
        Delivery.objects.filter(pk=made.pk).update(created_at=at - datetime.timedelta(minutes=number // 3))
        make_attempt(made, error="timeout" if failed else "", started_at=at - datetime.timedelta(minutes=number // 3))

    def seen(**query: str) -> list[list[str]]:
        pages, link = [], f"logs?{urlencode(query)}"
        while link and len(pages) < 20:
            page = visitor.client.get(f"/portal/{link}").content.decode()
            pages.append(re.findall(r'href="/portal/deliveries/([0-9a-f-]{36})"', page))
            older = re.search(r'href="([^"]+)">Older<', page)
            assert (">Newest<" in page) is (len(pages) > 1)
            link = f"logs{html.unescape(older[1])}" if older else ""
        return pages

    everything = [
        str(pk) for pk in Delivery.objects.order_by("-created_at", "-attempts__pk").values_list("pk", flat=True)
    ]
    pages = seen()
    assert [one for page in pages for one in page] == everything
    assert max(map(len, pages)) == 3
    found = [one for page in seen(failed="") for one in page]
    wanted = set(map(str, Delivery.objects.filter(status="failed").values_list("pk", flat=True)))
    assert (len(found), set(found)) == (3, wanted)
    for number in range(7):
        visitor.post("endpoints/new", url=f"https://a.example/{number}", which="all")
    page = visitor.get("logs", show="changes").content.decode()
    assert page.count("added an endpoint") == 3
    following = visitor.client.get("/portal/logs" + html.unescape(re.findall(r'href="([^"]+)">Older<', page)[0]))
    assert "https://a.example/3" in following.content.decode()
    assert "https://a.example/6" not in following.content.decode()
    for query in (
        "attempt=x",
        "attempt=2026-01-01T00:00:00Z~x",
        "delivery=2026-01-01T00:00:00Z~x",
        "show=changes&cursor=x",
    ):
        refused = visitor.client.get(f"/portal/logs?{query}")
        assert refused.status_code == 422
        assert "no longer exists" in refused.content.decode()


def test_a_preview_of_a_recovery_says_how_many_events_it_has_looked_at(
    visitor: Visitor, organization: Organization, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preview, "COUNT_TO_FILTERED", 2)
    row, _ = subscriptions.create(
        organization.pk, url="https://a.example/", event_types=["*"], filter={"nothing": {"$exist": False}}
    )
    for _ in range(3):
        make_event(organization)
    since = f"{timezone.now() - datetime.timedelta(hours=1):%Y-%m-%dT%H:%M}"
    text = text_of(visitor.get(f"endpoints/{row.pk}/recover", since=since))
    assert "At least 2 webhooks would be sent" in text
    assert "There are more than 2 events" in text
    assert "2 of the first 2 are for this endpoint" in text


def test_what_was_erased_is_not_offered_for_a_retry(
    visitor: Visitor, rows: dict[str, Any], organization: Organization
) -> None:
    path = f"deliveries/{rows['delivery_id']}"
    Delivery.objects.update(status="failed", last_error="timeout")
    assert "Retry now" in text_of(visitor.get(path))
    erase(organization.pk, rows["event_id"])
    assert "Retry now" not in text_of(visitor.get(path))
    page = visitor.post(f"{path}/retry")
    assert page.status_code == 409
    assert "payload was erased" in text_of(page)
    assert Delivery.objects.get().status == "failed"


def test_a_delivery_in_an_inbox_is_described_in_its_words(visitor: Visitor, organization: Organization) -> None:
    inbox, _ = subscriptions.create(organization.pk, inbox="orders", event_types=["*"])
    accept(organization)
    assert "/retry" not in visitor.get(f"deliveries/{Delivery.objects.get().pk}").content.decode()
    lease, [event] = fetching.fetch(inbox.pk, 1, 60)
    path = f"deliveries/{event.delivery_id}"
    fetched = text_of(visitor.get(path))
    assert "delivering A consumer has fetched it" in " ".join(fetched.split())
    assert "Leased until" in fetched
    for of_an_endpoint in ("Next attempt", "Attempts", "webhook-id", "Retry now"):
        assert of_an_endpoint not in fetched
    fetching.acknowledge(inbox.pk, [event.delivery_id], lease)
    assert "A consumer has acknowledged it. Put back into the inbox" in text_of(visitor.get(path))
    again = visitor.post(f"{path}/retry")
    assert "It can be fetched again." in text_of(visitor.client.get(again["Location"]))


@pytest.mark.parametrize("color", ["#000000", "#ffffff", "#ffff00", "#1f5fbf", "#808080", "#ff0000"])
def test_every_color_is_readable(settings: Any, color: str) -> None:
    settings.PORTAL_COLOR = color
    sheet = branding.theme()
    for surface, edge in zip(
        (branding.LIGHT_SURFACE, branding.DARK_SURFACE), re.findall(r"edge: (#\w+)", sheet), strict=True
    ):
        assert branding.contrast(branding.parse(edge), surface) >= branding.VISIBLE
    found = re.findall(r"--(?:on-)?brand: (#\w+)|--accent: (#\w+)", sheet)
    brand, on_brand, light, dark = (branding.parse(one or other) for one, other in found)
    assert branding.contrast(brand, on_brand) >= branding.READABLE
    assert branding.contrast(light, branding.LIGHT_SURFACE) >= branding.READABLE
    assert branding.contrast(dark, branding.DARK_SURFACE) >= branding.READABLE


def test_name_and_logo_are_the_operator_s(visitor: Visitor, settings: Any) -> None:
    settings.PORTAL_NAME, settings.PORTAL_LOGO_URL = "Acme <b>", "https://cdn.example.com/logo.svg?a=1"
    page = visitor.get()
    assert "Acme &lt;b&gt;" in page.content.decode()
    assert 'src="https://cdn.example.com/logo.svg?a=1"' in page.content.decode()
    assert "img-src 'self' data: https://cdn.example.com;" in page["Content-Security-Policy"]
    assert "img-src" in str(project.CONTENT_SECURITY_POLICY)
    assert "cdn.example.com" not in str(project.CONTENT_SECURITY_POLICY)


def test_what_the_portal_does_not_show_is_kept_when_an_endpoint_is_edited(
    visitor: Visitor, organization: Organization
) -> None:
    row, _ = subscriptions.create(
        organization.pk, url="https://a.example/", event_types=["a", "b.*"], description="old", uid="own",
        metadata={"a": "1"}, filter={"total": {"$gte": 100}}, channels=["eu"], ordered=True, ordered_attempts=3,
        ordered_on_failure="block", headers={"X-Token": "1"}, auth=Bearer("12345678"), signature_header="X-Signature",
        is_hook=True, format="transform", transform="{text:\n type}", deliveries_per_second=0.5, max_in_flight=7,
    )  # fmt: skip
    before = Subscription.objects.filter(pk=row.pk).values().get()
    page = visitor.get(f"endpoints/{row.pk}/edit").content.decode()
    form: dict[str, Any] = {}
    for name, text in re.findall(r'<textarea[^>]*name="(\w+)"[^>]*>\r?\n?(.*?)</textarea>', page, re.S):
        form[name] = html.unescape(text).replace("\n", "\r\n")  # as browsers send it
    for tag in re.findall(r"<input[^>]*>", page):
        attributes = dict(re.findall(r'(\w+)="([^"]*)"', tag))
        if attributes.get("type") not in {"radio", "checkbox", "hidden"} or "checked" in tag:
            form[attributes["name"]] = html.unescape(attributes.get("value", "on"))
    form["format"] = re.findall(r'<option value="([^"]*)" selected', page)[0]
    assert visitor.post(f"endpoints/{row.pk}/edit", **form).status_code == 302  # which changes nothing
    assert Subscription.objects.filter(pk=row.pk).values().get() == before
    assert visitor.post(f"endpoints/{row.pk}/edit", **form | {"description": "new"}).status_code == 302
    after = Subscription.objects.filter(pk=row.pk).values().get()
    assert {name for name in before if before[name] != after[name]} == {"description", "updated_at"}
    assert AuditEntry.objects.get(action="subscription.change").detail["fields"] == ["description"]


def test_the_edges_of_fields_and_buttons_are_visible_on_every_surface() -> None:
    sheet = (project.BASE_DIR / "portal" / "static" / "portal" / "portal.css").read_text()
    for scheme in sheet.split("prefers-color-scheme: dark")[:2]:
        edge, *surfaces = (
            branding.parse(re.findall(rf"--{name}: (#[0-9a-f]+)", scheme)[0])
            for name in ("border-color", "page-bg", "darkened-bg")
        )
        for surface in surfaces:
            assert branding.contrast(edge, surface) >= branding.VISIBLE
