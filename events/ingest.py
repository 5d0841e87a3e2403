"""Accepting events: one statement that decides about duplicates and stores what is new.

When a function here returns, the events that it calls accepted are committed.
"""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from django.conf import settings

from core.db import in_transaction, server_cursor
from core.ids import new_id, new_ids
from events import sql
from events.payload import NewEvent
from orgs.keys import Caller
from orgs.models import Scope


class Outcome(StrEnum):
    """What became of an event that was offered."""

    ACCEPTED = "accepted"
    DUPLICATE = "duplicate"
    CONFLICT = "conflict"


@dataclass(frozen=True, slots=True)
class Ingested:
    """An outcome and the event that it is about: the new one, or the first with this dedup id."""

    outcome: Outcome
    event_id: uuid.UUID


def _window() -> datetime.timedelta:
    return datetime.timedelta(seconds=settings.DEDUP_WINDOW)


def ingest(organization_id: uuid.UUID, event: NewEvent) -> Ingested:
    """Store `event` unless its dedup id is known in its window.

    Same id and same content is a DUPLICATE, same id and other content a CONFLICT; neither changes
    anything.
    """
    while True:
        event_id = _insert(organization_id, event)
        if event_id is not None:
            return Ingested(Outcome.ACCEPTED, event_id)
        with server_cursor() as cursor:
            first = cursor.execute(sql.FIND_DEDUP_KEY, (organization_id, event.dedup_id)).fetchone()
        if first is not None:
            same = bytes(first[1]) == event.fingerprint()
            return Ingested(Outcome.DUPLICATE if same else Outcome.CONFLICT, first[0])
        # The key's window ended between the two statements, so the id is new again.


def ingest_for(caller: Caller, event: NewEvent) -> Ingested | None:
    """Store `event` if its dedup id is new and the caller's key still holds; None, and nothing done, if not.

    For a caller that was only recalled: the statement that stores the event makes sure of the key.
    """
    event_id = _insert(caller.organization_id, event, caller)
    return None if event_id is None else Ingested(Outcome.ACCEPTED, event_id)


def _insert(organization_id: uuid.UUID, event: NewEvent, caller: Caller | None = None) -> uuid.UUID | None:
    """Insert an event and return its id; None if its dedup id is taken or the caller's key doesn't hold."""
    event_id = new_id()
    parameters = {"id": event_id, "organization_id": organization_id, "type": event.type, "data": event.data}
    if event.dedup_id is not None:
        parameters |= {"dedup_id": event.dedup_id, "fingerprint": event.fingerprint(), "window": _window()}
    if caller is not None:
        parameters |= {
            "key_id": caller.key_id,
            "scope": Scope.EVENTS_WRITE.value,
            "events_per_minute": caller.events_per_minute,
        }
    with server_cursor() as cursor:
        cursor.execute(sql.INSERT_EVENT[event.dedup_id is not None, caller is not None], parameters)
        return event_id if cursor.rowcount else None


def ingest_batch(organization_id: uuid.UUID, events: Sequence[NewEvent]) -> list[Ingested]:
    """Store `events` in one transaction and return their outcomes in the same order.

    Within the batch the first event with a dedup id counts, as if they had come one by one.
    """
    ids = new_ids(len(events))
    fingerprints = [event.fingerprint() if event.dedup_id is not None else None for event in events]
    first_of: dict[str, int] = {}
    offered = []
    for position, event in enumerate(events):
        if event.dedup_id is None or first_of.setdefault(event.dedup_id, position) == position:
            offered.append(position)

    def store() -> dict[str, tuple[uuid.UUID, bytes]]:
        """Insert what is new; return who holds each dedup id of the batch now."""
        with server_cursor() as cursor:
            cursor.execute(
                sql.INSERT_BATCH,
                {
                    "organization_id": organization_id,
                    "ids": [ids[p] for p in offered],
                    "types": [events[p].type for p in offered],
                    "data": [events[p].data for p in offered],
                    "dedup_ids": [events[p].dedup_id for p in offered],
                    "fingerprints": [fingerprints[p] for p in offered],
                    "window": _window(),
                },
            )
            if not first_of:
                return {}
            cursor.execute(sql.FIND_DEDUP_KEYS, (organization_id, list(first_of)))
            return {dedup_id: (event_id, bytes(mark)) for dedup_id, event_id, mark in cursor.fetchall()}

    holders = in_transaction(store)

    results = []
    for position, event in enumerate(events):
        event_id = uuid.UUID(ids[position])
        if event.dedup_id is None:
            results.append(Ingested(Outcome.ACCEPTED, event_id))
            continue
        holder_id, mark = holders[event.dedup_id]
        if holder_id == event_id:
            results.append(Ingested(Outcome.ACCEPTED, event_id))
        else:
            outcome = Outcome.DUPLICATE if mark == fingerprints[position] else Outcome.CONFLICT
            results.append(Ingested(outcome, holder_id))
    return results
