"""A real browser, our web process on the tests' database, and a page that notices what it shouldn't see."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from django.conf import settings
from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY
from django.contrib.auth.models import Group, User
from django.contrib.sessions.backends.db import SessionStore
from django.db import connection, connections
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright
from playwright.sync_api import Error as PlaywrightError

from console.pages.staff import STAFF_GROUPS
from devstack.browser import NoBrowser, find_chromium
from devstack.processes import web
from tests.servers import postgres

_TABLES = (
    "webhooks_rollup, webhooks_gauge, webhooks_notice, webhooks_operatormessage, portal_portalsession, "
    "webhooks_deliveryattempt, webhooks_delivery, webhooks_subscriptionqueue, webhooks_bulkrun, webhooks_subscription, "
    "events_event, events_dedupkey, orgs_idempotencykey, orgs_apikey, orgs_auditentry, orgs_organization, "
    "auth_user, django_admin_log, django_session, axes_accessattempt"
)
PASSWORD = "correct horse battery"

# Our pages take nobody's markup: no element of the corpus, no handler in an attribute, no link that is a script.
_LOOK = """() => ({
    canary: window.canary ?? null,
    violations: window.policyViolations ?? [],
    hostile: [...document.querySelectorAll('.hostile')].filter(e => e.tagName != 'PRE').map(e => e.outerHTML),
    handlers: [...document.querySelectorAll('*')].filter(
        e => [...e.attributes].some(a => a.name.startsWith('on'))).map(e => e.outerHTML.slice(0, 200)),
    links: [...document.querySelectorAll('a[href],area[href]')].filter(
        e => /^(javascript|vbscript|data):/.test(e.protocol)).map(e => e.outerHTML.slice(0, 200)),
})"""
_SETTLE = "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done))))"
_REMEMBER = """
window.policyViolations = [];
document.addEventListener('securitypolicyviolation', (event) => window.policyViolations.push(
    `${event.effectiveDirective} ${event.blockedURI} ${event.sample}`));
"""


class Watched:
    """A tab, and what happened in it that shouldn't: see `alarms`.  canary: an address that must get no request."""

    def __init__(self, page: Page, canary: str) -> None:
        self.page = page
        self._canary = canary
        self._heard: list[str] = []
        page.add_init_script(_REMEMBER)
        page.on("dialog", self._on_dialog)
        page.on("request", self._on_request)
        page.on("pageerror", lambda error: self._heard.append(f"script error: {error}"))
        page.on("console", self._on_console)

    def _on_dialog(self, dialog: Any) -> None:
        self._heard.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def _on_request(self, request: Any) -> None:
        if request.url.startswith(self._canary):
            self._heard.append(f"request: {request.url}")

    def _on_console(self, message: Any) -> None:
        if message.type in {"error", "warning"}:
            self._heard.append(f"console: {message.text}")

    def alarms(self) -> list[str]:
        """Return what happened since the last call, and what is wrong with the page as it is now."""
        try:
            # Two frames and a turn of the event loop: what was going to start when the page was loaded has started.
            self.page.evaluate(_SETTLE)
            seen = self.page.evaluate(_LOOK)
        except PlaywrightError as error:  # the page went elsewhere meanwhile
            self._heard.append(f"navigation: {error}")
            self.page.wait_for_load_state()
            seen = self.page.evaluate(_LOOK)
        heard, self._heard = self._heard, []
        canary = [f"a script ran: {seen['canary']}"] if seen["canary"] is not None else []
        found = [f"{name}: {one}" for name in ("violations", "hostile", "handlers", "links") for one in seen[name]]
        return heard + canary + found

    def visit(self, url: str) -> None:
        """Open a page, which must come with 200, and check it."""
        answer = self.page.goto(url)
        assert answer is not None
        assert answer.status == 200, (url, answer.status)
        self.check()

    def check(self) -> None:
        """Check the page as it is now."""
        alarms = self.alarms()
        assert not alarms, (self.page.url, alarms)


