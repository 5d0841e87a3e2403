"""A tenant at work, in a real Chromium, from a link that was made over HTTP: with the keyboard alone, and on a phone.

With SCREENSHOTS set to a folder, the pages that are looked at are kept there.
"""

from __future__ import annotations

import datetime
import json
import os
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from django.db import connection
from django.utils import timezone
from playwright.sync_api import Browser, Page

from devstack.http_receiver import Receiver, Response
from devstack.processes import web
from events import event_types
from orgs.keys import create_api_key
from orgs.models import AuditEntry, Organization
from orgs.scopes import Scope
from portal.models import PortalSession
from tests.browser.conftest import Watched
from tests.browser.hostile import make_hostile_rows
from tests.console.rows import make_attempt, make_delivery, make_event
from tests.servers import postgres
from webhooks import subscriptions
from webhooks.models import BulkRun, Delivery, Subscription

pytestmark = pytest.mark.timeout(900)


def make_link(site: str, organization: Organization, **options: Any) -> str:
    """Return a link to the portal, made as a backend makes it: over HTTP, with a key."""
    key = create_api_key(organization, scopes=[Scope.PORTAL_LINKS.value])[1]
    headers = {"X-API-Key": key, "Content-Type": "application/json"}
    request = urllib.request.Request(f"{site}/api/portal-links", json.dumps(options).encode(), headers)
    with urllib.request.urlopen(request, timeout=30) as answer:
        return str(json.load(answer)["url"])


def tab_to(page: Page, name: str) -> None:
    """Press Tab until what has this accessible name has the focus, which is visible."""
    for _ in range(60):
        page.keyboard.press("Tab")
        focused = page.evaluate(
            "(() => {const e = document.activeElement; const label = e.labels && e.labels[0];"
            " return (e.getAttribute('aria-label') || (label ? label.textContent : e.textContent)).trim()})()"
        )
        if focused == name:
            assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none", name
            return
    raise AssertionError(f"Tab doesn't lead to {name!r} on {page.url}")


def press(page: Page, name: str) -> None:
    """Go to a link or a button with Tab, and press Enter."""
    tab_to(page, name)
    with page.expect_navigation():
        page.keyboard.press("Enter")


def look(tab: Watched, name: str, *schemes: str) -> None:
    """Check a page for what axe-core finds, and for what is wider than the window.

    schemes: light, unless given.
    """
    page = tab.page
    tab.check()
    size = page.viewport_size
    assert size
    for width in (768, 1280, 1440, 390):
        page.set_viewport_size({"width": width, "height": 844})
        wide = page.evaluate("document.documentElement.scrollWidth")
        assert wide <= width, (name, width, wide)
    page.set_viewport_size(size)
    for scheme in schemes or ("light",):
        page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        found = Axe().run(page).response["violations"]
        faults = [(one["impact"], one["id"], one["nodes"][0]["html"][:200]) for one in found]
        assert not faults, (name, scheme, faults)
        if folder := os.environ.get("SCREENSHOTS"):
            page.screenshot(path=Path(folder) / f"portal-{name}-{scheme}.png", full_page=True)
    page.emulate_media(color_scheme="light")


@pytest.fixture
def shop(db: None) -> Organization:
    organization = Organization.objects.create(name="Shop")
    event_types.create(organization.pk, name="order.paid", description="It is paid.", examples=[{"total": 1}])
    return organization


