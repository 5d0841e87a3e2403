"""The addresses of the pages, lists, and answers that are measured beside tables full of history."""

from __future__ import annotations

import urllib.parse
from typing import Any

from bench.stack import BenchStack
from devstack.demo_data import Demo


def console_pages(stack: BenchStack, demo: Demo) -> dict[str, str]:
    """Return the path of each page of the console by what it shows: a table, with no further steps."""
    event, dedup, delivery, attempt = _examples(stack, demo)

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
        "deliveries, failed, oldest first": listed(deliveries, status="failed", o="1"),
        "deliveries, failed in the last hour": listed(deliveries, status="failed-1h"),
        "deliveries, failed with a timeout": listed(deliveries, status="failed", outcome="timeout"),
        "deliveries, pending": listed(deliveries, status="pending"),
        "deliveries, retrying": listed(deliveries, status="retrying"),
        "deliveries, held": listed(deliveries, status="held"),
        "deliveries, in flight": listed(deliveries, status="delivering"),
        "deliveries, delivered, last hour": listed(deliveries, status="delivered", created="1h"),
        "deliveries, last 7 days": listed(deliveries, created="7d"),
        "deliveries, one organization": listed(deliveries, organization=owner),
        "deliveries, one organization, retrying": listed(deliveries, organization=owner, status="retrying"),
        "deliveries, one endpoint": listed(deliveries, subscription=demo.healthy),
        "deliveries, one endpoint, failed": listed(deliveries, subscription=demo.healthy, status="failed"),
        "deliveries, one event": listed(deliveries, event=event),
        "deliveries, failed, last hour, one organization": listed(
            deliveries, status="failed", created="1h", organization=owner
        ),
        "deliveries, part of a host": listed(deliveries, q="acme.example"),
        "deliveries, an organization's name": listed(deliveries, q="Acme"),
        "deliveries, a type": listed(deliveries, q="order.paid"),
        "deliveries, a type, last hour, one organization": listed(
            deliveries, q="order.paid", created="1h", organization=owner
        ),
        "deliveries, part of many hosts": listed(deliveries, q="example.com"),
        "deliveries, part of a URL": listed(deliveries, q="incoming/42"),
        "deliveries, an id": listed(deliveries, q=delivery),
        "deliveries, an event's id": listed(deliveries, q=event),
        "deliveries, nothing of the kind": listed(deliveries, q="no.such.thing"),
        "deliveries, payload text, last hour": listed(deliveries, q="C-4242", created="1h"),
        "deliveries, payload text that isn't there, last 7 days": listed(deliveries, q="nowhere", created="7d"),
        "deliveries, dedup id": listed(deliveries, q=dedup),
        "delivery": f"/webhooks/delivery/{delivery}/change/",
        "events": listed(events),
        "events, oldest first": listed(events, o="1"),
        "events, in error": listed(events, status="error"),
        "events, accepted": listed(events, status="accepted"),
        "events, one organization": listed(events, organization=owner),
        "events, a type": listed(events, q="order.paid"),
        "events, a dedup id": listed(events, q=dedup),
        "events, an id": listed(events, q=event),
        "events, payload text, last hour": listed(events, q="C-4242", created="1h"),
        "event": f"/events/event/{event}/change/",
        "attempts": listed("webhooks/deliveryattempt"),
        "attempts, failed": listed("webhooks/deliveryattempt", outcome="failed"),
        "attempts, one delivery": listed("webhooks/deliveryattempt", delivery=delivery),
        "attempt": f"/webhooks/deliveryattempt/{attempt}/change/",
        "subscriptions": listed("webhooks/subscription"),
        "subscriptions, part of a host": listed("webhooks/subscription", q="acme.example"),
        "subscriptions, failing": listed("webhooks/subscription", state="failing"),
        "subscriptions, one organization": listed("webhooks/subscription", organization=owner),
        "organizations": listed("orgs/organization"),
        "organizations, part of a name": listed("orgs/organization", q="Acme"),
        "organization": f"/orgs/organization/{owner}/change/",
        "keys": listed("orgs/apikey"),
        "event types": listed("events/eventtype"),
        "bulk runs": listed("webhooks/bulkrun"),
        "audit log": listed("orgs/auditentry"),
    }


def portal_pages(stack: BenchStack, demo: Demo) -> dict[str, str]:
    """Return the path of each page of the portal, for the organization with the most deliveries."""
    _, _, delivery, _ = _examples(stack, demo)
    one, deliveries = "/portal/endpoints", "/portal/deliveries"
    return {
        "endpoints": "/portal/",
        "endpoint, 24 hours": f"{one}/{demo.healthy}",
        "endpoint, 6 hours": f"{one}/{demo.healthy}?span=6h",
        "a dead endpoint": f"{one}/{demo.dead}",
        "deliveries": deliveries,
        "deliveries, failed": f"{deliveries}?status=failed",
        "deliveries, retrying": f"{deliveries}?status=retrying",
        "deliveries, a type": f"{deliveries}?type=order.paid",
        "deliveries, a rare type, failed": f"{deliveries}?type=no.such&status=failed",
        "deliveries, one endpoint": f"{deliveries}?endpoint={demo.healthy}",
        "deliveries, one endpoint, failed": f"{deliveries}?endpoint={demo.healthy}&status=failed",
        "delivery": f"{deliveries}/{delivery}",
        "event types": "/portal/event-types",
        "logs": "/portal/logs",
    }


def api_answers(stack: BenchStack, demo: Demo) -> dict[str, str]:
    """Return the path of each list of the API, for the same organization."""
    event, _, delivery, _ = _examples(stack, demo)
    ((hour_ago,),) = stack.sql("SELECT to_char(now() - interval '1 hour', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"')")
    mine = f"deliveries?subscription_id={demo.healthy}"
    return {
        "deliveries": "deliveries",
        "deliveries, 100 of them": "deliveries?limit=100",
        **{
            f"deliveries, {status}": f"deliveries?status={status}"
            for status in ("failed", "retrying", "delivered", "held")
        },
        "deliveries of one endpoint": mine,
        "deliveries of one endpoint, failed": f"{mine}&status=failed",
        "deliveries of an event": f"deliveries?event_id={event}",
        "deliveries since an hour ago": f"deliveries?since={hour_ago}",
        "deliveries until an hour ago": f"deliveries?until={hour_ago}",
        "one delivery": f"deliveries/{delivery}",
        "events": "events",
        "events of a type": "events?type=order.paid",
        "events, undelivered": "events?undelivered=true",
        "events, in error": "events?status=error",
        "one event": f"events/{event}",
        "subscriptions": "subscriptions",
        "subscriptions, failing": "subscriptions?state=failing",
        "event types": "event-types",
        "keys": "keys",
        "audit": "audit",
        "health": "health",
        "health, detailed": "health/detailed",
    }


def _examples(stack: BenchStack, demo: Demo) -> tuple[Any, ...]:
    """Return an event, its dedup id, a failed delivery, and an attempt of it, all of the large organization."""
    return stack.sql(
        "WITH e AS (SELECT id, dedup_id FROM events_event WHERE organization_id = %(org)s AND dedup_id IS NOT NULL"
        " AND status = 'processed' ORDER BY created_at DESC, id DESC LIMIT 1),"
        " d AS (SELECT id FROM webhooks_delivery WHERE organization_id = %(org)s AND status = 'failed'"
        " ORDER BY created_at DESC LIMIT 1)"
        " SELECT e.id, e.dedup_id, d.id, (SELECT id FROM webhooks_deliveryattempt WHERE delivery_id = d.id LIMIT 1)"
        " FROM e, d",
        {"org": demo.organization},
    )[0]
