"""The operations of the API: each function returns the request, which both clients send."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import quote

import msgspec

from triggers_client import models
from triggers_client.calls import Call, ListCall, new_key

T = TypeVar("T")

# A member that isn't sent, where None would mean something.
UNSET: Any = msgspec.UNSET
When = datetime.datetime | str


@dataclass(frozen=True, slots=True)
class NewEvent:
    """An event to send.

    data: any JSON value; `msgspec.Raw(text)` is sent as it is, byte for byte.  dedup_id: what makes the event
    recognizable if it is sent again, for example the id of what happened.
    """

    type: str
    data: Any = None
    dedup_id: str | None = None

    def document(self) -> dict[str, Any]:
        """Return the JSON object; one without a dedup_id gets a random one, so that it can be sent again."""
        return {"type": self.type, "data": self.data, "dedup_id": self.dedup_id or new_key()}


def _path(*parts: str) -> str:
    return "/api/" + "/".join(quote(str(part), safe="") for part in parts)


def _query(**parameters: Any) -> dict[str, str]:
    """Return the query's parameters without those that are None."""
    return {name.rstrip("_"): _text(value) for name, value in parameters.items() if value is not None}


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return value.isoformat() if isinstance(value, datetime.datetime) else str(value)


def _members(**members: Any) -> dict[str, Any]:
    """Return a body without the members that are UNSET."""
    return {name: value for name, value in members.items() if value is not msgspec.UNSET}


def _get(returns: Any, *path: str, wait: float = 0.0, **parameters: Any) -> Call[Any]:
    return Call("GET", _path(*path), returns, _query(**parameters), repeatable=True, wait=wait)


def _list(model: type[T], *path: str, **parameters: Any) -> ListCall[T]:
    return ListCall(_get(models.Page[model], *path, **parameters))  # type: ignore[valid-type]


def _delete(*path: str) -> Call[None]:
    return Call("DELETE", _path(*path), None, repeatable=True, gone_is_done=True)


def get_me() -> Call[models.Me]:
    """Tell whose key this is, and what it may do."""
    return _get(models.Me, "me")


# --- events -----------------------------------------------------------------------------------------


def send_event(type: str, data: Any = None, *, dedup_id: str | None = None) -> Call[models.EventReceipt]:
    """Send an event.

    data: any JSON value; `msgspec.Raw(text)` is sent as it is.  Without a dedup_id, a random one is sent, so that the
    event is stored once, however often the request has to be repeated.
    """
    body = NewEvent(type, data, dedup_id).document()
    return Call("POST", _path("events"), models.EventReceipt, body=body, repeatable=True)


def send_batch(events: Iterable[NewEvent]) -> Call[models.BatchReceipt]:
    """Send several events in one request.  The receipt says for each what came of it."""
    body = [event.document() for event in events]
    return Call("POST", _path("events", "batch"), models.BatchReceipt, body=body, repeatable=True)


def list_events(
    *, type: str | None = None, status: str | None = None, undelivered: bool | None = None,
    since: When | None = None, until: When | None = None, limit: int | None = None,
) -> ListCall[models.Event]:  # fmt: skip
    """List events, the newest first.  type: one, or a prefix such as `order.*`.  limit: of one page."""
    return _list(
        models.Event, "events", type=type, status=status, undelivered=undelivered, since=since, until=until, limit=limit
    )


def get_event(event_id: str) -> Call[models.EventWithDeliveries]:
    """Return an event with its deliveries."""
    return _get(models.EventWithDeliveries, "events", event_id)


# --- subscriptions ----------------------------------------------------------------------------------


def list_subscriptions(*, state: str | None = None, limit: int | None = None) -> ListCall[models.Subscription]:
    """List subscriptions.  state: `active`, `failing`, `paused`, or `disabled`."""
    return _list(models.Subscription, "subscriptions", state=state, limit=limit)


def get_subscription(subscription_id: str) -> Call[models.Subscription]:
    """Return a subscription."""
    return _get(models.Subscription, "subscriptions", subscription_id)


def create_subscription(
    url: str, event_types: Sequence[str], *, description: str = UNSET, headers: Mapping[str, str] = UNSET,
    max_in_flight: int | None = UNSET, deliveries_per_second: float | None = UNSET, format: str = UNSET,
    transform: str = UNSET,
) -> Call[models.Subscription]:  # fmt: skip
    """Subscribe an endpoint.  The secret is in this response and can't be read again."""
    body = _members(
        url=url, event_types=list(event_types), description=description, headers=headers, max_in_flight=max_in_flight,
        deliveries_per_second=deliveries_per_second, format=format, transform=transform,
    )  # fmt: skip
    return Call("POST", _path("subscriptions"), models.Subscription, body=body, keyed=True)


def create_inbox(name: str, event_types: Sequence[str], *, description: str = UNSET) -> Call[models.Subscription]:
    """Make an inbox: a subscription whose events wait until they are fetched."""
    body = _members(kind="inbox", inbox=name, event_types=list(event_types), description=description)
    return Call("POST", _path("subscriptions"), models.Subscription, body=body, keyed=True)


