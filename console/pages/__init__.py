"""The admin's pages; each module registers one."""

from console.pages import (
    attempts,
    audit_log,
    bulk_runs,
    deliveries,
    event_types,
    events,
    keys,
    organizations,
    staff,
    subscriptions,
)

__all__ = [
    "attempts",
    "audit_log",
    "bulk_runs",
    "deliveries",
    "event_types",
    "events",
    "keys",
    "organizations",
    "staff",
    "subscriptions",
]
