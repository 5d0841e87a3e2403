"""What the inbox's endpoints understand and return: the same from the DRF views and from the front door.

All that touches the database runs in a thread, with Django's connection.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from core.ids import derive_id, parse_id
from core.json_response import Fragment, dumps
from core.problems import Problem, invalid, no_such
from core.query import ParameterError, one_of, parse_parameters
from core.suggestions import unknown_field
from events.models import ERASED
from events.payload import matches
from events.queries import type_pattern
from orgs import audit
from orgs.keys import Caller
from webhooks import inboxes, subscriptions
from webhooks.destinations.inbox import fetching, log
from webhooks.destinations.inbox.fetching import Changed, FetchedEvent, ItemStatus
from webhooks.inboxes import Inbox
from webhooks.models import Subscription
from webhooks.states import DeliveryState, delivery_state
from webhooks.tracing import trace_fetch

DEFAULT_LIMIT = 100
MAX_WAIT = 20.0
DEFAULT_VISIBILITY = 30.0
MAX_VISIBILITY = 43_200.0
MAX_IDS = 1000
# Enough for far more ids than a request may have, so that a client that sends too many is told the limit.
MAX_ITEMS_BYTES = 1_048_576
# How many events a stream reads at a time.
STREAM_EVENTS = 100
LATEST = "latest"
# Members that are a number of seconds: name, least, most, and default.
DELAY = ("delay", 0.0, MAX_VISIBILITY, 0.0)
VISIBILITY = ("visibility", 1.0, MAX_VISIBILITY, DEFAULT_VISIBILITY)

# --- what is asked ----------------------------------------------------------------------------------


def _name(raw: str) -> str:
    if not inboxes.NAME.fullmatch(raw):
        raise ParameterError(inboxes.NAME_RULE)
    return raw


def _limit(raw: str) -> int:
    if not raw.isascii() or not raw.isdigit() or len(raw) > 6 or not 1 <= int(raw) <= fetching.MAX_EVENTS:
        raise ParameterError(f"must be a whole number from 1 to {fetching.MAX_EVENTS}")
    return int(raw)


def _seconds(least: float, most: float) -> Callable[[str], float]:
    error = ParameterError(f"must be a number of seconds from {least:g} to {most:g}")

    def parse(raw: str) -> float:
        if len(raw) > 12 or not raw.isascii() or not raw.replace(".", "", 1).isdigit():
            raise error
        value = float(raw)
        if not least <= value <= most:
            raise error
        return value

    return parse


def _offset(raw: str) -> int:
    if raw != "0":
        raise ParameterError("is not supported beyond 0: fetch again for the next events, or use `cursor`")
    return 0


def _cursor(raw: str) -> str:
    if len(raw) > 200 or not raw.isascii():
        raise ParameterError("is not a cursor that this endpoint gave out")
    return raw


_PARSERS: Mapping[str, Callable[[str], Any]] = {
    "inbox": _name,
    "limit": _limit,
    "type": type_pattern,
    "wait": _seconds(0, MAX_WAIT),
    "visibility": _seconds(1, MAX_VISIBILITY),
    "cursor": _cursor,
    "status": one_of(*DeliveryState.values),
    "offset": _offset,
}
_STREAM_PARSERS: Mapping[str, Callable[[str], Any]] = {"inbox": _name, "type": type_pattern, "cursor": _cursor}


@dataclass(frozen=True, slots=True)
class InboxQuery:
    """The parameters of `GET /api/inbox`.  cursor: None to fetch under a lease."""

    inbox: str = inboxes.DEFAULT
    limit: int = DEFAULT_LIMIT
    type: str | None = None
    wait: float = 0.0
    visibility: float = DEFAULT_VISIBILITY
    cursor: str | None = None
    status: str | None = None
    offset: int = 0


def parse_query(request: Any) -> InboxQuery:
    """Return the parameters of a request for events.  request: with `query_params`.  Raises Problem 400."""
    query = InboxQuery(**parse_parameters(request, _PARSERS))
    errors = []
    if query.cursor is None and query.status not in {None, DeliveryState.PENDING.value}:
        errors.append(("?status", "goes with `cursor`: without one, only what is pending can be fetched"))
    if query.cursor is not None and "visibility" in request.query_params:
        errors.append(("?visibility", "doesn't go with `cursor`, which leases nothing"))
    if errors:
        raise invalid(errors, "A query parameter is not valid.")
    return query


def parse_stream_query(request: Any) -> InboxQuery:
    """Return the parameters of a request for the stream; without a cursor it begins with what comes next."""
    return InboxQuery(**{"cursor": LATEST, "limit": STREAM_EVENTS, **parse_parameters(request, _STREAM_PARSERS)})


@dataclass(slots=True)
class Items:
    """What a request wants to acknowledge, give back, or extend.  given: each id, by the name of its member."""

    given: list[tuple[str, str]] = field(default_factory=list)
    inbox: str = inboxes.DEFAULT
    lease_id: uuid.UUID | None = None
    seconds: float = 0.0


def parse_items(body: Mapping[str, Any], seconds: tuple[str, float, float, float] | None = None) -> Items:
    """Return what the body of a request names.  seconds: a member's name, least, most, and default.

    Raises Problem 400 that names each fault.
    """
    items = Items(seconds=seconds[3] if seconds else 0.0)
    known = ["event_ids", "delivery_ids", "lease_id", "inbox", *([seconds[0]] if seconds else [])]
    errors = [(f"/{name[:80]}", unknown_field(name, known)) for name in body if name not in known]
    for name in ("event_ids", "delivery_ids"):
        ids = body.get(name, [])
        if not isinstance(ids, list):
            errors.append((f"/{name}", "must be an array of ids"))
            continue
        if len(ids) > MAX_IDS:
            errors.append((f"/{name}", f"must hold at most {MAX_IDS} ids, not {len(ids)}"))
            continue
        errors += [
            (f"/{name}/{position}", "must be a string") for position, one in enumerate(ids) if not isinstance(one, str)
        ][:20]
        items.given += [(name.removesuffix("s"), one) for one in ids if isinstance(one, str)]
    if not errors and not 1 <= len(items.given) <= MAX_IDS:
        errors.append(("/event_ids", f"1 to {MAX_IDS} ids are required, in `event_ids` or `delivery_ids`"))
    _parse_place(body, items, errors)
    if seconds and seconds[0] in body:
        name, least, most, _ = seconds
        value = body[name]
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            errors.append((f"/{name}", f"must be a number of seconds from {least:g} to {most:g}"))
        else:
            items.seconds = float(value)
    if errors:
        raise invalid(errors)
    return items


def parse_single(body: Mapping[str, Any]) -> Items:
    """Return what the body of a request for a single event says, which may be empty."""
    items = Items()
    known = ("lease_id", "inbox")
    errors = [(f"/{name[:80]}", unknown_field(name, known)) for name in body if name not in known]
    _parse_place(body, items, errors)
    if errors:
        raise invalid(errors)
    return items


def _parse_place(body: Mapping[str, Any], items: Items, errors: list[tuple[str, str]]) -> None:
    lease = body.get("lease_id")
    if lease is not None:
        lease_id = parse_id(lease) if isinstance(lease, str) else None
        if lease_id is None or lease_id == fetching.GIVEN_BACK:
            errors.append(("/lease_id", "must be the `lease_id` that came with the events"))
        items.lease_id = lease_id
    if "inbox" in body:
        try:
            items.inbox = _name(body["inbox"] if isinstance(body["inbox"], str) else "")
        except ParameterError as error:
            errors.append(("/inbox", str(error)))


# --- the inbox --------------------------------------------------------------------------------------


def resolve(request: Any, caller: Caller, name: str) -> Inbox:
    """Return the caller's inbox of this name, and make the default one if there is none.

    request: for the audit log.  Raises Problem 404 for another name, and 409 for an inbox that is disabled.
    """
    if name != inboxes.DEFAULT:
        inbox = find_named(caller, name)
    else:
        try:
            inbox = inboxes.find_or_make_default(caller.organization_id, partial(_note_default, request, caller))
        except subscriptions.TooManySubscriptions:
            raise Problem(
                "too_many_subscriptions", "The organization has reached its limit of subscriptions."
            ) from None
    if not inbox.is_active:
        raise _disabled(inbox)
    return inbox


def check_still_open(inbox: Inbox) -> None:
    """Raise the Problem that a new request would get if the inbox was disabled or deleted while a request waited."""
    now = inboxes.find_again(inbox.id)
    if now is None:
        raise _not_found(inbox.name)
    if not now.is_active:
        raise _disabled(now)


def _disabled(inbox: Inbox) -> Problem:
    return Problem(
        "inbox_disabled",
        f"The inbox is disabled: {inbox.disabled_reason} What comes is held; "
        f"`POST /api/subscriptions/{inbox.id}/enable` enables it.",
        extra={"subscription_id": str(inbox.id)},
    )


def _not_found(name: str) -> Problem:
    return Problem(
        "inbox_not_found",
        f"The organization has no inbox named {name}. "
        f'`POST /api/subscriptions` with `{{"kind": "inbox", "inbox": "{name}", "event_types": ["*"]}}` makes it.',
    )


def find_named(caller: Caller, name: str) -> Inbox:
    """Return the caller's inbox of this name.  Raises Problem 404."""
    inbox = inboxes.find(caller.organization_id, name)
    if inbox is None:
        raise _not_found(name)
    return inbox


