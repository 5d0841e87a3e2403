"""In a real Chromium: the console answers an operator's questions in three clicks, and no page of it breaks."""

from __future__ import annotations

import datetime
import itertools
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from django.urls import reverse
from django.utils import timezone
from django_redis import get_redis_connection
from playwright.sync_api import Page

from core.encryption import Sealer
from devstack.demo_data import Demo, fill
from orgs import audit
from orgs.keys import create_api_key
from orgs.models import ApiKey, Organization
from portal.models import PortalSession
from tests.api.helpers import beat
from tests.browser.conftest import Watched, empty_tables
from tests.console.rows import list_url, page_url
from webhooks import subscriptions
from webhooks.destinations.exchange import Exchange, seal_exchange
from webhooks.models import Delivery, DeliveryAttempt, Subscription, SubscriptionQueue

pytestmark = pytest.mark.timeout(900)

WIDTHS = (1280, 1440)
# Each click of a person's, told by the browser; on which page doesn't matter.
_COUNT_CLICKS = """
addEventListener('click', (event) => {
    if (event.isTrusted) sessionStorage.clicks = Number(sessionStorage.clicks ?? 0) + 1;
}, true);
"""
# By how much the page, and the list on it, are wider than their places.
_OVERFLOW = """[
    document.documentElement.scrollWidth - window.innerWidth,
    [...document.querySelectorAll('.results')].map(e => e.scrollWidth - e.clientWidth)[0] ?? 0,
]"""


@pytest.fixture(scope="module")
def db(django_db_setup: None, django_db_blocker: Any) -> Iterator[None]:
    """Let the tests of this file share what is in the database."""
    with django_db_blocker.unblock():
        yield
        empty_tables()


@pytest.fixture(scope="module")
def demo(db: None) -> Demo:
    """Return a busy installation: 300 organizations, a dead endpoint, hostile names, a very long type."""
    return fill(3000, organizations=300, subscriptions=36, hostile=True)


def home_of(site: str) -> str:
    return site + reverse("admin:index")


class Operator:
    """Works with the mouse from the home page on.  There is no way but clicks, which the browser counts."""

    def __init__(self, tab: Watched, site: str) -> None:
        self._tab = tab
        self.page: Page = tab.page
        self.page.add_init_script(_COUNT_CLICKS)
        self.page.set_viewport_size({"width": 1280, "height": 900})
        tab.visit(home_of(site))

    @property
    def clicks(self) -> int:
        """How many clicks the browser has seen."""
        return int(self.page.evaluate("Number(sessionStorage.clicks ?? 0)"))

    def click(self, selector: str) -> None:
        """Click what leads to another page, and check that one."""
        with self.page.expect_navigation():
            self.page.click(f"{selector} >> visible=true")
        self._tab.check()

    def text(self) -> str:
        """Return what stands on the page, which at most three clicks led to."""
        assert self.clicks <= 3
        self.keep()
        return re.sub(r"\s+", " ", self.page.inner_text("#content"))

    def keep(self) -> None:
        """Keep a picture where SCREENSHOTS names a folder."""
        if folder := os.environ.get("SCREENSHOTS"):
            self.page.screenshot(
                path=Path(folder) / f"{self.page.title()[:40].strip()}-{self.clicks}.png".replace("/", "-")
            )


@pytest.mark.slow
def test_what_failed_for_one_organization_in_the_last_hour_why_and_again(
    staff_tab: Watched, site: str, demo: Demo
) -> None:
    rows = Delivery.objects.filter(organization_id=demo.organization, subscription_id=demo.healthy).order_by("pk")
    causes = [("timeout", None)] * 5 + [("http_status", 503)] * 3
    for key, (error, code) in zip(rows.values_list("pk", flat=True)[: len(causes)], causes, strict=True):
        Delivery.objects.filter(pk=key).update(
            status="failed", last_error=error, last_status_code=code, next_attempt_at=None, completed_at=timezone.now()
        )
    operator = Operator(staff_tab, site)
    operator.click(".failures >> text=/^Acme$/")
    assert "failed no response in time 5" in operator.text(), "what failed, and why"
    operator.click(".failures tr:has-text('no response in time') >> text=Retry…")
    assert "Retry 5 deliveries? 5 deliveries would be queued: one more attempt of each." in operator.text()
    operator.click("css=button >> text=Retry 5 deliveries")
    assert "Retry: 5 queued." in staff_tab.page.inner_text(".messagelist")
    assert operator.clicks == 3
    again = Delivery.objects.filter(organization_id=demo.organization, cause="manual")
    assert {row.last_error for row in again} == {"timeout"}
    assert again.count() == 5