def change_subscription(
    subscription_id: str, *, url: str = UNSET, event_types: Sequence[str] = UNSET, description: str = UNSET,
    headers: Mapping[str, str] = UNSET, max_in_flight: int | None = UNSET,
    deliveries_per_second: float | None = UNSET, format: str = UNSET, transform: str = UNSET,
) -> Call[models.Subscription]:  # fmt: skip
    """Change what is given; the rest stays as it is."""
    body = _members(
        url=url, event_types=event_types, description=description, headers=headers, max_in_flight=max_in_flight,
        deliveries_per_second=deliveries_per_second, format=format, transform=transform,
    )  # fmt: skip
    path = _path("subscriptions", subscription_id)
    return Call("PATCH", path, models.Subscription, body=body, repeatable=True)


def delete_subscription(subscription_id: str) -> Call[None]:
    """Delete a subscription; what waits for it is cancelled."""
    return _delete("subscriptions", subscription_id)


def enable_subscription(subscription_id: str) -> Call[models.Subscription]:
    """Enable a subscription; what was held for it is sent."""
    return Call("POST", _path("subscriptions", subscription_id, "enable"), models.Subscription, repeatable=True)


def disable_subscription(subscription_id: str, reason: str = "") -> Call[models.Subscription]:
    """Disable a subscription; what comes for it is held."""
    body = {"reason": reason} if reason else {}
    path = _path("subscriptions", subscription_id, "disable")
    return Call("POST", path, models.Subscription, body=body, repeatable=True)


def rotate_secret(
    subscription_id: str, *, overlap_seconds: int = UNSET, end_earlier_secrets: bool = UNSET
) -> Call[models.Subscription]:
    """Replace the secret.  Requests are signed with the old one, too, for `overlap_seconds`."""
    body = _members(overlap_seconds=overlap_seconds, end_earlier_secrets=end_earlier_secrets)
    path = _path("subscriptions", subscription_id, "rotate-secret")
    return Call("POST", path, models.Subscription, body=body, keyed=True)


def preview_subscription(
    subscription_id: str, *, type: str = UNSET, data: Any = UNSET, event_id: str = UNSET, format: str = UNSET,
    transform: str = UNSET,
) -> Call[models.Preview]:  # fmt: skip
    """Show the request that an event would be sent as.  Give an event's type and data, or the id of a stored one."""
    body = _members(type=type, data=data, event_id=event_id, format=format, transform=transform)
    path = _path("subscriptions", subscription_id, "preview")
    return Call("POST", path, models.Preview, body=body, repeatable=True)


def test_subscription(subscription_id: str) -> Call[models.EndpointTest]:
    """Send a test event to the endpoint now, and return what came of it."""
    path = _path("subscriptions", subscription_id, "test")
    # An attempt takes as long as the endpoint does, which is at most half a minute by default.
    return Call("POST", path, models.EndpointTest, wait=30.0)


def recover_subscription(subscription_id: str, since: When) -> Call[models.Recovery]:
    """Queue the events since a time that match the subscription and weren't delivered to it."""
    path = _path("subscriptions", subscription_id, "recover")
    return Call("POST", path, models.Recovery, body={"since": _text(since)}, keyed=True)


def get_recovery(subscription_id: str, recovery_id: str) -> Call[models.Recovery]:
    """Return how far a recovery is."""
    return _get(models.Recovery, "subscriptions", subscription_id, "recoveries", recovery_id)


# --- deliveries -------------------------------------------------------------------------------------


def list_deliveries(
    *, event: str | None = None, subscription: str | None = None, status: str | None = None,
    since: When | None = None, until: When | None = None, limit: int | None = None,
) -> ListCall[models.Delivery]:  # fmt: skip
    """List deliveries, the newest first.  event, subscription: ids."""
    return _list(
        models.Delivery, "deliveries", event=event, subscription=subscription, status=status, since=since, until=until,
        limit=limit,
    )  # fmt: skip


def get_delivery(delivery_id: str) -> Call[models.DeliveryWithAttempts]:
    """Return a delivery with its attempts."""
    return _get(models.DeliveryWithAttempts, "deliveries", delivery_id)


def get_attempt(delivery_id: str, number: int) -> Call[models.Attempt]:
    """Return an attempt with what went over the wire."""
    return _get(models.Attempt, "deliveries", delivery_id, "attempts", str(number))


def retry_delivery(delivery_id: str) -> Call[models.Delivery]:
    """Make one more attempt now."""
    return Call("POST", _path("deliveries", delivery_id, "retry"), models.Delivery, keyed=True)


def skip_delivery(delivery_id: str) -> Call[models.Delivery]:
    """Give up a delivery of an ordering key, so that the next one of the key is sent."""
    return Call("POST", _path("deliveries", delivery_id, "skip"), models.Delivery, keyed=True)


# --- event types ------------------------------------------------------------------------------------


def list_event_types(
    *, name: str | None = None, archived: bool | None = None, limit: int | None = None
) -> ListCall[models.EventType]:
    """List the types of the catalog."""
    return _list(models.EventType, "event-types", name=name, archived=archived, limit=limit)


