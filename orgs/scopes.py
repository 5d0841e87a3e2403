"""What a key may do: each scope, and what it allows."""

from __future__ import annotations

from django.db import models


class Scope(models.TextChoices):
    """What a key may do."""

    EVENTS_WRITE = "events:write"
    EVENTS_READ = "events:read"
    # Not for a producer's key, because erasing can't be undone.
    EVENTS_ERASE = "events:erase"
    EVENT_TYPES_MANAGE = "event_types:manage"
    SUBSCRIPTIONS_MANAGE = "subscriptions:manage"
    DELIVERIES_READ = "deliveries:read"
    DELIVERIES_RETRY = "deliveries:retry"
    INBOX_CONSUME = "inbox:consume"
    KEYS_MANAGE = "keys:manage"
    # A session of the portal manages subscriptions and reads and retries deliveries, whatever else the key may do.
    PORTAL_LINKS = "portal:links"


# What each of them allows, for the documentation.
SCOPE_ALLOWS: dict[Scope, str] = {
    Scope.EVENTS_WRITE: "sending events",
    Scope.EVENTS_READ: "reading events and event types",
    Scope.EVENTS_ERASE: "erasing payloads of events, for good",
    Scope.EVENT_TYPES_MANAGE: "changing the catalog of event types",
    Scope.SUBSCRIPTIONS_MANAGE: "creating, changing, and deleting subscriptions",
    Scope.DELIVERIES_READ: "reading deliveries and attempts",
    Scope.DELIVERIES_RETRY: "retrying deliveries",
    Scope.INBOX_CONSUME: "fetching from inboxes",
    Scope.KEYS_MANAGE: "creating and revoking keys, and reading the audit log",
    Scope.PORTAL_LINKS: "making links to the portal",
}


def all_scopes() -> list[str]:
    """Return every scope, the default of a new key: so keys that exist don't get a new one, and new keys do."""
    return [scope.value for scope in Scope]