def test_which_endpoint_is_the_slowest(staff_tab: Watched, site: str, demo: Demo) -> None:
    operator = Operator(staff_tab, site)
    first = operator.page.locator("h3:has-text('Slowest endpoints') + table tbody tr >> nth=0")
    assert "slow.acme.example" in first.inner_text()
    operator.click("h3:has-text('Slowest endpoints') + table tbody a >> nth=0")
    assert "Response time" in operator.text()
    assert operator.clicks == 1


def test_how_deep_is_it_and_is_it_growing(staff_tab: Watched, site: str, demo: Demo) -> None:
    operator = Operator(staff_tab, site)
    assert "deliveries due" in operator.text()
    chart = operator.page.locator("svg[aria-label^='Waiting deliveries']")
    assert "due: now" in (chart.get_attribute("aria-label") or "")
    operator.click("text=As a table")
    assert "no figures: no worker was running" in operator.text(), "a gap is not a zero"
    assert operator.clicks == 1


def test_who_revoked_this_key_and_why(staff_tab: Watched, site: str, demo: Demo) -> None:
    organization = Organization.objects.get(pk=demo.organization)
    key, _ = create_api_key(organization, name="shop")
    ApiKey.objects.filter(pk=key.pk).update(revoked_at=timezone.now())
    audit.record(
        "key.revoke", actor="user:nina", organization_id=organization.pk, target=key.pk, reason="it was on a web page"
    )
    operator = Operator(staff_tab, site)
    operator.click(".shortcuts >> text=API keys")
    operator.click(f"text={key.prefix}")
    assert re.search("user:nina .*: it was on a web page", operator.text())
    operator.click("text=History")
    assert "it was on a web page" in operator.text()


def test_what_was_sent_and_what_came_back(staff_tab: Watched, site: str, demo: Demo) -> None:
    attempt = DeliveryAttempt.objects.filter(status_code=503).select_related("delivery__event").latest("started_at")
    sent = Exchange("https://hooks.example.com/in", [("webhook-id", "msg_1"), ("webhook-signature", None)], 10)
    sent.response_head = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 7\r\n\r\n"
    DeliveryAttempt.objects.filter(pk=attempt.pk).update(sealed_exchange=seal_exchange(sent, Sealer()))
    operator = Operator(staff_tab, site)
    operator.page.click(".home-search [name=q]")
    operator.page.keyboard.insert_text(str(attempt.delivery_id))  # as from the clipboard
    operator.click(".home-search button")
    operator.click("#result_list tbody th a")
    shown = operator.text()
    for part in ("webhook-id: msg_1", "retry-after: 7", "503 Service Unavailable"):
        assert part in shown, "open without another click"
    assert operator.clicks == 3


def test_stop_this_host(staff_tab: Watched, site: str, demo: Demo) -> None:
    operator = Operator(staff_tab, site)
    row = operator.page.locator("table.trouble tbody tr:has-text('billing.acme.example')").inner_text()
    for part in ("Acme", "connection refused; circuit breaker is open until", "412 consecutive failures", "paused"):
        assert part in row
    operator.click("table.trouble >> text=billing.acme.example")
    operator.click("button[value=stop_host]")
    assert "Only Acme: 1 subscription" in operator.text()
    operator.page.keyboard.type("down for days")  # the field has the cursor already
    operator.click("css=button >> text=Stop billing.acme.example")
    assert "Host billing.acme.example stopped by the operator: down for days" in operator.text()
    assert operator.clicks == 3
    subscription = Subscription.objects.get(pk=demo.dead)
    assert not subscription.is_active
    subscriptions.enable(subscription)
    SubscriptionQueue.objects.filter(pk=demo.dead).update(failing_since=timezone.now())


