"""Rows of one organization, for the walks over every route."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
from django.utils import timezone

from events import event_types
from events.ingest import ingest
from events.payload import NewEvent
from orgs.keys import create_api_key
from orgs.models import Organization
from tests.webhooks.helpers import fan_out_batch
from webhooks import signing_secrets, subscriptions
from webhooks.models import BulkRun, Delivery, DeliveryAttempt
from webhooks.upkeep import recovery, replay


@pytest.fixture
def ids(organization: Organization) -> dict[str, Any]:
    """Return the ids of one row of everything, of `organization`."""
    subscription, _ = subscriptions.create(organization.id, url="https://a.example/", event_types=["*"])
    event = ingest(organization.id, NewEvent("a.b", '{"card":"tenant-data"}', None))
    fan_out_batch(10)
    run = recovery.start(subscription, datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC))
    delivery = Delivery.objects.get()
    attempt = DeliveryAttempt.objects.create(
        delivery=delivery, number=91_827_364, cause="schedule", started_at=timezone.now(), duration_ms=1.0
    )
    secret, _ = signing_secrets.add(subscription, audit=lambda added: None)
    event_type = event_types.create(organization.id, name="a.b", description="tenant-data")
    retry = replay.start({"org": organization.id}, organization.id, kind=BulkRun.Kind.RETRY)
    return {
        "retry_id": retry.id,
        "event_type_id": event_type.id,
        "key_id": create_api_key(organization, name="tenant-data")[0].id,
        "event_id": event.event_id,
        "item_id": event.event_id,
        "subscription_id": subscription.id,
        "hook_id": subscription.id,
        "delivery_id": delivery.id,
        "number": attempt.number,
        "run_id": run.id,
        "secret_id": secret.id,
    }
