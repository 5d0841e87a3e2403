"""Descriptions of members that several responses have, about events and, as both apps show them, their deliveries."""

from __future__ import annotations

EVENT_TYPE = "The event's type, such as `order.created`."
EVENT_ID = "The event's id."
ACCEPTED_AT = "When the event was accepted."

TYPE_NAME = "The `type` of the events, such as `order.created`."
TYPE_DESCRIPTION = "What happened when there is such an event."
TYPE_ARCHIVED = "Whether new events shouldn't have this type any more."

DELIVERED_EVENT = "The id of the event that is delivered."
DELIVERY_ID = "The delivery's id, for `/api/deliveries/{delivery_id}`."
SUBSCRIPTION_ID = "The id of the subscription that it is delivered to."
DELIVERY_STATUS = (
    "`pending` waits for its first attempt, `retrying` failed and waits for another one. In an inbox, `pending` can be "
    "fetched, `delivering` is with a consumer that has fetched it, and `retrying` was given back."
)
ATTEMPT_COUNT = "How many attempts were made; for an inbox, how often it was fetched."
NEXT_ATTEMPT_AT = (
    "When the next attempt is due; null if none is planned, or if it waits for an earlier delivery of its ordering "
    "key. Of an inbox: when it can be fetched; while it is `delivering`, that is the end of the lease."
)
COMPLETED_AT = "When it became `delivered`, `failed`, or `cancelled`; null before that."
