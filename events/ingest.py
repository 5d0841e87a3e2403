"""Accepts events: one statement decides about duplicates and stores what is new.

When a function here returns, the events that it calls accepted are committed.
"""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from django.conf import settings

from core.arrays import bytes_array, plain_array, text_array
from core.db import in_transaction, server_cursor
from core.ids import new_id, new_ids
from events.channels import join
from events.models import DedupKey
from events.origin import NO_ORIGIN, Origin
from events.payload import NewEvent

# SQL because this is the hot path, and because the ORM can't insert the event under the condition that its dedup id
# was claimed.  Times are the database's.
_INSERT_EVENT = """
INSERT INTO events_event (
    id, organization_id, type, data, packed_request_id, trace, cloudevent, channels, ordering_key, status,
    failed_attempts, last_error, due_at, created_at
)
SELECT %(id)s, %(organization_id)s, %(type)s, %(data)s, %(request_id)s, %(trace)s, %(cloudevent)s,
       string_to_array(%(channels)s, ','), %(ordering_key)s, 'accepted', 0, '', t, t
FROM clock_timestamp() AS t
"""

# One statement, so that no crash can store the dedup id without its event.  The statement waits for a dedup id that
# another transaction is inserting, and takes over one whose window has ended.
_INSERT_EVENT_ONCE = """
WITH claimed AS (
    INSERT INTO events_dedupkey AS k (organization_id, dedup_id, event_id, fingerprint, expires_at)
    SELECT %(organization_id)s, %(dedup_id)s, %(id)s, %(fingerprint)s, clock_timestamp() + %(window)s
    ON CONFLICT (organization_id, dedup_id) DO UPDATE
        SET event_id = EXCLUDED.event_id, fingerprint = EXCLUDED.fingerprint, expires_at = EXCLUDED.expires_at
        WHERE k.expires_at <= clock_timestamp()
    RETURNING event_id
)
INSERT INTO events_event (
    id, organization_id, type, data, dedup_id, packed_request_id, trace, cloudevent, channels, ordering_key,
    status, failed_attempts, last_error, due_at, created_at
)
SELECT claimed.event_id, %(organization_id)s, %(type)s, %(data)s, %(dedup_id)s, %(request_id)s, %(trace)s,
       %(cloudevent)s, string_to_array(%(channels)s, ','), %(ordering_key)s, 'accepted', 0, '', t, t
FROM claimed, clock_timestamp() AS t
"""

# As above, for many events.  Claiming the dedup ids in their order keeps two batches from deadlocking.
_INSERT_BATCH = """
WITH item AS (
    SELECT * FROM unnest(
        %(ids)s::uuid[], %(types)s::text[], %(data)s::text[], %(dedup_ids)s::text[], %(fingerprints)s::bytea[],
        %(traces)s::text[], %(cloudevents)s::text[], %(channels)s::text[], %(ordering_keys)s::text[]
    ) AS t(id, type, data, dedup_id, fingerprint, trace, cloudevent, channels, ordering_key)
), claimed AS (
    INSERT INTO events_dedupkey AS k (organization_id, dedup_id, event_id, fingerprint, expires_at)
    SELECT %(organization_id)s, dedup_id, id, fingerprint, clock_timestamp() + %(window)s
    FROM item WHERE dedup_id IS NOT NULL ORDER BY dedup_id
    ON CONFLICT (organization_id, dedup_id) DO UPDATE
        SET event_id = EXCLUDED.event_id, fingerprint = EXCLUDED.fingerprint, expires_at = EXCLUDED.expires_at
        WHERE k.expires_at <= clock_timestamp()
    RETURNING event_id
)
INSERT INTO events_event (
    id, organization_id, type, data, dedup_id, packed_request_id, trace, cloudevent, channels, ordering_key,
    status, failed_attempts, last_error, due_at, created_at
)
SELECT item.id, %(organization_id)s, item.type, item.data, item.dedup_id, %(request_id)s, item.trace, item.cloudevent,
       string_to_array(item.channels, ','), item.ordering_key, 'accepted', 0, '', t, t
FROM item, clock_timestamp() AS t
WHERE item.dedup_id IS NULL OR item.id IN (SELECT event_id FROM claimed)
"""


class IngestStatus(StrEnum):
    """What became of an event that was sent."""

    ACCEPTED = "accepted"
    DUPLICATE = "duplicate"
    CONFLICT = "conflict"


