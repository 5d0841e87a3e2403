"""An operator at work, in a real Chromium: what an action would do, the confirmation, and what became of it.

With SCREENSHOTS set to a folder, each page that is looked at is kept there, light and dark.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from django.utils import timezone

from orgs.models import ApiKey, AuditEntry, Organization
from tests.browser.conftest import Watched
from tests.browser.hostile import PAYLOADS, make_hostile_rows
from tests.console.rows import World, list_url, make_delivery, make_event, make_world, page_url
from webhooks import subscriptions
from webhooks.models import BulkRun, Delivery, Subscription, SubscriptionQueue

pytestmark = pytest.mark.timeout(900)

LONG_TYPE = "order." + "x" * 227


class Desk:
    """A tab at 1280 pixels, and the site."""

    def __init__(self, tab: Watched, site: str) -> None:
        self.tab, self.page, self._site = tab, tab.page, site
        self.page.set_viewport_size({"width": 1280, "height": 900})
        self.clicks = 0

    def open(self, path: str) -> None:
        """Go to a page and begin to count clicks."""
        self.tab.visit(self._site + path)
        self.clicks = 0

    def click(self, selector: str) -> None:
        """Click on what leads to another page, and check that."""
        self.clicks += 1
        with self.page.expect_navigation():
            self.page.click(selector)
        self.tab.check()

    def look(self, name: str) -> str:
        """Check that the page fits the window, light and dark, and return its text."""
        for scheme in ("light", "dark"):
            self.page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
            width = self.page.evaluate("document.documentElement.scrollWidth")
            assert width <= 1280, (name, width)
            if folder := os.environ.get("SCREENSHOTS"):
                self.page.screenshot(path=Path(folder) / f"{name}-{scheme}.png", full_page=True)
        self.tab.check()
        return re.sub(r"\s+", " ", self.page.inner_text("body"))


@pytest.fixture
def desk(staff_tab: Watched, site: str) -> Desk:
    return Desk(staff_tab, site)


@pytest.fixture
def world(db: None) -> World:
    """Return an organization with trouble of every kind."""
    organization = Organization.objects.create(name="Acme")
    world = make_world(organization)
    down = subscriptions.create(organization.pk, url="https://down.example.com/hooks/orders", event_types=["*"])[0]
    SubscriptionQueue.objects.filter(pk=down.pk).update(
        failing_since=timezone.now(), breaker_trips=3, paused_until="2999-01-01T00:00:00Z", consecutive_failures=30,
        last_error="connection_refused", last_failure_at=timezone.now(), next_due_at=timezone.now(),
    )  # fmt: skip
    for number in range(40):
        status = ("failed", "pending", "delivered")[number % 3]
        make_delivery(
            make_event(organization, type=LONG_TYPE), down, status,
            last_error="" if status == "delivered" else ("timeout", "connection_refused", "http_status")[number % 3],
            last_status_code=503 if number % 3 == 2 else None, attempt_count=1,
        )  # fmt: skip
    BulkRun.objects.update(state="done", finished_at=timezone.now())
    return world


def down() -> Subscription:
    return Subscription.objects.get(host="down.example.com")


def test_what_failed_why_and_again_takes_two_clicks_and_says_what_the_breaker_makes_of_it(
    world: World, desk: Desk
) -> None:
    desk.open("/admin/")
    text = desk.look("home")
    assert "connection refused; circuit breaker is open until 2999-01-01 00:00:00" in text
    desk.open(page_url(down()))
    assert "paused" in desk.look("subscription")
    desk.click("text=Retry failed deliveries >> visible=true")
    asked = desk.look("retry")
    assert "Retry 27 deliveries?" in asked
    assert "27 wait behind a circuit breaker, which lets one request at a time through" in asked
    desk.click("css=button >> text=Retry 27 deliveries")
    assert desk.clicks == 2
    assert "Retry: 27 queued." in desk.look("after-retry")
    assert Delivery.objects.filter(subscription=down(), cause="manual", status="pending").count() == 27


def test_a_run_that_goes_on_shows_how_far_it_is(world: World, desk: Desk) -> None:
    run = BulkRun.objects.create(
        kind="replay", subscription=down(), organization_id=world.organization.pk, actor="user:olga", total=2200,
        visited=700, queued=690, in_background=True, filters={"subscription": str(down().pk)},
    )  # fmt: skip
    desk.open(page_url(run))
    assert "700 of 2,200 deliveries seen" in desk.look("run")
    with desk.page.expect_navigation(timeout=30_000):  # it asks for itself again
        pass
    BulkRun.objects.filter(pk=run.pk).update(state="done", visited=2200, queued=2190, finished_at=timezone.now())
    desk.page.wait_for_selector("text=2,200 deliveries seen")
    desk.open(list_url(BulkRun))
    desk.look("runs")


def test_missed_events_are_recovered_after_a_look_at_the_numbers(world: World, desk: Desk) -> None:
    desk.open(page_url(world.subscription))
    desk.click("text=Recover missed events >> visible=true")
    desk.page.fill("[name=since]", "2026-01-01T00:00:00Z")
    desk.click("css=button >> text=Preview")
    # 46 events, of which this subscription wants those of a type `order.…` and has six.
    assert "There are 46 events since then. 41 deliveries would be queued." in desk.look("recover")
    desk.click("css=button >> text=Begin the recovery")
    assert "The recovery has begun." in desk.look("after-recover")
    assert BulkRun.objects.filter(kind="recover", state="running").count() == 1


def test_a_host_is_stopped_in_two_clicks_and_enabled_in_two(world: World, desk: Desk) -> None:
    desk.open(page_url(Delivery.objects.filter(subscription=down()).earliest("created_at")))
    desk.click("text=Stop this host >> visible=true")
    assert "Only Acme: 1 subscription" in desk.look("stop-host")
    desk.page.fill("[name=reason]", "they asked us to")
    desk.click("css=button >> text=Stop down.example.com")
    assert desk.clicks == 2
    assert "1 subscription disabled." in desk.look("after-stop-host")
    desk.open(page_url(down()))
    assert "Host down.example.com stopped by the operator: they asked us to" in desk.look("stopped")
    desk.click("text=Enable this host >> visible=true")
    desk.click("css=button >> text=Enable down.example.com")
    assert down().is_active


def test_an_endpoint_is_disabled_for_a_reason_in_two_clicks_and_enabled_in_one(world: World, desk: Desk) -> None:
    desk.open(page_url(down()))
    desk.click("css=button[name=action][value=disable]")
    asked = desk.look("disable")
    assert "Nothing more is sent to 1 subscription; what waits for it is held until it is enabled again." in asked
    desk.page.keyboard.type("they are moving")  # the field has the cursor already
    desk.click("css=button >> text=Disable 1 subscription")
    assert desk.clicks == 2
    assert "Disabled by the operator: they are moving" in desk.look("disabled")
    assert not down().is_active
    desk.click("css=button[name=action][value=enable]")
    assert desk.clicks == 3
    assert down().is_active


def test_what_waits_for_an_endpoint_is_held_for_a_reason_which_the_audit_log_keeps(world: World, desk: Desk) -> None:
    desk.open(list_url(Delivery, subscription=str(down().pk), status="retrying"))
    desk.page.check("#action-toggle")
    desk.page.select_option("select[name=action] >> nth=0", "hold")
    desk.click("css=button[name=index] >> nth=0")
    assert "Hold 13 deliveries? Nothing of 13 deliveries is sent until somebody resumes them." in desk.look("hold")
    desk.page.keyboard.type("their audit")
    desk.click("css=button >> text=Hold 13 deliveries")
    assert desk.clicks == 2
    assert "13 deliveries held" in desk.look("held")
    assert Delivery.objects.filter(subscription=down(), status="held").count() == 13
    desk.open(list_url(AuditEntry))
    assert "their audit" in desk.look("audit")


def test_who_revoked_a_key_and_why_is_two_clicks_away(world: World, desk: Desk) -> None:
    desk.open(page_url(world.key))
    desk.click("css=button[name=action][value=revoke]")
    desk.look("revoke")
    desk.page.fill("[name=reason]", "it was in a public repository")
    desk.click("css=button >> text=Revoke 1 API key")
    desk.open("/admin/")
    desk.click("#content-main >> text=API keys")
    desk.click(f"text={world.key.prefix}")
    assert re.search(r"user:olga at \S+ \S+: it was in a public repository", desk.look("key"))
    desk.click("text=History")
    assert desk.clicks == 3
    assert "it was in a public repository" in desk.look("history")
    desk.open(list_url(AuditEntry))
    desk.look("audit")


@pytest.mark.slow
def test_confirmations_show_what_others_sent_as_text(db: None, desk: Desk, canary: str) -> None:
    for turn in (0, 5):
        rows = make_hostile_rows(canary, turn % len(PAYLOADS))
        subscription = next(row for row in rows if isinstance(row, Subscription))
        key = next(row for row in rows if isinstance(row, ApiKey))
        Subscription.objects.filter(pk=subscription.pk).update(is_active=True)
        for row, action in (
            (subscription, "retry_failed"), (subscription, "disable"), (subscription, "recover"), (key, "revoke"),
        ):  # fmt: skip
            desk.open(page_url(row))
            desk.click(f'css=button[name=action][value="{action}"]')
            desk.look("hostile")