def _note_default(request: Any, caller: Caller, made: Subscription) -> None:
    audit.record(
        "subscription.create", actor=caller.actor, organization_id=caller.organization_id, target=made.pk,
        name=made.url, request=request, reason="The first use of the default inbox.",
    )  # fmt: skip


# --- events -----------------------------------------------------------------------------------------


def fetch(inbox: Inbox, query: InboxQuery) -> tuple[uuid.UUID, list[FetchedEvent]]:
    """Lease what is asked for.  Raises Problem if the request could wait in vain: the inbox was disabled or deleted."""
    started = time.perf_counter()
    lease_id, events = fetching.fetch(inbox.id, query.limit, query.visibility, query.type)
    trace_fetch(inbox.id, inbox.organization_id, events, started)
    if query.wait and not events:
        check_still_open(inbox)
    return lease_id, events


def show_fetched(lease_id: uuid.UUID | None, events: Sequence[FetchedEvent]) -> dict[str, Any]:
    """Return the document of events under a lease."""
    return {
        "events": [
            {
                "id": event.event_id,
                "type": event.event_type,
                "payload": Fragment(event.event_data),
                "created_at": event.event_created_at,
                "delivery_status": DeliveryState.DELIVERING.value,
                "delivery_id": event.delivery_id,
                "attempt": event.attempt,
            }
            for event in events
        ],
        "next_cursor": None,
        "lease_id": lease_id if events else None,
        "lease_expires_at": events[0].lease_expires_at if events else None,
    }