@pytest.mark.slow
def test_a_tenant_repairs_an_endpoint_with_the_keyboard_alone(tab: Watched, site: str, shop: Organization) -> None:
    page = tab.page
    page.set_viewport_size({"width": 390, "height": 844})
    with Receiver(
        lambda request, number: Response(500 if request.path == "/wrong" else 200, {}, b"no such table")
    ) as to:
        page.goto(make_link(site, shop, name="ana@shop.example"))
        page.wait_for_url("**/portal/")
        assert "#" not in page.url
        look(tab, "empty")
        press(page, "Add your first endpoint")
        tab_to(page, "URL")
        page.keyboard.type("http://10.0.0.1/hook")
        press(page, "Add endpoint")  # the egress policy refuses the address, at the field
        assert "Address not allowed" in page.inner_text("#id_url_error")
        # A 422 is an error in the browser's console, and right.
        assert all("422" in alarm for alarm in tab.alarms())
        look(tab, "refused")
        assert page.evaluate("document.activeElement.id") == "id_url"
        page.keyboard.press("Control+A")
        page.keyboard.type(to.url("/wrong"))
        press(page, "Add endpoint")
        secret = page.inner_text("#secret")
        assert secret.startswith("whsec_")
        look(tab, "added")
        press(page, "Send test event")
        assert "HTTP 500" in page.inner_text("main")
        assert "no such table" in page.inner_text("pre.hostile")
        look(tab, "test-failed")
        press(page, "Edit endpoint")
        tab_to(page, "URL")
        page.keyboard.press("Control+A")
        page.keyboard.type(to.url("/right"))
        press(page, "Save")
        assert "The endpoint was saved." in page.inner_text("[role=status]")
        # The focus is on what was done, so that it is spoken, and Tab goes on from there.
        assert page.evaluate("document.activeElement.textContent") == "The endpoint was saved."
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.textContent") == "Endpoints"
        look(tab, "endpoint", "light", "dark")
        press(page, "Send test event")
        assert "The test event arrived" in page.inner_text("h1")
        press(page, "Back to the endpoint")
        press(page, "Rotate secret")
        look(tab, "rotate")
        press(page, "Rotate secret")
        assert page.inner_text("#secret") not in {"", secret}
        # Yesterday's lost webhook.
        endpoint = Subscription.objects.get()
        lost = make_delivery(
            make_event(shop, type="order.paid"), endpoint, "failed", attempt_count=1, last_error="http_status",
            last_status_code=500,
        )  # fmt: skip
        make_attempt(lost)
        Delivery.objects.filter(pk=lost.pk).update(created_at=timezone.now() - datetime.timedelta(hours=20))
        press(page, "Deliveries")
        tab_to(page, "Status")
        page.keyboard.type("failed")
        press(page, "Filter")
        look(tab, "deliveries")
        press(page, "order.paid")
        assert "out of order" in page.inner_text("main")
        look(tab, "delivery", "light", "dark")
        press(page, "Retry now")
        assert "We're trying again." in page.inner_text("[role=status]")
        lost.refresh_from_db()
        assert (lost.status, lost.cause) == ("pending", "manual")
        # The page follows what comes of it, and doesn't take the focus away.
        tab_to(page, "More")
        page.evaluate("window.spoken = []")
        page.evaluate(
            "new MutationObserver(all => all.forEach(one => window.spoken.push(one.type)))"
            ".observe(document.querySelector('#standing'), {childList: true, subtree: true, characterData: true})"
        )
        with page.expect_response("**/deliveries/**"):
            pass
        page.wait_for_timeout(300)
        assert page.evaluate("[window.spoken.length, document.activeElement.textContent]") == [0, "More"]
        Delivery.objects.filter(pk=lost.pk).update(status="delivered", last_error="", completed_at=timezone.now())
        make_attempt(lost, 2, error="", status_code=200)
        page.wait_for_selector("#standing.standing-delivered:not([data-follow])")
        page.wait_for_selector("text=Attempt 2")
        assert page.inner_text("#actions button") == "Send again"
        assert page.inner_text("#done") == "We tried again. This is the result."
        assert page.evaluate("document.activeElement.id") == "standing"  # what had it is gone
        look(tab, "delivered")
    for name in ("Event types", "Logs", "Help"):
        press(page, name)
        look(tab, name.lower().replace(" ", "-"), "light", "dark")
    press(page, "Sign out")
    assert "You have signed out" in page.inner_text("h1")
    look(tab, "signed-out")
    page.go_back()
    page.wait_for_selector("text=You aren't signed in")
    assert "shop.example" not in page.content()
    assert all("403" in alarm for alarm in tab.alarms())


@pytest.mark.slow
def test_the_pages_fit_a_phone_and_hostile_words_stay_words(tab: Watched, site: str, db: None, canary: str) -> None:
    rows = make_hostile_rows(canary, 3)
    organization = next(row for row in rows if isinstance(row, Organization))
    endpoint = next(row for row in rows if isinstance(row, Subscription))
    delivery = next(row for row in rows if isinstance(row, Delivery))
    page = tab.page
    page.set_viewport_size({"width": 390, "height": 844})
    page.goto(make_link(site, organization, name='"><b class=hostile>'))
    page.wait_for_url("**/portal/")
    for path in ("", f"endpoints/{endpoint.pk}", f"endpoints/{endpoint.pk}/edit", f"endpoints/{endpoint.pk}/recover",
                 "event-types", "deliveries", f"deliveries/{delivery.pk}", "logs", "help"):  # fmt: skip
        tab.visit(f"{site}/portal/{path}")
        look(tab, f"phone-{re.sub(r'[^a-z]', '-', path)[:20]}")
    page.goto(f"{site}/portal/open#forged.link")
    page.wait_for_selector("text=This link isn't valid")
    page.goto(make_link(site, organization))  # over the same address, as somebody pastes it
    page.wait_for_url("**/portal/")


