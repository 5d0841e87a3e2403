"""The subscriptions of organizations, remembered from one fan-out to the next."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import dataclass

import structlog
from cachetools import LRUCache
from psycopg.rows import class_row

from core.db import server_cursor
from webhooks.destinations.http.endpoint import host_of
from webhooks.models import DestinationKind, Subscription
from webhooks.routing.filters import StoredFilter
from webhooks.routing.matching import Matcher, SubscribedTypes

log = structlog.get_logger()

REMEMBERED_ORGANIZATIONS = 1_000

# SQL, here and below, because the ORM doesn't know `xmin`.  The fingerprint of the subscriptions of the organization in
# scope, NULL if it has none.  Each change of a subscription makes a row version with another xmin, whatever the clocks
# say and in whichever order transactions commit.  So the fingerprint changes whenever a subscription is added, changed,
# disabled, or deleted.
FINGERPRINT = """(
    SELECT md5(string_agg(s.id::text || s.xmin::text, ',' ORDER BY s.id))
    FROM webhooks_subscription s WHERE s.organization_id = {organization_id} AND s.deleted_at IS NULL
)"""


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


class Subscribers:
    """Matchers by organization.  For one thread."""

    def __init__(self) -> None:
        self._matchers: LRUCache[uuid.UUID, tuple[str, Matcher, _Versions]] = LRUCache(REMEMBERED_ORGANIZATIONS)

    def matchers(self, fingerprints: Mapping[uuid.UUID, str | None]) -> dict[uuid.UUID, Matcher]:
        """Return the matcher of each organization that has subscriptions.

        fingerprints: of each organization's subscriptions (FINGERPRINT), read in the current transaction.
        """
        found: dict[uuid.UUID, Matcher] = {}
        for organization_id, fingerprint in fingerprints.items():
            if fingerprint is None:
                continue
            remembered = self._matchers.get(organization_id)
            if remembered is None or remembered[0] != fingerprint:
                # Read after the fingerprint: what changes in between is in the matcher, and found out the next time.
                versions = _load(organization_id, {} if remembered is None else remembered[2])
                remembered = fingerprint, Matcher(one for _, one in versions.values()), versions
                self._matchers[organization_id] = remembered
            found[organization_id] = remembered[1]
        return found


# What `wanted_by` reads.
WANTED_FIELDS = (
    "organization_id",
    "event_types",
    "is_active",
    "kind",
    "url",
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
        host=_host(subscription),
        channels=frozenset(subscription.channels),
        filter=_compile(subscription),
        is_ordered=subscription.ordered,
        is_operational=subscription.is_operational,
    )


def _host(subscription: Subscription) -> str:
    """Return the host that the subscription's webhooks go to."""
    if subscription.kind == DestinationKind.INBOX:
        return ""
    try:
        return host_of(subscription.url)
    except ValueError:
        return ""


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
