"""In a real Chromium: nothing that anybody sends becomes markup on a page, and the pages work under their policy."""

from __future__ import annotations

import html
import json
import re
import subprocess
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from django.contrib import admin
from django.contrib.auth.models import User
from django.urls import reverse
from django.utils import timezone
from playwright.sync_api import BrowserContext

from core.encryption import Sealer
from core.wakeups import EVENTS, wake
from devstack.http_receiver import Receiver
from events.models import EventStatus
from orgs.models import ApiKey, AuditEntry, Organization
from tests.browser.conftest import PASSWORD, Watched, log_in, program_or_reason
from tests.browser.hostile import (
    PAYLOADS,
    Source,
    make_hostile_jobs,
    make_hostile_rows,
    make_log_entries,
)
from tests.console.rows import list_url, make_attempt, make_delivery, make_event, make_world, page_url
from webhooks import subscriptions
from webhooks.attempts import request_body
from webhooks.destinations.exchange import Exchange, seal_exchange
from webhooks.models import Delivery, DeliveryAttempt, Subscription

# The first run on a machine may have a browser to download.
pytestmark = pytest.mark.timeout(900)

TURNS = range(0, len(PAYLOADS), 5)


def policy_of(site: str) -> str:
    with urllib.request.urlopen(f"{site}/admin/login/", timeout=30) as answer:
        return str(answer.headers["Content-Security-Policy"])


@pytest.mark.parametrize("guarded", [False, True], ids=["without_policy", "under_our_policy"])
def test_each_payload_is_noticed_where_a_page_takes_it_for_its_own(
    context: BrowserContext, canary: str, site: str, httpserver: Any, db: None, guarded: bool
) -> None:
    headers = {"Content-Security-Policy": policy_of(site)} if guarded else {}
    tab = Watched(context.new_page(), canary)
    for path in ("/favicon.ico", "/raw/x"):  # what is missing would be an alarm of its own
        httpserver.expect_request(path).respond_with_data("", content_type="image/png")
    for number, payload in enumerate(PAYLOADS):
        text = payload.replace("{c}", canary).replace("\\u003c", "<").replace("\\u003e", ">")
        shown = html.unescape(text)
        page = f'<!doctype html><p>{shown}</p><input value="{shown}"><input value=\'{shown}\'><a href="{shown}">x</a>'
        httpserver.expect_request(f"/raw/{number}").respond_with_data(page, headers=headers, content_type="text/html")
        tab.page.goto(httpserver.url_for(f"/raw/{number}"))
        alarms = tab.alarms()
        assert alarms, payload
        if guarded:
            assert not [one for one in alarms if one.startswith(("dialog", "a script ran"))], payload


def test_what_others_sent_is_text_on_every_page(staff_tab: Watched, site: str, canary: str, superuser: Any) -> None:
    rows = [row for turn in TURNS for row in make_hostile_rows(canary, turn)]
    assert {type(row) for row in rows} == set(admin.site._registry), "a model has no hostile row"
    make_log_entries(superuser, rows[0], canary)
    for model in admin.site._registry:
        staff_tab.visit(site + list_url(model))
        assert "hostile" in staff_tab.page.inner_text("#changelist"), model
    for number, row in enumerate(rows):
        # The fields of these are few, and stand on no other page; the others' payloads come round sooner.
        if isinstance(row, Organization | ApiKey | Subscription) or number // 10 % 2 == 0:
            staff_tab.visit(site + page_url(row))
    for row in rows[:10]:
        staff_tab.visit(site + page_url(row, "history"))
    for subscription in [row for row in rows if isinstance(row, Subscription)][::2]:
        staff_tab.visit(site + page_url(subscription, "delete"))
    for path in (
        reverse("admin:index"), reverse("admin:index") + "?span=6h", reverse("admin:index") + "?span=24h&table=1",
        reverse("admin:app_list", args=["webhooks"]), reverse("admin:password_change"),
        list_url(Delivery, subscription=rows[2].pk), list_url(Delivery, status="failed"), "/api/docs",
    ):  # fmt: skip
        staff_tab.visit(site + path)


def test_search_words_come_back_as_text(staff_tab: Watched, site: str, canary: str) -> None:
    for number, model in enumerate(admin.site._registry):
        words = Source(canary, number * 3).text(600)
        staff_tab.visit(site + list_url(model, q=words))