# Words that hide, turn around, or don't end.
STRANGE = (
    "\u202egnol.exe\u202c", "\u2066\u2069\u200b\ufeff", "w" * 120, "\U0001f469\u200d\U0001f469\u200d\U0001f467" * 6,
    "\x01\x1b[31m\x7f", "\\x00\\u0000%00\u2400", "\u05e9\u05dc\u05d5\u05dd " * 5, "e" + "\u0301" * 40,
    "<b class=hostile>&amp;</b>",
)  # fmt: skip


def test_recoveries_and_the_log_of_changes_take_whatever_words_there_are(
    tab: Watched, site: str, shop: Organization
) -> None:
    everything = " ".join(STRANGE)
    row, _ = subscriptions.create(shop.pk, url="http://127.0.0.1:9/", event_types=["*"])
    Subscription.objects.filter(pk=row.pk).update(
        url=f"https://shop.example/{''.join(STRANGE)}/{'x' * 900}", description=everything[:500], uid=everything[:255],
        event_types=[one[:255] for one in STRANGE],
    )  # fmt: skip
    for words in STRANGE:
        make_event(shop, type=words[:255])
        failed = make_delivery(make_event(shop, type=words[:255]), row, "failed", attempt_count=1)
        make_attempt(failed, error="timeout", error_detail=words, response_body=words)
        AuditEntry.objects.create(
            organization=shop, actor="portal:x", action="subscription.change", target_name=words,
            detail={"portal_user": words},
        )  # fmt: skip
    since = (timezone.now() - datetime.timedelta(days=1)).isoformat()
    runs = [
        BulkRun.objects.create(
            kind="recover",
            subscription=row,
            organization_id=shop.pk,
            filters={"since": since},
            state=state,
            visited=2_147_483_647,
            queued=2_147_483_647,
            held=1_999_999_999,
            actor="portal:x",
            finished_at=None if state == "running" else timezone.now(),
        )
        for state in ("running", "done", "cancelled")
    ]
    page = tab.page
    page.set_viewport_size({"width": 390, "height": 844})
    page.goto(make_link(site, shop, name="شركة " + "w" * 90))
    page.wait_for_url("**/portal/")
    one = f"endpoints/{row.pk}"
    for name, path in {
        "recover": f"{one}/recover", "found": f"{one}/recover?since=2026-01-01T00:00", "rotate": f"{one}/secret",
        **{f"recovery-{run.state}": f"{one}/recoveries/{run.pk}" for run in runs},
        "changes": "logs?show=changes", "failed": "logs?failed", "strange": one, "list": "",
        "strange-deliveries": "deliveries", "strange-delivery": f"deliveries/{failed.pk}",
    }.items():  # fmt: skip
        tab.visit(f"{site}/portal/{path}")
        look(tab, name, "light", "dark")
        for hidden in ("\u202e", "\u2066", "\u200b", "\ufeff", "\x1b"):
            assert hidden not in page.content(), (name, hidden)
    tab.visit(f"{site}/portal/{one}/recover?since=2026-01-01T00:00")
    # The focus is on what was found, and the next stop is the button that sends it.
    assert page.evaluate("document.activeElement.tagName") == "H2"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Send them"
    # A recovery that ends while its page is open says so, in the same live region.
    tab.visit(f"{site}/portal/{one}/recoveries/{runs[0].pk}")
    tab_to(page, "Reload")
    page.evaluate("window.region = document.querySelector('#progress [aria-live]')")
    BulkRun.objects.filter(pk=runs[0].pk).update(state="done", finished_at=timezone.now())
    page.wait_for_selector("#progress:not([data-follow])")
    assert "Finished at" in page.evaluate("window.region.isConnected && window.region.textContent")
    assert page.evaluate("document.activeElement.id") == "progress"
    tab.check()


