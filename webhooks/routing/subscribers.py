"""Who subscribes to what, remembered per organization from one fan-out to the next."""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Collection
from dataclasses import dataclass

import structlog
from cachetools import LRUCache
from psycopg.rows import class_row

from core.db import server_cursor
from webhooks.models import DestinationKind, Subscription
from webhooks.routing.filters import NOTHING, Filter
from webhooks.routing.matching import Matcher, SubscribedTypes

log = structlog.get_logger()

REMEMBERED_ORGANIZATIONS = 1_000

# Each change of a subscription makes a row version with another xmin, whatever the clocks say and in whichever order
# transactions commit.  So the fingerprint changes whenever a subscription is added, changed, disabled, or deleted.
_FINGERPRINTS = """
SELECT organization_id, md5(string_agg(id::text || xmin::text, ',' ORDER BY id)) AS fingerprint
FROM webhooks_subscription
WHERE organization_id = ANY(%s::uuid[]) AND deleted_at IS NULL GROUP BY organization_id
"""


@dataclass(frozen=True, slots=True)
class _Fingerprint:
    """A row of _FINGERPRINTS."""

    organization_id: uuid.UUID
    fingerprint: str


class Subscribers:
    """Matchers by organization.  For one thread; every call looks whether anything has changed since."""

    def __init__(self) -> None:
        self._matchers: LRUCache[uuid.UUID, tuple[str, Matcher]] = LRUCache(REMEMBERED_ORGANIZATIONS)

    def matchers(self, organization_ids: Collection[uuid.UUID]) -> dict[uuid.UUID, Matcher]:
        """Return the matcher of each organization that has subscriptions."""
        with server_cursor(class_row(_Fingerprint)) as cursor:
            rows = cursor.execute(_FINGERPRINTS, (list(organization_ids),)).fetchall()
        found: dict[uuid.UUID, Matcher] = {}
        changed: dict[uuid.UUID, str] = {}
        for row in rows:
            fingerprint, matcher = self._matchers.get(row.organization_id, ("", None))
            if matcher is not None and fingerprint == row.fingerprint:
                found[row.organization_id] = matcher
            else:
                changed[row.organization_id] = row.fingerprint
        # Read after the fingerprints: what changes in between is in the matcher, and found out the next time.
        for organization_id, matcher in _load(changed).items():
            found[organization_id] = matcher
            self._matchers[organization_id] = changed[organization_id], matcher
        return found


# What `wanted_by` reads.
WANTED_FIELDS = (
    "organization_id",
    "event_types",
    "is_active",
    "kind",
    "channels",
    "filter",
    "ordered",
    "is_operational",
)


def wanted_by(subscription: Subscription) -> SubscribedTypes:
    """Return what a subscription wants."""
    return SubscribedTypes(
        subscription.pk,
        tuple(subscription.event_types),
        subscription.is_active,
        subscription.kind == DestinationKind.INBOX,
        channels=frozenset(subscription.channels),
        filter=_compile(subscription),
        is_ordered=subscription.ordered,
        is_operational=subscription.is_operational,
    )


def _compile(subscription: Subscription) -> Filter | None:
    """Return the subscription's filter.  One that can't be used wants nothing, and harms nobody else."""
    if subscription.filter is None:
        return None
    try:
        return Filter(subscription.filter)
    except Exception as error:
        log.error("filter_not_usable", subscription_id=str(subscription.pk), error=repr(error)[:300])
        return NOTHING


def _load(organization_ids: Collection[uuid.UUID]) -> dict[uuid.UUID, Matcher]:
    subscribed: dict[uuid.UUID, list[SubscribedTypes]] = defaultdict(list)
    if organization_ids:
        rows = Subscription.objects.filter(organization_id__in=organization_ids, deleted_at=None).order_by("id")
        for row in rows.only(*WANTED_FIELDS):
            subscribed[row.organization_id].append(wanted_by(row))
    return {organization_id: Matcher(patterns) for organization_id, patterns in subscribed.items()}