def get_event_type(event_type_id: str) -> Call[models.EventType]:
    """Return a type of the catalog."""
    return _get(models.EventType, "event-types", event_type_id)


def create_event_type(
    name: str, *, description: str = UNSET, schema: Any = UNSET, examples: Sequence[Any] = UNSET, archived: bool = UNSET
) -> Call[models.EventType]:
    """Add a type to the catalog."""
    body = _members(name=name, description=description, schema=schema, examples=examples, archived=archived)
    return Call("POST", _path("event-types"), models.EventType, body=body, keyed=True)


def change_event_type(
    event_type_id: str, *, description: str = UNSET, schema: Any = UNSET, examples: Sequence[Any] = UNSET,
    archived: bool = UNSET,
) -> Call[models.EventType]:  # fmt: skip
    """Change what is given; the rest stays as it is."""
    body = _members(description=description, schema=schema, examples=examples, archived=archived)
    return Call("PATCH", _path("event-types", event_type_id), models.EventType, body=body, repeatable=True)


def delete_event_type(event_type_id: str) -> Call[None]:
    """Remove a type from the catalog; events that have it stay as they are."""
    return _delete("event-types", event_type_id)


def import_event_types(openapi: Mapping[str, Any]) -> Call[models.Page[models.ImportedEventType]]:
    """Make a type of each of the webhooks of an OpenAPI 3.1 document."""
    returns = models.Page[models.ImportedEventType]
    # The second time, there is nothing to change.
    return Call("POST", _path("event-types", "import"), returns, body=dict(openapi), keyed=True, repeatable=True)


def get_event_type_settings() -> Call[models.EventTypeSettings]:
    """Return which events the organization takes."""
    return _get(models.EventTypeSettings, "event-types", "settings")


def change_event_type_settings(strictness: str) -> Call[models.EventTypeSettings]:
    """Choose which events the organization takes: `free`, `known`, or `schema`."""
    path = _path("event-types", "settings")
    return Call("PATCH", path, models.EventTypeSettings, body={"strictness": strictness}, repeatable=True)


# --- inbox ------------------------------------------------------------------------------------------


def fetch_inbox(
    inbox: str | None = None, *, limit: int | None = None, type: str | None = None, wait: float = 0.0,
    visibility: float | None = None,
) -> Call[models.Fetched]:  # fmt: skip
    """Lease the oldest events, for `visibility` seconds.  wait: for up to 20 seconds, if there is nothing."""
    return _get(
        models.Fetched, "inbox", inbox=inbox, limit=limit, type=type, wait_=wait or None, visibility=visibility,
        wait=wait,
    )  # fmt: skip


def fetch_raw(inbox: str, *, limit: int, wait: float, visibility: float) -> Call[models.RawFetched]:
    """Lease the oldest events, and return their payloads as the producer sent them, byte for byte."""
    return _get(models.RawFetched, "inbox", inbox=inbox, limit=limit, wait_=wait, visibility=visibility, wait=wait)


def _settle(
    action: str, ids: Iterable[str], lease_id: str | None, inbox: str | None, **more: Any
) -> Call[models.Settled]:
    body = _members(
        event_ids=list(ids), lease_id=UNSET if lease_id is None else lease_id, inbox=UNSET if inbox is None else inbox,
        **more,
    )  # fmt: skip
    return Call("POST", _path("inbox", action), models.Settled, body=body, repeatable=True)


def acknowledge(
    event_ids: Iterable[str], *, lease_id: str | None = None, inbox: str | None = None
) -> Call[models.Settled]:
    """Acknowledge events: they are delivered.  lease_id: that of the fetch, so that only its holder can do it."""
    return _settle("ack", event_ids, lease_id, inbox)


def give_back(
    event_ids: Iterable[str], *, lease_id: str | None = None, inbox: str | None = None, delay: float = UNSET
) -> Call[models.Settled]:
    """Give events back: others can fetch them at once, or after `delay` seconds."""
    return _settle("nack", event_ids, lease_id, inbox, delay=delay)


def extend_leases(
    event_ids: Iterable[str], *, lease_id: str | None = None, inbox: str | None = None, visibility: float = UNSET
) -> Call[models.Settled]:
    """Let the leases of events end in `visibility` seconds from now."""
    return _settle("extend", event_ids, lease_id, inbox, visibility=visibility)


def read_log(
    cursor: str = "", *, inbox: str | None = None, limit: int | None = None, type: str | None = None, wait: float = 0.0
) -> Call[models.LogPage]:
    """Return a page of the log, without leasing anything.  cursor: empty for the oldest event, or `latest`."""
    return _get(
        models.LogPage, "inbox", inbox=inbox, cursor=cursor, limit=limit, type=type, wait_=wait or None, wait=wait
    )


def stream_inbox(cursor: str = "latest", *, inbox: str | None = None, type: str | None = None) -> Call[None]:
    """Follow the log: events as they come, from a cursor on.  Without one, it begins with what comes next."""
    return _get(None, "inbox", "stream", cursor=cursor, inbox=inbox, type=type)