def test_a_secret_is_copied_also_where_the_clipboard_is_out_of_reach(
    tab: Watched, site: str, shop: Organization
) -> None:
    """As in the frame of another site, whose permission the browser asks for."""
    page = tab.page
    page.add_init_script("navigator.clipboard.writeText = () => Promise.reject(new Error('not allowed'))")
    page.goto(make_link(site, shop))
    page.goto(f"{site}/portal/endpoints/new")
    page.fill("#id_url", "https://a.example/")
    with page.expect_navigation():
        page.keyboard.press("Enter")
    secret = page.inner_text("#secret")
    tab_to(page, "Copy the secret")
    page.evaluate("document.addEventListener('copy', () => { window.copied = getSelection().toString() || "
                  "document.activeElement.value })")  # fmt: skip
    page.keyboard.press("Enter")
    page.wait_for_selector("button:text('Copied')")
    assert page.inner_text(".spoken") == "Copied"
    assert page.evaluate("window.copied") == secret
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "Copy the secret"
    # If that fails, too, it is selected, so that what the button says is true.
    page.evaluate("document.execCommand = () => false")
    page.keyboard.press("Enter")
    page.wait_for_selector("button:text('Press Ctrl+C')")
    assert page.inner_text(".spoken") == "Press Ctrl+C"
    field = "(() => {const e = document.activeElement; return e.value.slice(e.selectionStart, e.selectionEnd)})()"
    assert page.evaluate(field) == secret
    look(tab, "not-copied")


@pytest.fixture(scope="module")
def framed_site(django_db_setup: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str, Path]]:
    """Return the address of a web process whose portal a page may frame, that page's address, and the process's log."""
    from pytest_httpserver import HTTPServer

    folder = tmp_path_factory.mktemp("framed")
    with HTTPServer(host="localhost") as outside:
        allowed = f"http://localhost:{outside.port}"
        env = {
            "DATABASE_URL": postgres.url(str(connection.settings_dict["NAME"])), "PORTAL_FRAME_ORIGINS": allowed,
            "PORTAL_NAME": "Acme hooks", "PORTAL_COLOR": "#0f766e",
        }  # fmt: skip
        process, base = web(folder / "web.log", env=env, workers=1)
        outside.expect_request("/favicon.ico").respond_with_data("")
        _pages[allowed] = outside
        yield base, allowed, folder / "web.log"
        process.stop()


_pages: dict[str, Any] = {}


@pytest.mark.slow
def test_it_works_in_the_frame_of_an_allowed_site_and_in_no_other(
    chromium: Browser, framed_site: tuple[str, str, Path], shop: Organization, httpserver: Any
) -> None:
    base, allowed, log = framed_site
    context = chromium.new_context()
    context.set_default_timeout(30_000)
    page = context.new_page()
    url = make_link(base, shop)
    body = f'<!doctype html><iframe src="{url}" title="Webhooks" width="1000" height="700"></iframe>'
    _pages[allowed].expect_request("/").respond_with_data(body, content_type="text/html")
    page.goto(f"{allowed}/")
    frame = page.frame_locator("iframe")
    frame.locator("h1", has_text="Endpoints").wait_for()
    assert frame.locator(".brand").inner_text() == "Acme hooks"
    frame.get_by_role("link", name="Add your first endpoint").click()
    frame.get_by_label("URL").fill("https://a.example/hook")
    frame.get_by_role("button", name="Add endpoint").click()
    frame.locator("h1", has_text="Endpoint added").wait_for()  # its form came with the cookie, and with its token
    assert Subscription.objects.get().url == "https://a.example/hook"
    frame.get_by_role("button", name="Copy the secret").click()  # though the frame may not use the clipboard
    frame.locator(".spoken", has_text="Copied").wait_for()
    cookie = next(one for one in context.cookies() if one["name"] == "triggers_portal")
    assert (cookie["httpOnly"], cookie["secure"], cookie["sameSite"]) == (True, True, "None")
    # An origin that isn't allowed.
    httpserver.expect_request("/evil").respond_with_data(
        f'<!doctype html><iframe src="{base}/portal/help" title="x"></iframe>', content_type="text/html"
    )
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.goto(httpserver.url_for("/evil").replace("localhost", "127.0.0.1"))
    page.wait_for_function("() => true")
    assert [one for one in said if "frame-ancestors" in one]
    assert "How webhooks work" not in str([one.url for one in page.frames if one.url.startswith(base)])
    # Nor does it open a link.
    link = make_link(base, shop)
    httpserver.expect_request("/thief").respond_with_data(
        f'<!doctype html><iframe src="{link}" title="x"></iframe>', content_type="text/html"
    )
    said.clear()
    page.goto(httpserver.url_for("/thief").replace("localhost", "127.0.0.1"))
    page.wait_for_timeout(500)
    assert [one for one in said if "frame-ancestors" in one]
    assert PortalSession.objects.latest("created_at").opened_at is None
    context.close()
    written = log.read_text()
    assert "/portal/open" in written
    for secret in (url.partition("#")[2], cookie["value"]):
        assert secret not in written