def test_the_home_refreshes_itself_and_says_so(staff_tab: Watched, site: str, demo: Demo) -> None:
    page = staff_tab.page
    page.clock.install()  # the page's own time, which is moved on instead of waited for
    staff_tab.visit(home_of(site))
    Subscription.objects.filter(pk=demo.slow).update(url="https://renamed.example/")
    page.clock.run_for(16_000)
    page.wait_for_selector("text=Updated >> visible=true")
    assert "renamed.example" in page.inner_text("h3:has-text('Slowest endpoints') + table")
    page.context.clear_cookies()
    page.clock.run_for(16_000)
    page.wait_for_selector("text=You are logged out")
    Subscription.objects.filter(pk=demo.slow).update(url="https://slow.acme.example/hook")


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


@pytest.mark.slow
def test_no_page_is_wider_than_the_window(staff_tab: Watched, site: str, demo: Demo) -> None:
    page = staff_tab.page
    long_name = Organization.objects.get(name__startswith="The Northern").pk
    hostile = Subscription.objects.get(url__contains="hostile")
    delivery = Delivery.objects.filter(event__type__startswith="com.example.").first()
    assert delivery is not None
    paths = [
        "", "?span=7d", "?span=6h&table=1", f"?organization={long_name}",
        *(path.removeprefix(reverse("admin:index")) for path in (
            list_url(Delivery), list_url(Delivery, status="pending"), list_url(Delivery, q="com.example"),
            list_url(type(delivery.event)), list_url(DeliveryAttempt), list_url(Subscription), list_url(Organization),
            list_url(PortalSession),
            page_url(delivery), page_url(delivery.event), page_url(hostile),
            page_url(Subscription.objects.get(pk=demo.dead)),
        )),
    ]  # fmt: skip
    for path in paths:
        staff_tab.visit(home_of(site) + path)
        for width, scheme in itertools.product(WIDTHS, ("light", "dark")):
            page.set_viewport_size({"width": width, "height": 900})
            page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
            wide, inner = page.evaluate(_OVERFLOW)
            assert wide <= 0, (path, width, wide)
            assert inner <= 0, (path, width, inner, "the list has to be scrolled sideways")
            if path == "webhooks/subscription/":
                urls = page.evaluate("document.querySelector('td.field-url_display, th.field-url_display').offsetWidth")
                assert urls >= 150, (width, urls, "URLs break letter by letter")
            if folder := os.environ.get("SCREENSHOTS"):
                name = re.sub(r"\W+", "-", path).strip("-")[:60] or "home"
                page.screenshot(path=Path(folder) / f"{name}-{width}-{scheme}.png", full_page=True)


def test_a_list_a_form_and_a_delivery_have_names_headings_and_contrast(
    staff_tab: Watched, site: str, demo: Demo
) -> None:
    delivery = Delivery.objects.filter(status="failed", attempts__isnull=False).first()
    assert delivery is not None
    for path in (list_url(Delivery, status="failed"), reverse("admin:webhooks_subscription_add"), page_url(delivery)):
        staff_tab.visit(site + path)
        found = Axe().run(staff_tab.page).response["violations"]
        staff_tab.alarms()  # of styles that axe-core itself tries, which the policy forbids
        assert not [(path, one["id"], one["nodes"][0]["html"][:200]) for one in found]


def test_no_table_of_the_home_is_wider_than_its_place(staff_tab: Watched, site: str, demo: Demo) -> None:
    beat("5f0c" * 8)
    redis = get_redis_connection("default")
    born = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=99)
    redis.hset(f"rq:worker:{'5f0c' * 8}", mapping={
        "hostname": "triggers-worker-7d9f8b6c5d-x2x4z", "state": "idle", "birth": born.isoformat(),
        "successful_job_count": 12_345_678, "total_working_time": 1_234_567,
    })  # fmt: skip
    staff_tab.page.set_viewport_size({"width": 1280, "height": 900})
    staff_tab.visit(home_of(site))
    assert "triggers-worker" in staff_tab.page.inner_text("table.workers")
    over = staff_tab.page.evaluate(
        "[...document.querySelectorAll('table.wide')].map(table => table.offsetWidth - table.parentElement.clientWidth)"
    )
    assert max(over) <= 0, over