def program_or_reason() -> Any:
    """Return a Chromium.  Without one the test is skipped with what to install; where CI is set, it fails with it."""
    try:
        return find_chromium()
    except NoBrowser as error:
        if os.environ.get("CI"):
            pytest.fail(str(error), pytrace=False)
        pytest.skip(str(error))


@pytest.fixture(scope="package")
def chromium() -> Iterator[Browser]:
    """Return a running Chromium."""
    found = program_or_reason()
    # Playwright keeps an event loop in this thread, in which Django wouldn't touch the database.
    # Under the loop it has other connections than outside: neither's may outlive its time.
    os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"] = "1"
    connections.close_all()
    try:
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path=str(found.program), env={**os.environ, **found.env}, timeout=60_000
            )
            yield browser
            connections.close_all()
            browser.close()
    finally:
        del os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"]


@pytest.fixture(scope="package")
def site(django_db_setup: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Return the base URL of our web process, which serves the tests' database."""
    env = {"DATABASE_URL": postgres.url(str(connection.settings_dict["NAME"]))}
    process, base = web(tmp_path_factory.mktemp("browser") / "web.log", env=env, workers=2)
    yield base
    process.stop()


@pytest.fixture
def canary(httpserver: Any) -> str:
    """Return an address on loopback that answers, and must get no request."""
    httpserver.expect_request("/c").respond_with_data("", content_type="text/plain")
    return str(httpserver.url_for("/c"))


@pytest.fixture
def context(chromium: Browser) -> Iterator[BrowserContext]:
    """Return a browser that knows nobody."""
    context = chromium.new_context()
    context.set_default_timeout(30_000)
    yield context
    context.close()


@pytest.fixture
def tab(context: BrowserContext, canary: str, httpserver: Any) -> Iterator[Watched]:
    """Return a tab; at the end nobody has asked for the canary."""
    yield Watched(context.new_page(), canary)
    assert not [request.path for request, _ in httpserver.log if request.path == urlsplit(canary).path]


@pytest.fixture
def db(django_db_setup: None, django_db_blocker: Any) -> Iterator[None]:
    """Let a test commit rows, which another process sees, and empty our tables after it.

    pytest-django's own way also makes Django's content types anew, whose ids the web process remembers.
    """
    with django_db_blocker.unblock():
        yield
        empty_tables()


def empty_tables() -> None:
    """Leave nothing behind for the next test."""
    with connection.cursor() as cursor:
        cursor.execute(f"TRUNCATE {_TABLES} CASCADE")
    Group.objects.exclude(name__in=STAFF_GROUPS).delete()


@pytest.fixture
def superuser(db: None) -> User:
    """Return a superuser."""
    user = User.objects.filter(username="olga").first()
    return user or User.objects.create(username="olga", is_staff=True, is_superuser=True, password="!")


@pytest.fixture
def staff_tab(tab: Watched, site: str, superuser: User) -> Watched:
    """Return a tab whose user is logged in.  That the form does the same is a test of its own."""
    session = SessionStore()
    session[SESSION_KEY] = str(superuser.pk)
    session[BACKEND_SESSION_KEY] = "django.contrib.auth.backends.ModelBackend"
    session[HASH_SESSION_KEY] = superuser.get_session_auth_hash()
    session.create()
    cookie = {"name": settings.SESSION_COOKIE_NAME, "value": str(session.session_key), "url": site}
    tab.page.context.add_cookies([cookie])  # type: ignore[list-item]
    return tab


def log_in(tab: Watched, site: str, name: str, password: str) -> None:
    """Fill in the log-in and send it."""
    tab.visit(f"{site}/admin/login/?next=/admin/")
    tab.page.fill("#id_username", name)
    tab.page.fill("#id_password", password)
    with tab.page.expect_navigation():
        tab.page.click("[type=submit]")
    tab.check()