def test_rq_pages_show_hostile_jobs_as_text(staff_tab: Watched, site: str, canary: str) -> None:
    jobs = make_hostile_jobs(canary)
    for name in (
        "jobs", "queue_details", "finished_jobs", "failed_jobs", "scheduled_jobs", "started_jobs", "deferred_jobs",
        "workers", "clear", "requeue_all", "delete_failed_jobs",
    ):  # fmt: skip
        staff_tab.visit(site + reverse(f"django_rq:{name}", args=[0]))
    staff_tab.visit(site + reverse("django_rq:home"))
    for job in jobs:
        staff_tab.visit(site + reverse("django_rq:job_detail", args=[0, job.id]))
        assert "hostile" in staff_tab.page.inner_text("#content")
        staff_tab.visit(site + reverse("django_rq:delete_job", args=[0, job.id]))


def test_an_exchange_is_text_and_its_command_repeats_the_request(
    staff_tab: Watched, context: BrowserContext, site: str, canary: str, tmp_path: Path
) -> None:
    organization, page = Organization.objects.create(name="Acme"), staff_tab.page
    hostile = " ".join(payload.replace("{c}", canary) for payload in PAYLOADS)
    data = json.dumps({"text": hostile + " it's \u202e $(id)", "long": "x" * 2000}, ensure_ascii=False)
    with Receiver() as receiver:
        subscription = subscriptions.create(organization.pk, url=receiver.url("/a?q='$(id)'"), event_types=["*"])[0]
        delivery = make_delivery(make_event(organization, data=data), subscription, "delivered")
        url = subscription.url.replace("/a?", f"/{'p' * 1500}?")
        sent = Exchange(url, [("webhook-id", "x"), ("webhook-signature", None), ("x-<b>", None)], 10)
        line = hostile.replace("\n", " ").encode()
        sent.response_head = b"HTTP/1.1 200 <b>\r\nx-long: " + b"y" * 4000 + b"\r\nx: \xff\xe2\x80\xae" + line
        make_attempt(delivery, 1, sealed_exchange=None)
        attempt = make_attempt(delivery, 2, sealed_exchange=seal_exchange(sent, Sealer()), response_body=hostile)
        page.set_viewport_size({"width": 1280, "height": 900})
        context.grant_permissions(["clipboard-read", "clipboard-write"], origin=site)
        for row in (delivery, attempt):
            staff_tab.visit(site + page_url(row))
            for element in page.query_selector_all("details:not([open]) summary"):
                element.click()
            staff_tab.check()
            assert page.evaluate("document.documentElement.scrollWidth") <= 1280
            assert "Not kept" in page.inner_text("#content") or row is attempt
            page.click("button[data-copy-from]")
            page.wait_for_selector("button[data-copy-from]:text('Copied')")
            page.screenshot(path=str(tmp_path / f"{type(row).__name__}.png"), full_page=True)
            command = page.evaluate("navigator.clipboard.readText()")
            assert "\u202e" not in command
            subprocess.run(["bash"], input=command.encode(), stdout=subprocess.DEVNULL, check=True, timeout=60)
        first, second = receiver.wait_for(2)
    assert first.body == second.body == (request_body(delivery.event, sent) or "").encode()
    assert first.headers["webhook-signature"] == "<webhook-signature>"
    assert url.endswith(first.path)


def test_the_form_logs_in(tab: Watched, site: str, superuser: User) -> None:
    superuser.set_password(PASSWORD)
    superuser.save()
    log_in(tab, site, superuser.username, PASSWORD)
    assert "Operations" in tab.page.title()


def test_failed_log_ins_keep_the_name_as_text(tab: Watched, site: str, canary: str, db: None) -> None:
    for turn in TURNS:
        name = Source(canary, turn).text(150)
        log_in(tab, site, name, "wrong")
        assert tab.page.input_value("#id_username") == name
        assert "Please enter the correct" in tab.page.inner_text(".errornote")


def test_a_key_is_made_through_the_form_and_shown_once(staff_tab: Watched, site: str, canary: str) -> None:
    page = staff_tab.page
    for turn in TURNS:
        Organization.objects.create(name=f"Acme {turn} " + Source(canary, turn).text(180))
    staff_tab.visit(site + reverse("admin:orgs_apikey_add"))
    page.click(".select2-selection")
    page.fill(".select2-search__field", "Acme")
    page.wait_for_selector(".select2-results__option[aria-selected] >> nth=3")
    staff_tab.check()
    page.click(".select2-results__option[aria-selected] >> nth=0")
    staff_tab.check()
    name = Source(canary, 2).text(200)
    page.fill("#id_name", name)
    with page.expect_navigation():
        page.click("[name=_save]")
    staff_tab.check()
    made = ApiKey.objects.get()
    assert made.name == name
    assert re.search(rf"trk_{made.prefix}_[\w-]+", page.inner_text("body"))


