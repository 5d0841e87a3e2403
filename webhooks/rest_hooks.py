"""Subscribes as automation platforms do: by URL and event types, and safe to repeat.

A hook is a subscription to an endpoint.  The platform creates and deletes it with its requests, so a repeated request
must change nothing.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import orjson
from django.db import transaction
from django.db.models import QuerySet
from django.utils import timezone

from core.ids import derive_id
from core.query import newest
from events import event_types
from events.models import ERASED, Event, EventType
from events.payload import OPERATIONAL_PREFIX, matches
from events.queries import find_events
from orgs.models import Organization
from webhooks import subscriptions
from webhooks.destinations.base import StoredEvent
from webhooks.destinations.formats import standard_envelope
from webhooks.models import DestinationKind, Subscription


class AlreadySubscribed(Exception):
    """The URL is subscribed to other events.  subscription: the one that is."""

    def __init__(self, subscription: Subscription) -> None:
        super().__init__(subscription.pk)
        self.subscription = subscription


def of_organization(organization_id: uuid.UUID) -> QuerySet[Subscription]:
    """Return the organization's subscriptions to endpoints."""
    return subscriptions.of_organization(organization_id).filter(kind=DestinationKind.HTTP)


def subscribe(
    organization_id: uuid.UUID,
    url: str,
    types: list[str],
    description: str = "",
    *,
    filter: Mapping[str, Any] | None = None,
    channels: Sequence[str] = (),
    audit: Callable[[Subscription], None],
) -> tuple[Subscription, str]:
    """Return the subscription of this URL to these events, and its secret if it is new, else an empty text.

    It is the same one only if it gets the same events: those of these types that meet `filter` and have one of
    `channels`.  A request for all events must not be told that one with a filter exists. audit: writes the entry for a
    new one, in its transaction.  Raises AlreadySubscribed, and what `subscriptions.create` raises.
    """
    with transaction.atomic():
        # One at a time for each organization, as in `subscriptions.create`: a platform may repeat a request at once.
        Organization.objects.select_for_update(no_key=True).filter(pk=organization_id).first()
        existing = list(of_organization(organization_id).filter(url=url, is_operational=False).order_by("id"))
        for one in existing:
            same_types, same_channels = set(one.event_types) == set(types), set(one.channels) == set(channels)
            if same_types and same_channels and (one.filter or None) == (filter or None):
                return one, ""
        if existing:
            raise AlreadySubscribed(existing[0])
        created, secret = subscriptions.create(
            organization_id, url=url, event_types=types, description=description, filter=filter, channels=channels,
            is_hook=True,
        )  # fmt: skip
        audit(created)
        return created, secret


def was_deleted(organization_id: uuid.UUID, subscription_id: uuid.UUID) -> bool:
    """Return whether the organization had such a subscription.  Its row stays for a while."""
    rows = Subscription.objects.filter(organization_id=organization_id, kind=DestinationKind.HTTP)
    return rows.filter(pk=subscription_id, deleted_at__isnull=False).exists()


def samples(organization_id: uuid.UUID, pattern: str, most: int) -> list[bytes]:
    """Return the bodies that a hook for `pattern` would have received last, the newest first.

    Without any event, the examples in the catalog are taken for events of this moment.
    """
    rows = find_events(organization_id, {"type": pattern}).exclude(data=ERASED)
    rows = rows.exclude(type__startswith=OPERATIONAL_PREFIX)
    found = [_of_event(row) for row in newest(rows, most)]
    if not found:
        catalog = event_types.of_organization(organization_id).filter(archived_at=None).order_by("name")
        found = [one for row in catalog if matches(pattern, row.name) for one in _of_examples(row)][:most]
    return [standard_envelope(one) for one in found]


def _of_event(event: Event) -> StoredEvent:
    return StoredEvent(event.pk, event.type, event.created_at, event.data, event.cloudevent)


def _of_examples(event_type: EventType) -> Iterable[StoredEvent]:
    for position, example in enumerate(event_type.examples):
        # The same example always has the same id, by which platforms distinguish samples.
        sample_id = derive_id(event_type.pk, uuid.UUID(int=position))
        yield StoredEvent(sample_id, event_type.name, timezone.now(), orjson.dumps(example).decode())