@dataclass(frozen=True, slots=True)
class Ingested:
    """What became of an event, and its id; for a duplicate or a conflict, the id of the first event."""

    status: IngestStatus
    event_id: uuid.UUID


def _window() -> datetime.timedelta:
    return datetime.timedelta(seconds=settings.DEDUP_WINDOW)


def ingest(organization_id: uuid.UUID, event: NewEvent, origin: Origin = NO_ORIGIN) -> Ingested:
    """Store `event`, with where it came from, unless its dedup id is taken.

    Within the window, the same id with the same content is a DUPLICATE, with other content a CONFLICT; neither
    changes anything.
    """
    while True:
        event_id = _insert(organization_id, event, origin)
        if event_id is not None:
            return Ingested(IngestStatus.ACCEPTED, event_id)
        first = DedupKey.objects.filter(organization_id=organization_id, dedup_id=event.dedup_id).first()
        if first is not None:
            same = bytes(first.fingerprint) == event.fingerprint()
            return Ingested(IngestStatus.DUPLICATE if same else IngestStatus.CONFLICT, first.event_id)
        # The window ended between the two statements, so the id is free again.


def _insert(organization_id: uuid.UUID, event: NewEvent, origin: Origin) -> uuid.UUID | None:
    """Insert an event and return its id; None, with nothing stored, if its dedup id is taken."""
    event_id = new_id()
    parameters: dict[str, object] = {
        "id": event_id,
        "organization_id": organization_id,
        "type": event.type,
        "data": event.data,
        "request_id": origin.request_id,
        "trace": event.trace or origin.trace,
        "cloudevent": event.cloudevent,
        "channels": join(event.channels),
        "ordering_key": event.ordering_key,
    }
    if event.dedup_id is not None:
        parameters |= {"dedup_id": event.dedup_id, "fingerprint": event.fingerprint(), "window": _window()}
    with server_cursor() as cursor:
        cursor.execute(_INSERT_EVENT if event.dedup_id is None else _INSERT_EVENT_ONCE, parameters)
        return event_id if cursor.rowcount else None


def ingest_batch(organization_id: uuid.UUID, events: Sequence[NewEvent], origin: Origin = NO_ORIGIN) -> list[Ingested]:
    """Store the events of one request in one transaction, and return the result of each, in the same order.

    Within the batch the first event with a dedup id counts, as if they had been sent one by one.
    """
    ids = new_ids(len(events))
    fingerprints = [event.fingerprint() if event.dedup_id is not None else None for event in events]
    first_of: dict[str, int] = {}
    offered = []
    for position, event in enumerate(events):
        if event.dedup_id is None or first_of.setdefault(event.dedup_id, position) == position:
            offered.append(position)

    def store() -> dict[str, tuple[uuid.UUID, bytes]]:
        """Insert what is new; return the event and the fingerprint that each dedup id of the batch now stands for."""
        with server_cursor() as cursor:
            cursor.execute(
                _INSERT_BATCH,
                {
                    "organization_id": organization_id,
                    "ids": plain_array(ids[p] for p in offered),
                    "types": text_array(events[p].type for p in offered),
                    "data": text_array(events[p].data for p in offered),
                    "dedup_ids": text_array(events[p].dedup_id for p in offered),
                    "fingerprints": bytes_array(fingerprints[p] for p in offered),
                    "channels": text_array(join(events[p].channels) for p in offered),
                    "ordering_keys": text_array(events[p].ordering_key for p in offered),
                    "window": _window(),
                    "request_id": origin.request_id,
                    "traces": text_array(events[p].trace or origin.trace for p in offered),
                    "cloudevents": text_array(events[p].cloudevent for p in offered),
                },
            )
        if not first_of:
            return {}
        holders = DedupKey.objects.filter(organization_id=organization_id, dedup_id__in=list(first_of))
        return {holder.dedup_id: (holder.event_id, bytes(holder.fingerprint)) for holder in holders}

    holders = in_transaction(store)

    results = []
    for position, event in enumerate(events):
        event_id = uuid.UUID(ids[position])
        if event.dedup_id is None:
            results.append(Ingested(IngestStatus.ACCEPTED, event_id))
            continue
        holder_id, fingerprint = holders[event.dedup_id]
        if holder_id == event_id:
            results.append(Ingested(IngestStatus.ACCEPTED, event_id))
        else:
            status = IngestStatus.DUPLICATE if fingerprint == fingerprints[position] else IngestStatus.CONFLICT
            results.append(Ingested(status, holder_id))
    return results
