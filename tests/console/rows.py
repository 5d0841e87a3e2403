"""Rows of every kind that the admin shows, and links to its pages."""

from __future__ import annotations

import datetime
import uuid
from dataclasses import dataclass
from typing import Any

from django.db.models import Model
from django.urls import reverse
from django.utils import timezone

from events.models import Event, EventStatus, EventType
from orgs import audit
from orgs.keys import create_api_key
from orgs.models import ApiKey, AuditEntry, Organization
from portal.models import PortalSession
from webhooks import subscriptions
from webhooks.models import BulkRun, Delivery, DeliveryAttempt, DeliveryStatus, Subscription, SubscriptionQueue

URL = "http://127.0.0.1:9/hook"
HEADER_SECRET = "header-value-that-nobody-may-see"


@dataclass
class World:
    """One organization with something of everything."""

    organization: Organization
    key: ApiKey
    key_text: str
    subscription: Subscription
    secret: str
    event: Event
    error_event: Event
    deliveries: dict[str, Delivery]
    attempt: DeliveryAttempt
    run: BulkRun
    entry: AuditEntry
    event_type: EventType
    portal_session: PortalSession

    def rows(self) -> list[Model]:
        """Return one row of each model that belongs to an organization."""
        return [
            self.organization, self.key, self.subscription, self.event, self.deliveries["failed"], self.attempt,
            self.run, self.entry, self.event_type, self.portal_session,
        ]  # fmt: skip


def make_event(organization: Organization, **values: Any) -> Event:
    """Make a processed event."""
    given = {"type": "order.created", "data": '{"id": 1}', "status": EventStatus.PROCESSED, **values}
    return Event.objects.create(organization=organization, **given)


def make_delivery(event: Event, subscription: Subscription, status: str, **values: Any) -> Delivery:
    """Make a delivery in a state that its subscription's queue agrees with."""
    settled = status in {"delivered", "failed", "cancelled"}
    given = {
        "next_attempt_at": None if settled else timezone.now() + datetime.timedelta(hours=1),
        "completed_at": timezone.now() if settled else None,
        **values,
    }
    return Delivery.objects.create(
        organization_id=event.organization_id, event=event, subscription=subscription, status=status, **given
    )


def make_attempt(delivery: Delivery, number: int = 1, **values: Any) -> DeliveryAttempt:
    """Make a failed attempt."""
    given = {
        "cause": "schedule", "started_at": timezone.now(), "duration_ms": 12.5, "status_code": 500,
        "error": "http_status", "error_detail": "answered 500 Internal Server Error", "response_body": "out of order",
        **values,
    }  # fmt: skip
    return DeliveryAttempt.objects.create(delivery=delivery, number=number, **given)


def make_world(organization: Organization) -> World:
    """Make something of everything."""
    subscription, secret = subscriptions.create(
        organization.pk, url=URL, event_types=["order.*"], description="The shop", headers={"X-Token": HEADER_SECRET}
    )
    key, key_text = create_api_key(organization, name="shop")
    deliveries = {}
    event = make_event(organization, dedup_id="order-1")
    for status in DeliveryStatus.values:
        of = event if status == "failed" else make_event(organization)
        deliveries[status] = make_delivery(of, subscription, status)
    SubscriptionQueue.objects.filter(pk=subscription.pk).update(next_due_at=timezone.now())
    Delivery.objects.filter(pk=deliveries["failed"].pk).update(
        last_status_code=500, last_error="http_status", attempt_count=1
    )
    audit.record("key.create", actor="command:test", organization_id=organization.pk, target=key.pk)
    return World(
        organization, key, key_text, subscription, secret, event,
        make_event(organization, status=EventStatus.ERROR, last_error="ValueError: no way", type="order.broken"),
        deliveries, make_attempt(deliveries["failed"]),
        BulkRun.objects.create(
            kind="recover", subscription=subscription, organization_id=organization.pk,
            filters={"since": "2025-12-01T00:00:00+00:00"},
        ),
        AuditEntry.objects.get(action="key.create"),
        EventType.objects.create(organization=organization, name="order.created", schema={"type": "object"}),
        PortalSession.objects.create(
            organization=organization, key=key, name="ana@shop.example", link_hash=key.pk.bytes * 2,
            link_expires_at=timezone.now() + datetime.timedelta(hours=1), session_seconds=3600,
        ),
    )  # fmt: skip


def list_url(model: type[Model] | Model, **query: object) -> str:
    """Return the path of a model's list."""
    return reverse(f"admin:{model._meta.app_label}_{model._meta.model_name}_changelist", query=query)


def page_url(row: Model, what: str = "change") -> str:
    """Return the path of a row's page."""
    return reverse(f"admin:{row._meta.app_label}_{row._meta.model_name}_{what}", args=[row.pk])


def ask(client: Any, action: str, rows: list[Any], *, every: bool = False, query: Any = None, **words: str) -> Any:
    """Choose an action on rows as the list's form does; return the page that follows, which may ask to confirm it."""
    model = type(rows[0])
    chosen = [str(row.pk) for row in rows]
    return client.post(
        list_url(model, **(query or {})),
        {"action": action, "_selected_action": chosen, "select_across": "1" if every else "0", "index": "0", **words},
        follow=True,
    )


def act(client: Any, action: str, rows: list[Any], *, every: bool = False, query: Any = None, **words: str) -> Any:
    """Do an action on rows and confirm it; return the page that follows."""
    given = {"confirmed": "1", "reason": "for a test", "seen_at": timezone.now().isoformat(), "scope": "own", **words}
    return ask(client, action, rows, every=every, query=query, **given)


def said(response: Any) -> str:
    """Return what the admin told the operator."""
    return " ".join(str(message) for message in response.context["messages"]) if response.context else ""


def nobody() -> uuid.UUID:
    """Return an id that no row has."""
    return uuid.UUID("01900000-0000-7000-8000-000000000000")
