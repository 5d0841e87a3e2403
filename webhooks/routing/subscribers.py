"""The subscriptions of organizations, remembered from one fan-out to the next."""

from __future__ import annotations

import uuid
from collections.abc import Collection
from dataclasses import dataclass

import structlog
from cachetools import LRUCache
from psycopg.rows import class_row

from core.db import server_cursor
from webhooks.models import DestinationKind, Subscription
from webhooks.routing.filters import StoredFilter
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


# Each subscription of an organization, and its version, as above.
_VERSIONS = """
SELECT id, xmin::text AS version FROM webhooks_subscription
WHERE organization_id = %s AND deleted_at IS NULL ORDER BY id
"""


@dataclass(frozen=True, slots=True)
class _Version:
    """A row of _VERSIONS."""

    id: uuid.UUID
    version: str


# What an organization's subscriptions want, each with its version.
_Versions = dict[uuid.UUID, tuple[str, SubscribedTypes]]


@dataclass(frozen=True, slots=True)
class _Fingerprint:
    """A row of _FINGERPRINTS."""

    organization_id: uuid.UUID
    fingerprint: str


class Subscribers:
    """Matchers by organization.  For one thread; every call checks whether anything has changed since."""

    def __init__(self) -> None:
        self._matchers: LRUCache[uuid.UUID, tuple[str, Matcher, _Versions]] = LRUCache(REMEMBERED_ORGANIZATIONS)

    def matchers(self, organization_ids: Collection[uuid.UUID]) -> dict[uuid.UUID, Matcher]:
        """Return the matcher of each organization that has subscriptions."""
        with server_cursor(class_row(_Fingerprint)) as cursor:
            rows = cursor.execute(_FINGERPRINTS, (list(organization_ids),)).fetchall()
        found: dict[uuid.UUID, Matcher] = {}
        changed: dict[uuid.UUID, str] = {}
        for row in rows:
            remembered = self._matchers.get(row.organization_id)
            if remembered is not None and remembered[0] == row.fingerprint:
                found[row.organization_id] = remembered[1]
            else:
                changed[row.organization_id] = row.fingerprint
        # Read after the fingerprints: a change in between is in the matcher already, and noticed the next time.
        for organization_id, fingerprint in changed.items():
            remembered = self._matchers.get(organization_id)
            versions = _load(organization_id, {} if remembered is None else remembered[2])
            matcher = Matcher(one for _, one in versions.values())
            found[organization_id] = matcher
            self._matchers[organization_id] = fingerprint, matcher, versions
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


def _compile(subscription: Subscription) -> StoredFilter | None:
    """Return the subscription's filter.  One that can't be used matches nothing, and affects no other subscription."""
    if subscription.filter is None:
        return None
    subscription_id = str(subscription.pk)
    return StoredFilter(
        subscription.filter,
        lambda error: log.error("filter_not_usable", subscription_id=subscription_id, error=repr(error)[:300]),
    )


def _load(organization_id: uuid.UUID, known: _Versions) -> _Versions:
    """Return what an organization's subscriptions want.  Subscriptions that haven't changed are kept.

    So one change doesn't cost the compilation of a thousand filters.
    """
    with server_cursor(class_row(_Version)) as cursor:
        rows = cursor.execute(_VERSIONS, (organization_id,)).fetchall()
    current = {row.id: row.version for row in rows}
    kept = {row.id: known[row.id] for row in rows if row.id in known and known[row.id][0] == row.version}
    # Read after the versions: a change in between counts as another version the next time.
    missing = [row.id for row in rows if row.id not in kept]
    if missing:
        changed = Subscription.objects.filter(id__in=missing, deleted_at=None).only(*WANTED_FIELDS)
        kept |= {row.pk: (current[row.pk], wanted_by(row)) for row in changed}
    return {row.id: kept[row.id] for row in rows if row.id in kept}