def test_an_action_on_a_list_and_a_button_on_a_page_work(staff_tab: Watched, site: str) -> None:
    organization = Organization.objects.create(name="Acme")
    world, page = make_world(organization), staff_tab.page
    failed = world.deliveries["failed"]
    staff_tab.visit(site + list_url(Delivery, status="failed"))
    page.check(f'[name=_selected_action][value="{failed.pk}"]')
    page.select_option("[name=action]", "replay")
    with page.expect_navigation():
        page.click(".actions [type=submit]")
    staff_tab.check()
    failed.refresh_from_db()
    assert failed.status == "failed", "nothing is done before it is confirmed"
    with page.expect_navigation():
        page.click("css=button >> text=Replay 1 delivery")
    staff_tab.check()
    assert "Replay: 1 queued." in page.inner_text(".messagelist")
    failed.refresh_from_db()
    assert failed.status == "pending"
    broken = make_event(organization, status=EventStatus.ERROR, last_error="ValueError", processed_at=timezone.now())
    staff_tab.visit(site + page_url(broken))
    with page.expect_navigation():
        page.click("text=/reprocess/i >> visible=true")
    staff_tab.check()
    broken.refresh_from_db()
    assert broken.status == EventStatus.ACCEPTED
    assert AuditEntry.objects.filter(actor="user:olga").count() >= 2


def test_the_box_above_a_list_ticks_all_of_it(staff_tab: Watched, site: str) -> None:
    world, page = make_world(Organization.objects.create(name="Acme")), staff_tab.page
    staff_tab.visit(site + list_url(Delivery))
    page.check("#action-toggle")
    assert page.locator("tr.selected").count() == len(world.deliveries)
    staff_tab.check()


def serious_faults(tab: Watched) -> list[tuple[str, str]]:
    """Return what axe-core finds on a page that keeps somebody from using it."""
    found = Axe().run(tab.page).response["violations"]
    tab.alarms()  # of styles that axe-core itself tries, and of the 404 that is looked at
    return [(one["id"], one["nodes"][0]["html"][:200]) for one in found if one["impact"] in {"serious", "critical"}]


def test_an_empty_installation_says_how_to_begin(staff_tab: Watched, site: str) -> None:
    staff_tab.visit(site + reverse("admin:index"))
    assert "Nothing here yet" in staff_tab.page.inner_text("#content")
    assert not serious_faults(staff_tab)
    for path in (
        list_url(Delivery, q="nothing.such"), reverse("django_rq:jobs", args=[0]), reverse("django_rq:clear", args=[0]),
    ):  # fmt: skip
        staff_tab.visit(site + path)
        assert not serious_faults(staff_tab), path
    staff_tab.page.emulate_media(color_scheme="dark")
    staff_tab.page.goto(f"{site}{reverse('admin:index')}nowhere/")
    assert not serious_faults(staff_tab)
    staff_tab.page.emulate_media(color_scheme="light")
    for model in (Delivery, Subscription, DeliveryAttempt):
        staff_tab.visit(site + list_url(model))
    staff_tab.visit(site + reverse("admin:index"))
    with staff_tab.page.expect_navigation():
        staff_tab.page.click("text=Add an organization")
    staff_tab.check()


def test_rqs_buttons_work(staff_tab: Watched, site: str) -> None:
    assert wake(EVENTS)
    page = staff_tab.page
    staff_tab.visit(site + reverse("django_rq:jobs", args=[0]))
    page.check("#action-toggle")
    assert page.locator("input.action-select:checked").count() == 1
    staff_tab.check()
    staff_tab.visit(site + reverse("django_rq:clear", args=[0]))
    with page.expect_navigation():
        page.click("#content [type=submit]")
    staff_tab.check()
    assert wake(EVENTS), "the queue was emptied, so that a wake-up fits in"


def test_the_api_page_shows_every_operation_and_opens_one(tab: Watched, site: str, db: None) -> None:
    page = tab.page
    page.goto(f"{site}/api/docs")
    page.wait_for_selector(".opblock >> nth=20")
    tab.check()
    with urllib.request.urlopen(f"{site}/api/schema?format=json", timeout=30) as answer:
        paths = json.load(answer)["paths"]
    operations = sum(len(set(path) & {"get", "post", "patch", "put", "delete"}) for path in paths.values())
    assert page.locator(".opblock").count() >= operations
    page.click(".opblock-summary >> nth=0")
    page.wait_for_selector(".opblock-body")
    tab.check()
    assert page.locator(".authorize").count() >= 1


@pytest.mark.parametrize("ci", [False, True])
def test_a_missing_browser_is_said_and_fails_where_ci_is_set(monkeypatch: pytest.MonkeyPatch, ci: bool) -> None:
    monkeypatch.setenv("CHROMIUM", "/nothing/here")
    monkeypatch.delenv("CI", raising=False)
    if ci:
        monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception if ci else pytest.skip.Exception, match="/nothing/here"):
        program_or_reason()
