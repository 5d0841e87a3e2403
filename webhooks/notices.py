"""Notes what organizations and operators are to be told, in the transaction of what happened.

Only what can't be found afterward is noted: that a subscription was disabled, and that deliveries have failed.  That
an endpoint fails or has recovered, and that a key expires, is in other rows, where `webhooks.upkeep.notifications`
finds it.  So attempts cost nothing here, except those with which a delivery fails for good.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
import psycopg

from core.db import server_cursor
from events.payload import OPERATIONAL_PREFIX, matches
from webhooks.models import DisabledCause, Notice, NoticeKind

EVENT_TYPES = tuple(f"{OPERATIONAL_PREFIX}{kind}" for kind in NoticeKind.values)

# SQL, because what ON CONFLICT sets depends on what the row has.  A row keeps when it first happened, how often, and
# the details of the last time.  The caller has locked the queues, so two transactions never wait for each other here.
_NOTE = """
INSERT INTO webhooks_notice AS n (subject_id, kind, organization_id, since, number, detail)
SELECT subject_id, %(kind)s, organization_id, clock_timestamp(), number, detail::jsonb
FROM unnest(%(subjects)s::uuid[], %(organizations)s::uuid[], %(numbers)s::int[], %(details)s::text[])
    AS v(subject_id, organization_id, number, detail)
ORDER BY subject_id
ON CONFLICT (subject_id, kind) DO UPDATE SET
    since = coalesce(n.since, EXCLUDED.since),
    number = CASE WHEN n.since IS NULL THEN EXCLUDED.number ELSE least(n.number + EXCLUDED.number, 2000000000) END,
    detail = EXCLUDED.detail
"""


def types_error(pattern: str, is_operational: bool) -> str | None:
    """Return why a valid pattern can't be one of a subscription's event types, or None.

    Operational subscriptions get operational events alone, and the others get none.
    """
    if not is_operational:
        if pattern.startswith(OPERATIONAL_PREFIX):
            return "is for operational events, which only a subscription made with `operational` true gets"
        return None
    if any(matches(pattern, one) for one in EVENT_TYPES):
        return None
    return f"is no operational event type (there are: {', '.join(EVENT_TYPES)})"


@dataclass(slots=True)
class Note:
    """Something of one kind that happened to one subscription, once or several times."""

    organization_id: uuid.UUID
    number: int = 1
    detail: Mapping[str, Any] = field(default_factory=dict)


def note(kind: NoticeKind, notes: Mapping[uuid.UUID, Note], cursor: psycopg.Cursor[Any] | None = None) -> None:
    """Note what happened, by subscription, in the caller's transaction.

    cursor: for a caller that sends its statements in a pipeline.
    """
    if not notes:
        return
    parameters = {
        "kind": kind.value,
        "subjects": list(notes),
        "organizations": [one.organization_id for one in notes.values()],
        "numbers": [one.number for one in notes.values()],
        "details": [orjson.dumps(one.detail).decode() for one in notes.values()],
    }
    if cursor is not None:
        cursor.execute(_NOTE, parameters)
        return
    with server_cursor() as own:
        own.execute(_NOTE, parameters)


def failed_delivery(
    delivery_id: uuid.UUID, event_id: uuid.UUID, error: str, status_code: int | None, event_type: str | None = None
) -> dict[str, Any]:
    """Return the detail of a delivery that has failed for good."""
    return {
        "delivery_id": str(delivery_id),
        "event_id": str(event_id),
        "event_type": event_type,
        "error": error,
        "status_code": status_code,
    }


def note_disabled(organization_ids: Mapping[uuid.UUID, uuid.UUID], cause: DisabledCause, reason: str) -> None:
    """Note that subscriptions, given with their organizations, were disabled."""
    detail = {"automatically": cause.is_automatic, "disabled_cause": cause.value, "reason": reason}
    note(NoticeKind.ENDPOINT_DISABLED, {one: Note(owner, detail=detail) for one, owner in organization_ids.items()})


def forget(subject_ids: Sequence[uuid.UUID]) -> None:
    """Drop what is noted about subscriptions that are being deleted."""
    Notice.objects.filter(subject_id__in=subject_ids).delete()
