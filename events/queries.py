"""Finds events for the API."""

from __future__ import annotations

import uuid
from typing import Any

from django.db.models import QuerySet
from django.db.models.functions import Coalesce

from core.query import DEFAULT_LIMIT, ParameterError, is_ascending
from events.delivery_lookup import delivery_lookup
from events.models import Event, EventStatus
from events.payload import EVERYTHING, pattern_error

_LOOKUPS = {"status": "status", "dedup_id": "dedup_id", "since": "created_at__gte", "until": "created_at__lt"}


def type_pattern(raw: str) -> str:
    """Return a type or a pattern of types, as a query parameter."""
    if reason := pattern_error(raw):
        raise ParameterError(reason)
    return raw


def _of_type(pattern: str) -> dict[str, str]:
    """Return the filter for the types that a pattern stands for, as it does in a subscription."""
    if pattern == EVERYTHING:
        return {}
    return {"type__startswith": pattern[:-1]} if pattern.endswith(".*") else {"type": pattern}


def find_events(organization_id: uuid.UUID, parameters: dict[str, Any]) -> QuerySet[Event]:
    """Return the organization's events that match the parameters `type`, `status`, `since`, `until`, `dedup_id`, and
    `undelivered`.

    With `undelivered` true they are ordered by id, and only as many are returned as the page at `cursor` with its
    `limit` and `order` needs, and one more.
    """
    filters = {lookup: parameters[name] for name, lookup in _LOOKUPS.items() if name in parameters}
    if "type" in parameters:
        filters |= _of_type(parameters["type"])
    rows = Event.objects.filter(organization_id=organization_id, **filters)
    if "undelivered" not in parameters:
        return rows
    if not parameters["undelivered"]:
        return rows.filter(~delivery_lookup().undelivered(), status=EventStatus.PROCESSED)
    beyond = parameters["cursor"][1] if "cursor" in parameters else None
    most = parameters.get("limit", DEFAULT_LIMIT) + 1
    found = _undelivered_ids(organization_id, filters, beyond, most, ascending=is_ascending(parameters))
    return Event.objects.filter(id__in=found)


def _undelivered_ids(
    organization_id: uuid.UUID, filters: dict[str, Any], beyond: uuid.UUID | None, most: int, *, ascending: bool
) -> list[uuid.UUID]:
    """Return the ids of the newest events that some subscription hasn't received, or that await their fan-out.

    beyond: only ids on the other side of this.  ascending: the oldest.

    Reads only what is undelivered: there may be one such event among millions.
    """
    found = set(delivery_lookup().undelivered_event_ids(organization_id, filters, beyond, most, ascending=ascending))
    waiting = Event.objects.filter(organization_id=organization_id, **filters)
    if beyond is not None:
        waiting = waiting.filter(id__gt=beyond) if ascending else waiting.filter(id__lt=beyond)
    for status in (EventStatus.ACCEPTED, EventStatus.ERROR):
        # Each status has a small index.  Ordering by an expression keeps the planner from reading along the primary key
        # in the hope of finding enough of them soon.
        by_id = Coalesce("id", "id")
        first = waiting.filter(status=status).order_by(by_id.asc() if ascending else by_id.desc())
        found.update(first.values_list("id", flat=True)[:most])
    return sorted(found, reverse=not ascending)[:most]
