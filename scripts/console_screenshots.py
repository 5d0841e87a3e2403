"""Takes the pictures of docs/images: the console's pages on a busy installation, light and dark.

    .venv/bin/python -m scripts.console_screenshots

Starts its own servers and processes under .local/screenshots.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, sync_playwright

from devstack.browser import find_chromium
from devstack.demo_data import Demo, fill
from devstack.http_receiver import Received, Receiver, Response
from devstack.processes import ROOT
from devstack.stack import Stack, forget_settings_of_the_shell, stop_on_signals
from devstack.waiting import wait_until

IMAGES = ROOT / "docs" / "images"
NAME, PASSWORD = "olga", "correct horse battery"
WIDTH, HEIGHT = 1280, 900
# Of the whole page; 100 is more than what stands above and below the part that scrolls.
_HEIGHT = "Math.max(document.body.scrollHeight, (document.querySelector('.main > .content')?.scrollHeight ?? 0) + 100)"


def pictures(demo: Demo, inbox: str, key: str, delivery: str) -> dict[str, tuple[str, bool, str]]:
    """Return each page's path, whether all of it is shown, and the button to press there, by the picture's name."""
    return {
        "home": ("/?span=1h", True, ""),
        "endpoint": (f"/webhooks/subscription/{demo.dead}/change/?span=24h", False, ""),
        "deliveries": ("/webhooks/delivery/?status=failed", False, ""),
        "inbox": (f"/webhooks/subscription/{inbox}/change/", False, ""),
        "key": (f"/orgs/apikey/{key}/change/", False, ""),
        "exchange": (f"/webhooks/delivery/{delivery}/change/", True, ""),
        "stop-host": (f"/webhooks/subscription/{demo.dead}/change/", False, "stop_host"),
    }


def make_key(demo: Demo) -> str:
    """Make an API key that somebody has revoked, and return its id."""
    from orgs import audit, keys
    from orgs.models import Organization

    organization = Organization.objects.get(pk=demo.organization)
    key, _ = keys.create_api_key(organization, name="The shop's server")
    keys.revoke(key)
    audit.record(
        "key.revoke", actor="user:nina", organization_id=organization.pk, target=key.pk, name=str(key),
        reason="It stood on a public web page.",
    )  # fmt: skip
    return str(key.pk)


def make_delivery(demo: Demo, url: str) -> str:
    """Let an event be delivered to an endpoint that fails, and return the delivery's id."""
    from events.ingest import ingest
    from events.payload import NewEvent
    from webhooks import subscriptions
    from webhooks.models import Delivery

    subscription, _ = subscriptions.create(
        demo.organization, url=url, event_types=["invoice.paid"], headers={"X-Shop-Token": "secret"}
    )
    ingest(demo.organization, NewEvent("invoice.paid", '{"invoice": "2026-1187", "total": "129.90"}', "invoice-1187"))
    found = Delivery.objects.filter(subscription=subscription, attempt_count__gt=0)
    wait_until(found.exists)
    return str(found.get().pk)


def break_down(request: Received, number: int) -> Response:
    """Return what an endpoint returns whose database is away."""
    return Response(500, {"content-type": "application/json"}, b'{"error": "The database does not respond."}')


def make_inbox(demo: Demo) -> str:
    """Make an inbox with something in each state, and return its id."""
    from events.ingest import ingest
    from events.payload import NewEvent
    from orgs.models import Organization
    from webhooks import subscriptions
    from webhooks.destinations.inbox import fetching
    from webhooks.models import Subscription
    from webhooks.routing.fan_out import FanOut

    organization = Organization.objects.get(pk=Subscription.objects.get(pk=demo.dead).organization_id)
    inbox, _ = subscriptions.create(
        organization.pk, inbox="warehouse", event_types=["stock.*"], description="The warehouse's own computer"
    )
    for number in range(60):
        ingest(organization.pk, NewEvent("stock.changed", f'{{"item": "P-{1000 + number}", "left": {number}}}', None))
    while FanOut().run_round(1000).seen:
        pass
    lease, events = fetching.fetch(inbox.pk, 40, 3600)
    ids = [event.delivery_id for event in events]
    fetching.acknowledge(inbox.pk, ids[:25], lease)
    fetching.give_back(inbox.pk, ids[25:28], 0, lease)
    return str(inbox.pk)


def take(browser: Browser, base: str, shown: dict[str, tuple[str, bool, str]], folder: Path) -> None:
    """Write every picture, light and dark, into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    schemes: tuple[Any, ...] = ("light", "dark")
    for scheme in schemes:
        context = browser.new_context(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme=scheme)
        page = context.new_page()
        page.goto(f"{base}/admin/login/?next=/admin/")
        page.fill("#id_username", NAME)
        page.fill("#id_password", PASSWORD)
        with page.expect_navigation():
            page.click("[type=submit]")
        for name, (path, is_full, button) in shown.items():
            page.goto(f"{base}/admin{path}")
            if button:
                page.click(f".object-actions button[value={button}]")
            if is_full:  # the part beside the sidebar scrolls, not the page
                height = page.evaluate(
                    "Math.max(...[...document.querySelectorAll('html, #main')].map(e => e.scrollHeight))"
                )
                page.set_viewport_size({"width": WIDTH, "height": height})
            page.screenshot(path=folder / f"{name}-{scheme}.png")
            page.set_viewport_size({"width": WIDTH, "height": HEIGHT})
        context.close()


def main() -> int:
    """Fill a database, start web and two workers, take the pictures."""
    forget_settings_of_the_shell()
    stop_on_signals()
    stack = Stack(ROOT / ".local" / "screenshots")
    try:
        stack.start()
        stack.empty()
        stack.set_django_up()
        demo = fill(20_000, organizations=40, subscriptions=160)
        inbox, key = make_inbox(demo), make_key(demo)
        stack.sql("VACUUM ANALYZE")
        from django.contrib.auth.models import User

        User.objects.filter(username=NAME).delete()
        User.objects.create_superuser(NAME, password=PASSWORD)
        stack.start_web(1)
        stack.start_workers({}, {})
        with Receiver(break_down) as endpoint:
            shown = pictures(demo, inbox, key, make_delivery(demo, endpoint.url("/webhooks")))
            found = find_chromium()
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(
                    executable_path=str(found.program), env={**os.environ, **found.env}, timeout=60_000
                )
                # Django's ORM refuses to be used under Playwright's loop; nothing below uses it.
                take(browser, stack.url, shown, IMAGES)
                browser.close()
    finally:
        stack.stop()
    print(*sorted(path.name for path in IMAGES.glob("*.png")), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
