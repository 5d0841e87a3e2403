"""How long the console's pages take beside tables full of history."""

from __future__ import annotations

import urllib.parse
from typing import Any

from bench.figures import Figure
from bench.scenarios.bigtables import get_seconds, logged_in
from bench.stack import BenchStack
from devstack.demo_data import Demo, fill

DELIVERIES = 1_500_000
ORGANIZATIONS = 300
SUBSCRIPTIONS = 1000


def console(stack: BenchStack) -> list[Figure]:
    """1,500,000 deliveries of 1,000 subscriptions, 300 organizations: every page of the console."""
    demo = fill(DELIVERIES, ORGANIZATIONS, SUBSCRIPTIONS)
    stack.sql("VACUUM ANALYZE")
    stack.sql("CHECKPOINT")
    with stack.running_web():
        browser, root = logged_in(stack.url)
        return [
            Figure("console", name, get_seconds(browser, root + path) * 1000, "ms", "< 300")
            for name, path in _pages(stack, demo).items()
        ]


def _pages(stack: BenchStack, demo: Demo) -> dict[str, str]:
    """Return the path of each page by what it shows."""
    ((event, dedup),) = stack.sql("SELECT id, dedup_id FROM events_event WHERE dedup_id IS NOT NULL LIMIT 1")
    ((delivery,),) = stack.sql("SELECT id FROM webhooks_delivery WHERE status = 'failed' LIMIT 1")

    def listed(model: str, **query: Any) -> str:
        return f"/{model}/?{urllib.parse.urlencode(query)}"

    owner, deliveries, events = demo.organization, "webhooks/delivery", "events/event"
    return {
        "home, 1 hour": "/",
        "home, 24 hours": "/?span=24h",
        "home, 7 days": "/?span=7d",
        "home, 6 hours, one organization": f"/?span=6h&organization={owner}",
        "home, 6 hours, as a table": "/?span=6h&table=1",
        "home, the part that refreshes": "/live/?span=1h",
        "page of an endpoint": f"/webhooks/subscription/{demo.healthy}/change/",
        "page of a dead endpoint": f"/webhooks/subscription/{demo.dead}/change/?span=7d",
        "deliveries": listed(deliveries),
        "deliveries, oldest first": listed(deliveries, o="1"),
        "deliveries, failed": listed(deliveries, status="failed"),
        "deliveries, pending": listed(deliveries, status="pending"),
        "deliveries, failed, last hour, one organization": listed(
            deliveries, status="failed", created="1h", organization=owner
        ),
        "deliveries, part of a host": listed(deliveries, q="acme.example"),
        "deliveries, an organization's name": listed(deliveries, q="Acme"),
        "deliveries, a type": listed(deliveries, q="order.paid"),
        "deliveries, payload text, last hour": listed(deliveries, q="C-4242", created="1h"),
        "deliveries, dedup id": listed(deliveries, q=dedup),
        "delivery": f"/webhooks/delivery/{delivery}/change/",
        "events": listed(events),
        "events, a type": listed(events, q="order.paid"),
        "events, payload text, last hour": listed(events, q="C-4242", created="1h"),
        "event": f"/events/event/{event}/change/",
        "attempts": listed("webhooks/deliveryattempt"),
        "attempts, failed": listed("webhooks/deliveryattempt", outcome="failed"),
        "subscriptions": listed("webhooks/subscription"),
        "subscriptions, part of a host": listed("webhooks/subscription", q="acme.example"),
        "organizations": listed("orgs/organization"),
        "audit log": listed("orgs/auditentry"),
    }
