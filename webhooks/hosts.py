"""Disables all subscriptions whose URLs have a host, of one organization or of all, and enables them again."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass

from django.db.models import Count, Q, QuerySet

from webhooks import subscriptions
from webhooks.models import DisabledCause, Subscription

# The preview has the numbers of this many organizations.
MOST_ORGANIZATIONS = 1000
_STOPPED_WITH_IT = Q(is_active=False, disabled_cause=DisabledCause.WITH_HOST)

# Writes one audit entry for the subscriptions of one organization.
Audit = Callable[[uuid.UUID, list[Subscription]], None]


@dataclass(frozen=True, slots=True)
class HostUse:
    """How an organization uses a host: how many subscriptions are active, and how many were stopped with it."""

    organization_id: uuid.UUID
    organization_name: str
    active: int
    stopped: int


def host_use(host: str, organization_id: uuid.UUID | None = None) -> list[HostUse]:
    """Return how each organization, or the given one, uses the host."""
    rows = (
        _of(host, organization_id)
        .values("organization_id", "organization__name")
        .annotate(active=Count("pk", filter=Q(is_active=True)), stopped=Count("pk", filter=_STOPPED_WITH_IT))
        .order_by("-active", "organization__name")[:MOST_ORGANIZATIONS]
    )
    return [HostUse(row["organization_id"], row["organization__name"], row["active"], row["stopped"]) for row in rows]


def stop(host: str, organization_id: uuid.UUID | None, reason: str, audit: Audit) -> int:
    """Disable every active subscription of the host, of one organization or of all; return how many.

    Each organization is one transaction with its audit entry.  Subscriptions that are created later are active.
    """
    return _each_organization(
        _of(host, organization_id).filter(is_active=True),
        lambda ids, entry: subscriptions.disable_many(ids, DisabledCause.WITH_HOST, reason, audit=entry),
        audit,
    )


def enable(host: str, organization_id: uuid.UUID | None, audit: Audit) -> int:
    """Enable what `stop` disabled, and nothing that was disabled for another reason; return how many."""
    return _each_organization(
        _of(host, organization_id).filter(_STOPPED_WITH_IT),
        lambda ids, entry: subscriptions.enable_many(ids, audit=entry),
        audit,
    )


def _of(host: str, organization_id: uuid.UUID | None) -> QuerySet[Subscription]:
    rows = Subscription.objects.filter(host=host.lower(), deleted_at=None)
    return rows if organization_id is None else rows.filter(organization_id=organization_id)


def _each_organization(
    rows: QuerySet[Subscription],
    change: Callable[[list[uuid.UUID], Callable[[list[Subscription]], None]], list[Subscription]],
    audit: Audit,
) -> int:
    changed = 0
    for organization_id in list(rows.order_by("organization_id").values_list("organization_id", flat=True).distinct()):
        ids = list(rows.filter(organization_id=organization_id).order_by("pk").values_list("pk", flat=True))
        changed += len(change(ids, lambda done, owner=organization_id: audit(owner, done)))  # type: ignore[misc]
    return changed
