"""In a real Chromium: the console answers an operator's questions in three clicks, and no page of it breaks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from django.urls import reverse
from playwright.sync_api import Browser, Page

from devstack.demo_data import Demo, fill
from orgs import audit
from orgs.keys import create_api_key
from orgs.models import Organization
from tests.browser.conftest import PASSWORD, Watched, log_in
from tests.console.rows import list_url, page_url
from webhooks.models import Delivery, DeliveryAttempt, Subscription

pytestmark = pytest.mark.timeout(900)

WIDTHS = (1280, 1440)


@pytest.fixture
def demo(db: None) -> Demo:
    """Return a busy installation: 300 organizations, a dead endpoint, hostile names, a very long type."""
    return fill(3000, organizations=300, subscriptions=60, hostile=True)


def home_of(site: str) -> str:
    return site + reverse("admin:index")


class Clicks:
    """Counts the clicks of an operator who begins on the home page."""

    def __init__(self, tab: Watched, site: str) -> None:
        self.tab = tab
        self.page: Page = tab.page
        self.count = 0
        tab.visit(home_of(site))

    def click(self, selector: str) -> None:
        """Click what leads to another page, and check that one."""
        self.count += 1
        with self.page.expect_navigation():
            self.page.click(selector)
        self.tab.check()

    def choose(self, selector: str, label: str) -> None:
        """Choose from a list that acts by itself."""
        self.count += 1
        with self.page.expect_navigation():
            self.page.select_option(selector, label=label)
        self.tab.check()

    def text(self) -> str:
        """Return what stands on the page."""
        assert self.count <= 3
        return self.page.inner_text("#content")


def test_what_failed_for_one_organization_why_and_again(staff_tab: Watched, site: str, demo: Demo) -> None:
    operator = Clicks(staff_tab, site)
    operator.choose("[name=organization]", "Acme")
    assert str(demo.organization) in operator.page.url
    assert "connection refused" in operator.text()
    failed = Delivery.objects.filter(organization_id=demo.organization, subscription__is_active=True).first()
    assert failed is not None
    Delivery.objects.filter(pk=failed.pk).update(status="failed", last_error="timeout", next_attempt_at=None)
    staff_tab.visit(site + list_url(Delivery, organization=demo.organization, status="failed"))
    assert "no response in time" in staff_tab.page.inner_text("#result_list")
    staff_tab.page.check(f'[name=_selected_action][value="{failed.pk}"]')
    staff_tab.page.select_option("[name=action]", "replay")
    with staff_tab.page.expect_navigation():
        staff_tab.page.click(".actions [type=submit]")
    with staff_tab.page.expect_navigation():
        staff_tab.page.click("css=button >> text=Replay 1 delivery")
    staff_tab.check()
    failed.refresh_from_db()
    assert failed.status == "pending"


def test_which_endpoint_is_the_slowest(staff_tab: Watched, site: str, demo: Demo) -> None:
    operator = Clicks(staff_tab, site)
    first = operator.page.locator("h3:has-text('Slowest endpoints') + table tbody tr >> nth=0")
    assert "slow.acme.example" in first.inner_text()
    operator.click("h3:has-text('Slowest endpoints') + table tbody a >> nth=0")
    assert "Response time" in operator.text()


def test_how_deep_is_it_and_is_it_growing(staff_tab: Watched, site: str, demo: Demo) -> None:
    operator = Clicks(staff_tab, site)
    chart = operator.page.locator("svg[aria-label^='Waiting deliveries']")
    assert "due: now" in (chart.get_attribute("aria-label") or "")
    operator.click("text=As a table")
    assert "no figures: no worker was running" in operator.text(), "a gap is not a zero"


def test_who_revoked_this_key(staff_tab: Watched, site: str, demo: Demo) -> None:
    organization = Organization.objects.get(pk=demo.organization)
    key, _ = create_api_key(organization, name="shop")
    audit.record("key.revoke", actor="user:nina", organization_id=organization.pk, target=key.pk)
    operator = Clicks(staff_tab, site)
    operator.click(".shortcuts >> text=Audit log")
    operator.page.fill("#searchbar", str(key.pk))
    operator.click("#changelist-search [type=submit]")
    assert "user:nina" in operator.text()


def test_what_was_sent_and_what_came_back(staff_tab: Watched, site: str, demo: Demo) -> None:
    attempt = DeliveryAttempt.objects.filter(status_code=503).select_related("delivery").first()
    assert attempt is not None
    operator = Clicks(staff_tab, site)
    operator.click(".shortcuts >> text=Deliveries")
    operator.page.fill("#searchbar", str(attempt.delivery_id))
    operator.click("#changelist-search [type=submit]")
    operator.click("#result_list tbody th a")
    assert "Service Unavailable" in operator.text()


def test_the_dead_endpoint_is_named_with_its_cause_and_stopped(staff_tab: Watched, site: str, demo: Demo) -> None:
    operator = Clicks(staff_tab, site)
    row = operator.page.locator("table.trouble tbody tr:has-text('billing.acme.example')").inner_text()
    assert "Acme" in row
    assert "connection refused; circuit breaker is open until" in row
    assert "412 consecutive failures" in row
    assert "paused" in row
    operator.click("table.trouble >> text=billing.acme.example")
    operator.click("button[value=disable]")
    operator.page.fill("[name=reason]", "down for days")
    operator.click("css=button >> text=Disable 1 subscription")
    assert "Disabled by olga: down for days" in operator.text()
    assert not Subscription.objects.get(pk=demo.dead).is_active


def test_the_home_refreshes_itself_and_says_so(staff_tab: Watched, site: str, demo: Demo) -> None:
    page = staff_tab.page
    staff_tab.visit(home_of(site))
    Subscription.objects.filter(pk=demo.dead).update(url="https://renamed.example/")
    page.wait_for_selector("text=Updated >> visible=true", timeout=60_000)
    assert "renamed.example" in page.inner_text("table.trouble")
    staff_tab.check()
    page.context.clear_cookies()
    page.wait_for_selector("text=You are logged out", timeout=60_000)


def test_an_id_is_copied_whole(staff_tab: Watched, site: str, demo: Demo) -> None:
    page = staff_tab.page
    page.context.grant_permissions(["clipboard-read", "clipboard-write"], origin=site)
    staff_tab.visit(site + list_url(Delivery))
    button = page.locator("button.copy >> nth=0")
    button.click()
    page.wait_for_selector("button.copy:has-text('✓')")
    assert page.evaluate("navigator.clipboard.readText()") == button.get_attribute("data-copy")
    staff_tab.check()


def test_an_export_comes_as_a_file_and_says_how_far_it_is(
    staff_tab: Watched, site: str, demo: Demo, tmp_path: Path
) -> None:
    page = staff_tab.page
    staff_tab.visit(site + list_url(Delivery, status="delivered"))
    with page.expect_download() as download:
        page.click("a[data-export] >> text=NDJSON")
    download.value.save_as(tmp_path / "rows")
    rows = [json.loads(line) for line in (tmp_path / "rows").read_text().splitlines()]
    assert {row["status"] for row in rows} == {"delivered"}
    page.wait_for_selector(f"text=Done: {len(rows):,} rows.")
    staff_tab.check()


def test_a_test_event_s_outcome_is_on_the_page(staff_tab: Watched, site: str, demo: Demo, httpserver: Any) -> None:
    httpserver.expect_request("/hook").respond_with_data("<img class=hostile src=x>", status=418)
    Subscription.objects.filter(pk=demo.healthy).update(url=httpserver.url_for("/hook"))
    staff_tab.visit(site + page_url(Subscription.objects.get(pk=demo.healthy)))
    with staff_tab.page.expect_navigation():
        staff_tab.page.click("button[value=send_test]")
    staff_tab.check()
    assert "418" in staff_tab.page.inner_text(".messagelist")


def test_an_empty_installation_says_how_to_begin(staff_tab: Watched, site: str) -> None:
    staff_tab.visit(home_of(site))
    assert "Nothing here yet" in staff_tab.page.inner_text("#content")
    for model in (Delivery, Subscription, DeliveryAttempt):
        staff_tab.visit(site + list_url(model))
    staff_tab.visit(home_of(site))
    with staff_tab.page.expect_navigation():
        staff_tab.page.click("text=Add an organization")
    staff_tab.check()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_no_page_is_wider_than_the_window(
    chromium: Browser, site: str, superuser: Any, demo: Demo, canary: str, width: int, scheme: Any
) -> None:
    context = chromium.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    tab = Watched(context.new_page(), canary)
    log_in(tab, site, superuser.username, PASSWORD)
    long_name = Organization.objects.get(name__startswith="The Northern").pk
    hostile = Subscription.objects.get(url__contains="hostile")
    delivery = Delivery.objects.filter(event__type__startswith="com.example.").first()
    assert delivery is not None
    paths = [
        "", "?span=7d", "?span=6h&table=1", f"?organization={long_name}",
        *(path.removeprefix(reverse("admin:index")) for path in (
            list_url(Delivery), list_url(Delivery, status="pending"), list_url(Delivery, q="com.example"),
            list_url(type(delivery.event)), list_url(DeliveryAttempt), list_url(Subscription), list_url(Organization),
            page_url(delivery), page_url(delivery.event), page_url(hostile),
            page_url(Subscription.objects.get(pk=demo.dead)),
        )),
    ]  # fmt: skip
    for path in paths:
        tab.visit(home_of(site) + path)
        wide = tab.page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
        assert wide <= 0, (path, wide)
        inner = tab.page.evaluate(
            "[...document.querySelectorAll('.results')].map(e => e.scrollWidth - e.clientWidth)[0] ?? 0"
        )
        assert inner <= 0, (path, inner, "the list has to be scrolled sideways")
    context.close()
