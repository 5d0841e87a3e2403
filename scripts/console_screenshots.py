"""Takes the pictures of docs/images: the console's pages on a busy installation, light and dark.

    .venv/bin/python -m scripts.console_screenshots

Starts servers and processes of its own under .local/screenshots.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, sync_playwright

from devstack.browser import find_chromium
from devstack.demo_data import Demo, fill
from devstack.processes import ROOT
from devstack.stack import Stack, forget_settings_of_the_shell

IMAGES = ROOT / "docs" / "images"
NAME, PASSWORD = "olga", "correct horse battery"
WIDTH, HEIGHT = 1280, 900


def pictures(demo: Demo, inbox: str) -> dict[str, tuple[str, bool]]:
    """Return the path of each page, and whether all of it is shown, by the picture's name."""
    return {
        "home": ("/?span=1h", True),
        "endpoint": (f"/webhooks/subscription/{demo.dead}/change/?span=24h", False),
        "deliveries": ("/webhooks/delivery/?status=failed", False),
        "inbox": (f"/webhooks/subscription/{inbox}/change/", False),
    }


def make_inbox(demo: Demo) -> str:
    """Make an inbox with something in each state, and return its id."""
    from events.ingest import ingest
    from events.payload import NewEvent
    from orgs.models import Organization
    from webhooks import subscriptions
    from webhooks.destinations.inbox import leases
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
    lease, events = leases.fetch(inbox.pk, 40, 3600)
    ids = [event.delivery_id for event in events]
    leases.acknowledge(inbox.pk, ids[:25], lease)
    leases.give_back(inbox.pk, ids[25:28], 0, lease)
    return str(inbox.pk)


def take(browser: Browser, base: str, demo: Demo, inbox: str, folder: Path) -> None:
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
        for name, (path, is_full) in pictures(demo, inbox).items():
            page.goto(f"{base}/admin{path}")
            page.screenshot(path=folder / f"{name}-{scheme}.png", full_page=is_full)
        context.close()


def main() -> int:
    """Fill a database, start web and two workers, take the pictures."""
    forget_settings_of_the_shell()
    stack = Stack(ROOT / ".local" / "screenshots")
    try:
        stack.start()
        stack.empty()
        stack.set_django_up()
        demo = fill(20_000, organizations=40, subscriptions=160)
        inbox = make_inbox(demo)
        stack.sql("VACUUM ANALYZE")
        from django.contrib.auth.models import User

        User.objects.filter(username=NAME).delete()
        User.objects.create_superuser(NAME, password=PASSWORD)
        stack.start_web(1)
        stack.start_workers({}, {})
        found = find_chromium()
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path=str(found.program), env={**os.environ, **found.env}, timeout=60_000
            )
            # Django's ORM refuses to be used under Playwright's loop; nothing below uses it.
            take(browser, stack.url, demo, inbox, IMAGES)
            browser.close()
    finally:
        stack.stop()
    print(*sorted(path.name for path in IMAGES.glob("*.png")), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