def begin_log(inbox: Inbox, cursor: str) -> log.Place:
    """Return the place that a cursor names.  Raises Problem 400 for a foreign cursor, 410 for one that is too old."""
    if cursor == LATEST:
        return log.end_of(inbox.id)
    try:
        return log.decode(cursor, inbox.id, inbox.retention_days)
    except log.ForeignCursor:
        raise invalid(
            [("?cursor", "is not a cursor of this inbox; an empty one begins with the oldest event")],
            "A query parameter is not valid.",
        ) from None
    except log.ExpiredCursor:
        raise Problem(
            "cursor_expired",
            f"The cursor is older than the {inbox.retention_days} days for which events are kept, so events behind it "
            "may be gone. Begin again with an empty `cursor`.",
            extra={"retention_days": inbox.retention_days},
        ) from None


def read_log(inbox: Inbox, query: InboxQuery, place: log.Place) -> log.Page:
    """Return the next page of the log, with events of other types and statuses left out, and those that were erased.

    Raises Problem if the inbox was disabled or deleted meanwhile.
    """
    check_still_open(inbox)
    page = log.read(inbox.id, place, query.limit)
    events = [event for event in page.events if _is_wanted(query, event)]
    return log.Page(events, page.following, page.has_more)


def _is_wanted(query: InboxQuery, event: log.LoggedEvent) -> bool:
    if event.event_data == ERASED:  # there is nothing left to process; `null` might be what a producer has sent
        return False
    if query.status is not None and query.status != _log_status(event):
        return False
    return query.type is None or matches(query.type, event.event_type)


def _log_status(event: log.LoggedEvent) -> str:
    return delivery_state(event.status, event.last_error, event.lease_id, event.next_attempt_at)


def show_logged(event: log.LoggedEvent) -> dict[str, Any]:
    """Return an event of the log."""
    return {
        "id": event.event_id,
        "type": event.event_type,
        "payload": Fragment(event.event_data),
        "created_at": event.event_created_at,
        "delivery_status": _log_status(event),
        "delivery_id": event.delivery_id,
    }


def stream_begin(inbox: Inbox, place: log.Place) -> bytes:
    """Return the beginning of a stream: when, and from where, a client that has received nothing yet reconnects."""
    return b"retry: 1000\n" + stream_place(inbox, place)


def stream_place(inbox: Inbox, place: log.Place) -> bytes:
    """Return a message with the place to continue at, which may be after events that the client doesn't want."""
    return b"id: %b\n\n" % log.encode(inbox.id, place).encode()


def stream_event(inbox: Inbox, event: log.LoggedEvent) -> bytes:
    """Return an event of a stream.  A payload with line breaks becomes several `data` lines."""
    lines = b"\n".join(b"data: " + line for line in dumps(show_logged(event)).splitlines())
    return b"id: %b\n%b\n\n" % (log.encode(inbox.id, event.place).encode(), lines)


