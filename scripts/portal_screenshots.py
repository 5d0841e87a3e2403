"""Takes the pictures of docs/images that begin with `portal-`: a tenant's pages, and the portal in a frame.

    .venv/bin/python -m scripts.portal_screenshots [FOLDER]

With a FOLDER, writes pictures of every page there instead, at 1280 and at 390 pixels, light and dark.  Starts servers
and processes of its own under .local/screenshots.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import urllib.request
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, sync_playwright

from devstack.browser import find_chromium
from devstack.demo_data import Demo, fill
from devstack.http_receiver import Receiver, Response
from devstack.processes import ROOT
from devstack.stack import Stack, forget_settings_of_the_shell
from devstack.waiting import wait_until

IMAGES = ROOT / "docs" / "images"
SCHEMES: tuple[Any, ...] = ("light", "dark")
LOGO = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32">
<rect width="32" height="32" rx="9" fill="#0f766e"/>
<path d="M9 21c0-8 5-12 14-12 0 9-5 14-14 12Zm0 0 7-7" fill="none" stroke="#fff" stroke-width="2.4"/></svg>"""
HOST_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Acme</title><style>
body{{margin:0;font:15px/1.5 "DejaVu Sans",sans-serif;display:grid;grid-template-columns:200px 1fr;min-height:100vh}}
nav{{background:#12332f;color:#d7e8e5;padding:22px 18px}} nav b{{display:block;font-size:18px;margin-bottom:20px}}
nav p{{margin:0 0 10px}} nav p.on{{color:#fff;font-weight:600}}
iframe{{border:0;width:100%;height:100%;min-height:860px;display:block}}
</style><nav><b>Acme Shop</b><p>Orders</p><p>Customers</p><p>Invoices</p><p class=on>Webhooks</p><p>Settings</p></nav>
<iframe src="{url}" title="Webhooks"></iframe></html>"""


def serve(folder: Path) -> ThreadingHTTPServer:
    """Serve a folder, as the application that has the portal in a frame does."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def call(base: str, key: str, path: str, body: Any = None) -> Any:
    """Call the API."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(base + path, data, {"X-API-Key": key, "Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as response:
        return json.load(response)


def prepare(demo: Demo) -> str:
    """Give the demo's organization a name, event types, and a key; return the key."""
    from django.utils import timezone

    from events import event_types
    from orgs.keys import create_api_key
    from orgs.models import Organization
    from webhooks import subscriptions
    from webhooks.models import Subscription, SubscriptionQueue

    Organization.objects.filter(pk=demo.organization).update(name="Acme Shop")
    endpoints = {
        demo.dead: ("https://erp.acme.example/webhooks", "Syncs orders to the ERP"),
        demo.slow: ("https://mail.acme.example/hooks/orders", "Emails customers"),
        demo.disabled: ("https://old.acme.example/hook", "The old store"),
        demo.healthy: ("https://shop.acme.example/api/webhooks", "The online store"),
    }
    for pk, (url, description) in endpoints.items():
        # Workers run: with its own types, none of them is sent anything while the pictures are taken.
        types = ["order.*", "invoice.sent"]
        Subscription.objects.filter(pk=pk).update(url=url, description=description, event_types=types)
    others = subscriptions.of_organization(demo.organization).exclude(pk__in=list(endpoints))
    others.update(deleted_at=timezone.now(), is_active=False)
    SubscriptionQueue.objects.filter(pk=demo.healthy).update(last_success_at=timezone.now())
    for name, text, example in (
        ("order.created", "A customer placed an order.", {"id": "A-1041", "total": "59.90", "currency": "EUR"}),
        ("order.paid", "An order was paid in full.", {"id": "A-1041", "paid_at": "2026-01-31T12:00:00Z"}),
        ("invoice.sent", "An invoice was sent to the customer.", {"number": "2026-118", "order": "A-1041"}),
    ):
        event_types.create(demo.organization, name=name, description=text, examples=[example])
    return create_api_key(demo.organization, name="screenshots")[1]


def settle(page: Page) -> None:
    """Wait until what was loaded is drawn."""
    page.wait_for_load_state("networkidle")


def open_portal(browser: Browser, base: str, key: str, **view: Any) -> Page:
    """Return a page with a session."""
    context = browser.new_context(**view)
    page = context.new_page()
    page.goto(call(base, key, "/api/portal-links", {"name": "ana@acme.example"})["url"])
    page.wait_for_url("**/portal/")
    return page


def take_all(browser: Browser, base: str, key: str, paths: dict[str, str], folder: Path) -> None:
    """Write pictures of every page in each width and scheme."""
    folder.mkdir(parents=True, exist_ok=True)
    for width, scheme in ((1280, "light"), (1280, "dark"), (390, "light")):
        page = open_portal(browser, base, key, viewport={"width": width, "height": 860}, color_scheme=scheme)
        for name, path in paths.items():
            page.goto(base + path)
            settle(page)
            page.screenshot(path=folder / f"{name}-{width}-{scheme}.png", full_page=True)
            wide = page.evaluate("document.documentElement.scrollWidth")
            if wide > width:
                print(f"{name} is {wide} wide at {width}")
        page.context.close()


def take(browser: Browser, base: str, key: str, paths: dict[str, str], host: str, hosts: Path) -> None:
    """Write the pictures of the documentation."""
    for scheme in SCHEMES:
        page = open_portal(browser, base, key, viewport={"width": 1280, "height": 900}, color_scheme=scheme)
        for name in ("endpoints", "endpoint", "delivery"):
            page.goto(base + paths[name])
            settle(page)
            page.screenshot(path=IMAGES / f"portal-{name}-{scheme}.png")
        page.context.close()
    (hosts / "index.html").write_text(HOST_PAGE.format(url=call(base, key, "/api/portal-links", {})["url"]))
    page = browser.new_context(viewport={"width": 1280, "height": 860}).new_page()
    page.goto(host)
    page.frame_locator("iframe").locator("h1", has_text="Endpoints").wait_for()
    settle(page)
    page.screenshot(path=IMAGES / "portal-frame.png")
    page.context.close()
    page = open_portal(browser, base, key, viewport={"width": 390, "height": 844})
    page.goto(base + paths["endpoint"])
    settle(page)
    page.screenshot(path=IMAGES / "portal-phone.png")
    page.context.close()


def main() -> int:
    """Fill a database, start web and a worker, let a webhook fail, and take the pictures.

    With a folder as argument, pictures of every page in every width and scheme go there; without, the ones of the
    documentation are renewed, for which the portal gets a brand and a page that frames it.
    """
    forget_settings_of_the_shell()
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    stack = Stack(ROOT / ".local" / "screenshots")
    hosts = ROOT / ".local" / "screenshots" / "host"
    hosts.mkdir(parents=True, exist_ok=True)
    (hosts / "logo.svg").write_text(LOGO)
    server = serve(hosts)
    # Another site than the portal's, which is at 127.0.0.1: browsers tell sites apart by name.
    host = f"http://localhost:{server.server_address[1]}"
    brand = {} if folder else {
        "PORTAL_NAME": "Acme webhooks", "PORTAL_COLOR": "#0f766e", "PORTAL_LOGO_URL": f"{host}/logo.svg",
        "PORTAL_FRAME_ORIGINS": host,
    }  # fmt: skip
    receivers = contextlib.ExitStack()
    try:
        stack.start()
        stack.empty()
        stack.set_django_up()
        demo = fill(8_000, organizations=10, subscriptions=40)
        key = prepare(demo)
        stack.sql("VACUUM ANALYZE")
        allowed = {"WEBHOOK_ALLOWED_SUBNETS": "127.0.0.0/8"}
        stack.start_web(1, {**brand, **allowed})
        stack.start_workers(allowed)
        refusal = Response(500, {"Content-Type": "application/json"}, b'{"error": "customer C-17 is unknown"}')
        # Open until the pictures are taken: what is tried again meanwhile gets the same response.
        receiver = receivers.enter_context(Receiver(lambda request, number: refusal))
        body = {
            "url": receiver.url("/webhooks/parcels"),
            "event_types": ["parcel.*"],
            "description": "Updates the warehouse",
        }
        made = call(stack.url, key, "/api/subscriptions", body)
        event = {"type": "parcel.shipped", "data": {"id": "A-1041", "customer": "C-17", "carrier": "DHL"}}
        call(stack.url, key, "/api/events", event)
        listed = f"/api/deliveries?subscription={made['id']}&status=retrying"
        wait_until(lambda: call(stack.url, key, listed)["data"], "the webhook wasn't tried")
        delivery = call(stack.url, key, listed)["data"][0]["id"]
        one = "/portal/endpoints"
        paths = {
            "endpoints": "/portal/", "endpoint": f"{one}/{demo.slow}?span=6h", "paused": f"{one}/{demo.dead}",
            "fresh": f"{one}/{made['id']}", "new": f"{one}/new", "edit": f"{one}/{demo.slow}/edit",
            "rotate": f"{one}/{demo.slow}/secret", "recover": f"{one}/{demo.slow}/recover",
            "delivery": f"/portal/deliveries/{delivery}", "deliveries": "/portal/deliveries", "logs": "/portal/logs",
            "nothing": "/portal/deliveries?type=none.such", "missing": f"/portal/deliveries/{demo.dead}",
            "help": "/portal/help?language=go", "event-types": "/portal/event-types",
        }  # fmt: skip
        found = find_chromium()
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path=str(found.program), env={**os.environ, **found.env}, timeout=60_000
            )
            if folder:
                take_all(browser, stack.url, key, paths, folder)
                page = browser.new_context(viewport={"width": 1280, "height": 700}).new_page()
                page.goto(f"{stack.url}/portal/open#forged.link")
                page.wait_for_selector("h1")
                settle(page)
                page.screenshot(path=folder / "forged-1280-light.png")
            else:
                take(browser, stack.url, key, paths, host, hosts)
            browser.close()
    finally:
        receivers.close()
        server.shutdown()
        stack.stop()
    print(*sorted(path.name for path in (folder or IMAGES).glob("*.png")), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
