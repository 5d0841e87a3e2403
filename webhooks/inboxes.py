"""Finds an organization's inboxes, and makes its default one at its first use."""

from __future__ import annotations

import datetime
import re
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass

import structlog
from django.db import IntegrityError, transaction
from django.db.models.functions import Now
from psycopg.rows import class_row

from core.db import after_transaction, in_transaction, server_cursor
from events.models import Event, EventStatus
from events.payload import EVERYTHING
from orgs.models import Organization
from webhooks import subscriptions
from webhooks.destinations.inbox.arrivals import announce_arrivals
from webhooks.models import BulkRun, DeliveryStatus, DestinationKind, Subscription
from webhooks.routing.insert import NewDeliveries
from webhooks.routing.selection import wanted_events
from webhooks.upkeep import recovery

log = structlog.get_logger()

DEFAULT = "default"
MAX_NAME = 64
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
NAME_RULE = f"must be 1 to {MAX_NAME} letters, digits, `.`, `_`, and `-`, the first of them a letter or digit"
# How long the first use of the default inbox fills it; workers do the rest.
FILL_SECONDS = 0.5
# How many of the oldest events that wait for their fan-out it takes; the fan-out adds the others.
ACCEPTED_AT_ONCE = 500


@dataclass(frozen=True, slots=True)
class Inbox:
    """An inbox, and how long its organization keeps what is settled."""

    id: uuid.UUID
    organization_id: uuid.UUID
    name: str
    is_active: bool
    disabled_reason: str
    retention_days: int


# SQL, because it runs on every fetch: the ORM takes longer than the query.
_SELECT = """
SELECT s.id, s.organization_id, s.inbox AS name, s.is_active, s.disabled_reason, o.retention_days
FROM webhooks_subscription s JOIN orgs_organization o ON o.id = s.organization_id
"""
_FIND = f"{_SELECT} WHERE s.organization_id = %s AND s.kind = 'inbox' AND s.inbox = %s AND s.deleted_at IS NULL"
_FIND_AGAIN = f"{_SELECT} WHERE s.id = %s AND s.deleted_at IS NULL"


def find(organization_id: uuid.UUID, name: str = DEFAULT) -> Inbox | None:
    """Return the organization's inbox of this name."""
    with server_cursor(class_row(Inbox)) as cursor:
        return cursor.execute(_FIND, (organization_id, name)).fetchone()


def find_again(inbox_id: uuid.UUID) -> Inbox | None:
    """Return an inbox that was found earlier, as it is now; None if it was deleted meanwhile."""
    with server_cursor(class_row(Inbox)) as cursor:
        return cursor.execute(_FIND_AGAIN, (inbox_id,)).fetchone()


def find_or_make_default(organization_id: uuid.UUID, audit: Callable[[Subscription], None]) -> Inbox:
    """Return the default inbox, and make it if there is none, with what is undelivered.

    audit: writes the audit entry, in the transaction that makes it.  Raises subscriptions.TooManySubscriptions.
    """
    inbox = find(organization_id)
    if inbox is not None:
        return inbox
    try:
        with transaction.atomic():
            made, _ = subscriptions.create(organization_id, inbox=DEFAULT, event_types=[EVERYTHING])
            days = Organization.objects.values_list("retention_days", flat=True).get(pk=organization_id)
            run = recovery.start(made, made.created_at - datetime.timedelta(days=days), undelivered=True)
            audit(made)
    except IntegrityError:
        pass  # another request has made it
    else:
        _fill(made, run.pk)
    inbox = find(organization_id)
    if inbox is None:
        raise LookupError("the default inbox was deleted meanwhile")
    return inbox


def _fill(subscription: Subscription, run_id: uuid.UUID) -> None:
    """Put in what is undelivered, the oldest first, for a while.  Workers do the rest."""
    ends = time.monotonic() + FILL_SECONDS
    while time.monotonic() < ends:
        run = recovery.advance(run_id)
        if run is None or run.state != BulkRun.State.RUNNING:
            break
    in_transaction(lambda: _add_accepted(subscription))
    after_transaction(lambda: announce_arrivals([subscription.pk]))


def _add_accepted(subscription: Subscription) -> None:
    """Put in some of the events that wait for their fan-out, so that whoever has just sent one finds it here.

    Only some, and none that a fan-out is processing, so that nothing waits for this: fan-outs put the others in.
    """
    waiting = Event.objects.filter(
        organization_id=subscription.organization_id, status=EventStatus.ACCEPTED, due_at__lte=Now()
    )
    locked = waiting.order_by("created_at", "id").select_for_update(no_key=True, skip_locked=True, of=("self",))
    events = list(locked.only("id", "type", "channels")[:ACCEPTED_AT_ONCE])
    deliveries = NewDeliveries()
    types = {event.id: event.type for event in events}
    for event_id in wanted_events(subscription, events):
        deliveries.add(
            subscription.organization_id, event_id, [subscription.pk], DeliveryStatus.PENDING,
            inbox_type=types[event_id],
        )  # fmt: skip
    if len(deliveries):
        with server_cursor() as cursor:
            deliveries.insert(0.0, cursor, cursor)
            deliveries.mark_queues(0.0, cursor)


def is_inbox(subscription: Subscription) -> bool:
    """Return whether deliveries to the subscription are fetched, not sent."""
    return subscription.kind == DestinationKind.INBOX