def show_log(inbox: Inbox, page: log.Page) -> dict[str, Any]:
    """Return the document of a page of the log."""
    return {
        "events": [show_logged(event) for event in page.events],
        "next_cursor": log.encode(inbox.id, page.following),
        "has_more": page.has_more,
    }


# --- acknowledging, giving back, extending ----------------------------------------------------------

Change = Callable[[uuid.UUID, list[uuid.UUID]], Mapping[uuid.UUID, Changed]]


def change(caller: Caller, items: Items, work: Change) -> list[tuple[str, str, Changed]]:
    """Do `work` with the deliveries that `items` names; return what became of each item, in their order."""
    is_default = items.inbox == inboxes.DEFAULT
    inbox = inboxes.find(caller.organization_id) if is_default else find_named(caller, items.inbox)
    if inbox is None:  # nothing was ever fetched from it
        return [(kind, text, Changed(ItemStatus.NOT_FOUND)) for kind, text in items.given]
    deliveries: list[uuid.UUID | None] = []
    for kind, text in items.given:
        one = parse_id(text)
        deliveries.append(derive_id(one, inbox.id) if one is not None and kind == "event_id" else one)
    changed = work(inbox.id, list({one for one in deliveries if one is not None}))
    missing = Changed(ItemStatus.NOT_FOUND)
    return [
        (kind, text, changed.get(one, missing) if one is not None else missing)
        for (kind, text), one in zip(items.given, deliveries, strict=True)
    ]


_SUCCEEDED = {
    ItemStatus.ACKNOWLEDGED, ItemStatus.ALREADY_ACKNOWLEDGED, ItemStatus.GIVEN_BACK, ItemStatus.EXTENDED,
}  # fmt: skip


def show_changed(verb: str, at: str, results: Sequence[tuple[str, str, Changed]]) -> dict[str, Any]:
    """Return the document of a request for many items.  verb: what succeeded.  at: the name of its time."""
    succeeded = sum(changed.status in _SUCCEEDED for _, _, changed in results)
    return {
        verb: succeeded,
        "failed": len(results) - succeeded,
        "results": [
            {kind: text[:100], "status": changed.status, at: changed.at if changed.status in _SUCCEEDED else None}
            for kind, text, changed in results
        ],
    }


def acknowledge(caller: Caller, items: Items) -> dict[str, Any]:
    """Acknowledge what `items` names, and return the document."""
    results = change(caller, items, lambda inbox, ids: fetching.acknowledge(inbox, ids, items.lease_id))
    return show_changed("acknowledged", "acknowledged_at", results)


def give_back(caller: Caller, items: Items) -> dict[str, Any]:
    """Give back what `items` names, and return the document."""
    results = change(caller, items, lambda inbox, ids: fetching.give_back(inbox, ids, items.seconds, items.lease_id))
    return show_changed("given_back", "available_at", results)


def extend(caller: Caller, items: Items) -> dict[str, Any]:
    """Extend the leases of what `items` names, and return the document."""
    results = change(caller, items, lambda inbox, ids: fetching.extend(inbox, ids, items.seconds, items.lease_id))
    return show_changed("extended", "lease_expires_at", results)


_REFUSALS = {
    ItemStatus.LEASE_EXPIRED: "The lease has ended: somebody else has fetched the event since, or it was given back.",
    ItemStatus.NOT_LEASED: "The event is not under a lease.",
    ItemStatus.CANCELLED: (
        "The delivery was cancelled: it was not fetched in time, its inbox was deleted, or its payload was erased."
    ),
}


def acknowledge_one(caller: Caller, one: uuid.UUID, items: Items) -> dict[str, Any]:
    """Acknowledge an event, by its id or the id of its delivery, and return the document.

    Raises Problem 404 for an unknown one, and 409 for one that can't be acknowledged.
    """
    items.given = [("event_id", str(one)), ("delivery_id", str(one))]
    results = change(caller, items, lambda inbox, ids: fetching.acknowledge(inbox, ids, items.lease_id))
    changed = next((found for _, _, found in results if found.status is not ItemStatus.NOT_FOUND), None)
    if changed is None:
        raise no_such("event or delivery")
    if changed.status not in _SUCCEEDED:
        raise Problem("not_acknowledged", _REFUSALS[changed.status], extra={"item_status": changed.status.value})
    again = changed.status is ItemStatus.ALREADY_ACKNOWLEDGED
    return {
        "id": one,
        "status": "acknowledged",
        "acknowledged_at": changed.at,
        "message": "The event was acknowledged before." if again else "The event is acknowledged.",
    }
