"""Claims accepted events for a fan-out: fair between organizations, however many events of one of them wait."""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Collection, Sequence

import msgspec
import psycopg
from psycopg.rows import class_row

from core.db import server_cursor
from webhooks.routing.subscribers import FINGERPRINT

# The most organizations that a fan-out looks at; the next one continues after the last of them.
ORGANIZATIONS_AT_A_TIME = 50
NOBODY = uuid.UUID(int=0)

# SQL, because the ORM has neither recursion nor locks in a LATERAL join.  Jumps from one organization to the next
# through the index of accepted events, so that the cost depends on how many organizations have events waiting, not on
# how many events wait.  It jumps over those to skip as well: a condition that leaves them out would read each of their
# events.  Each gives the same number of events, the oldest first, with the fingerprint of its subscriptions, which
# saves a round trip.
CLAIM_ACCEPTED = f"""
WITH RECURSIVE waiting AS (
    SELECT %(after)s::uuid AS organization_id, false AS counts, 0 AS number
    UNION ALL
    SELECT next.organization_id, next.counts, number + next.counts::int
    FROM waiting CROSS JOIN LATERAL (
        SELECT e.organization_id, e.organization_id <> ALL(%(skip)s::uuid[]) AS counts FROM events_event e
        WHERE e.status = 'accepted' AND e.organization_id > waiting.organization_id
        ORDER BY e.organization_id LIMIT 1
    ) AS next
    WHERE number < %(organizations)s
), turn AS (
    SELECT organization_id, {FINGERPRINT.format(organization_id="waiting.organization_id")} AS fingerprint
    FROM waiting WHERE counts
)
SELECT e.id, e.organization_id, e.type, e.channels, e.ordering_key,
       CASE WHEN e.ordering_key IS NOT NULL THEN e.created_at END AS created_at,
       turn.fingerprint, (SELECT count(*) FROM turn) AS organizations
FROM turn CROSS JOIN LATERAL (
    SELECT id, organization_id, type, channels, ordering_key, created_at FROM events_event
    WHERE organization_id = turn.organization_id AND status = 'accepted'
      AND due_at <= statement_timestamp() - make_interval(secs => %(waited)s)
    ORDER BY created_at, id LIMIT greatest(1, %(events)s / (SELECT count(*) FROM turn))
    FOR UPDATE SKIP LOCKED
) AS e
"""  # noqa: S608 - a constant of ours
# The same for one event that is known, as long as it is accepted and nobody else has it in hand.
CLAIM_AGAIN = f"""
SELECT e.id, e.organization_id, e.type, e.channels, e.ordering_key, e.created_at,
       {FINGERPRINT.format(organization_id="e.organization_id")} AS fingerprint
FROM events_event e WHERE e.id = %s AND e.status = 'accepted' FOR UPDATE SKIP LOCKED
"""  # noqa: S608 - a constant of ours


class AcceptedEvent(msgspec.Struct, frozen=True):
    """An event whose row this transaction has locked.

    created_at: of one with an ordering key.  fingerprint: of its organization's subscriptions
    (`webhooks.routing.subscribers`).  organizations: how many had events waiting.
    """

    id: uuid.UUID
    organization_id: uuid.UUID
    type: str
    channels: Sequence[str] | None = None
    ordering_key: str | None = None
    created_at: datetime.datetime | None = None
    fingerprint: str | None = None
    organizations: int = 1


class EventClaims:
    """Claims events for one thread, organization after organization.  waited: only events that have waited so long."""

    def __init__(self, waited: float = 0.0) -> None:
        self._waited = waited
        self._after = NOBODY

    def claim(
        self, limit: int, skip: Collection[uuid.UUID], cursor: psycopg.Cursor[AcceptedEvent]
    ) -> list[AcceptedEvent]:
        """Lock up to `limit` events that are due, and return them; none of organizations in `skip`."""
        parameters = {
            "after": self._after,
            "skip": list(skip),
            "organizations": ORGANIZATIONS_AT_A_TIME,
            "waited": self._waited,
            "events": limit,
        }
        events = cursor.execute(CLAIM_ACCEPTED, parameters).fetchall()
        went_round = not events or events[0].organizations < ORGANIZATIONS_AT_A_TIME
        self._after = NOBODY if went_round else max(event.organization_id for event in events)
        return events


def claiming_cursor() -> psycopg.Cursor[AcceptedEvent]:
    """Return a cursor for `EventClaims.claim`."""
    return server_cursor(class_row(AcceptedEvent))
