"""The health endpoints in the OpenAPI schema: plain Django views, which drf-spectacular doesn't see."""

from __future__ import annotations

from typing import Any

from core.openapi import HEADERS, Schema, enums
from events.models import EventStatus
from orgs.models import Strictness
from orgs.scopes import Scope
from webhooks.destinations.inbox.fetching import ItemStatus
from webhooks.destinations.outcome import Failure
from webhooks.models import FORMATS, BulkRun, Cause, DestinationKind
from webhooks.states import Breaker, DeliveryState, SubscriptionState
from webhooks.stats import PauseReason

_HEADERS: Schema = {name: {"$ref": f"#/components/headers/{name}"} for name in HEADERS if name.startswith("X-")}
_COUNT: Schema = {"type": "integer", "minimum": 0}
_SECONDS: Schema = {"type": "number", "minimum": 0}
_SERVICE = "The name of the service."


def _object(**properties: Schema) -> Schema:
    return {"type": "object", "required": list(properties), "properties": properties}


_HEALTH = _object(
    status={"type": "string", "enum": ["healthy"], "description": "Always this: the process responds."},
    service={"type": "string", "enum": ["Zapier Triggers API"], "description": _SERVICE},
)
_DETAILED: Schema = {
    "type": "object",
    "required": ["status", "service", "redis", "database", "workers", "config"],
    "properties": {
        "status": {
            "type": "string",
            "enum": ["healthy", "degraded", "unhealthy"],
            "description": "`degraded`: events are accepted and stored, but something is slower or missing.",
        },
        "service": {"type": "string", "description": _SERVICE},
        "redis": {
            "type": "string",
            "enum": ["up", "down", "refuses_writes"],
            "description": "`refuses_writes`: it responds, but is full, read-only, or can't save.",
        },
        "database": {"type": "string", "enum": ["up", "down"], "description": "`down`: it doesn't respond."},
        "queues": {
            **_object(
                event_queue_length={**_COUNT, "description": "Accepted events that are waiting for their fan-out."},
                webhook_queue_length={**_COUNT, "description": "Deliveries that could be sent now."},
                event_pending_processing={**_COUNT, "description": "Events being fanned out."},
                webhook_pending_processing={**_COUNT, "description": "Deliveries being sent."},
                counted_up_to={
                    **_COUNT,
                    "description": "Where counting stops; a number with this value means at least this many.",
                },
            ),
            "description": "What is waiting and in work. Absent while the database is down.",
        },
        "oldest_waiting_seconds": {
            **_object(
                event={**_SECONDS, "description": "How long the oldest accepted event has waited for its fan-out."},
                webhook={
                    **_SECONDS,
                    "description": "How long the delivery that is due longest has waited to be sent.",
                },
            ),
            "description": "In seconds; 0 if nothing waits. Absent while the database is down.",
        },
        "paused_deliveries": {
            **_object(
                **{
                    reason.value: {**_COUNT, "description": text}
                    for reason, text in {
                        PauseReason.CIRCUIT_BREAKER: "Behind a circuit breaker that isn't closed.",
                        PauseReason.RETRY_AFTER: "The endpoint asked for a pause with `Retry-After`.",
                        PauseReason.RATE_LIMIT: "The subscription's `deliveries_per_second` is used up.",
                        PauseReason.CONCURRENCY_LIMIT: "As many requests are in flight as the endpoint takes.",
                        PauseReason.HELD: "The subscription is disabled, or an operator holds the delivery.",
                        PauseReason.SENDING_DISABLED: "`DISABLE_WEBHOOK_DELIVERY` is set.",
                    }.items()
                }
            ),
            "description": "Deliveries whose time has come and that can't be sent now, by reason, each counted up to "
            "`queues.counted_up_to`. Absent while the database is down.",
        },
        "workers": {"type": ["integer", "null"], "description": "Live workers; null while Redis takes no writes."},
        "config": {"type": "object", "description": "The limits in force."},
        "reasons": {"type": "array", "items": {"type": "string"}, "description": "What is wrong, if anything is."},
    },
}


def _answer(description: str, schema: str) -> Schema:
    return {
        "description": description,
        "headers": _HEADERS,
        "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}},
    }


_SHARED: Schema = {status: {"$ref": f"#/components/responses/{status}"} for status in ("400", "414", "500")}

_PATHS: Schema = {
    "/api/health": {
        "get": {
            "operationId": "getHealth",
            "tags": ["Health"],
            "summary": "Check that a process is alive",
            "description": "For load balancers. It checks nothing but the web process and needs no key.",
            "security": [],
            "responses": {"200": _answer("The process is alive.", "Health"), **_SHARED},
        }
    },
    "/api/health/detailed": {
        "get": {
            "operationId": "getDetailedHealth",
            "tags": ["Health"],
            "summary": "Get the state of the system and its queues",
            "description": "For operators. It needs no key and is cheap, however long the queues are.",
            "security": [],
            "responses": {
                "200": _answer("Every part is up.", "DetailedHealth"),
                "503": _answer("A part is down; `reasons` says which.", "DetailedHealth"),
                **_SHARED,
            },
        }
    },
}


def add_health(result: Schema, **_: Any) -> Schema:
    """drf-spectacular's hook: add the health endpoints."""
    result["paths"].update(_PATHS)
    result["components"]["schemas"].update(Health=_HEALTH, DetailedHealth=_DETAILED)
    return result


def name_enums(result: Schema, **_: Any) -> Schema:
    """Give the enums that several operations have a name each.  A postprocessing hook of drf-spectacular."""
    enums.name_enums(
        result,
        {
            "AttemptCause": Cause.values,
            "BreakerState": Breaker.values,
            "DeliveryFormat": FORMATS,
            "DeliveryStatus": DeliveryState.values,
            "DestinationKind": DestinationKind.values,
            "EventStatus": EventStatus.values,
            "FailureClass": [failure.value for failure in Failure],
            "InboxItemStatus": [status.value for status in ItemStatus],
            "RunStatus": BulkRun.State.values,
            "Scope": Scope.values,
            "SortOrder": ["desc", "asc"],
            "Strictness": Strictness.values,
            "SubscriptionState": SubscriptionState.values,
            "SubscriptionSwitch": ["active", "disabled"],
        },
    )
    return result
