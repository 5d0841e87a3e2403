"""Problem codes of the events' endpoints."""

from core.problems import ProblemType, register

_EVENT_ID = "0198f2d0-6d3c-7a52-9b1e-2f4c8a7d1e91"

register(
    ProblemType(
        "dedup_conflict",
        409,
        "The `dedup_id` was used for an event with different content; `event_id` and `Location` name that event.",
        "This dedup_id was used for an event with different content.",
        {
            "event_id": _EVENT_ID,
            "errors": [{"pointer": "/dedup_id", "detail": f"stands for the event {_EVENT_ID}, whose content differs"}],
        },
    ),
    ProblemType(
        "event_type_exists",
        409,
        "The organization has an event type with this name.",
        "There is an event type with this name.",
        {"errors": [{"pointer": "/name", "detail": "is taken"}]},
    ),
    ProblemType(
        "too_many_event_types",
        409,
        "The organization has `limit_event_types` event types.",
        "The organization has 1000 event types, which is the limit (MAX_EVENT_TYPES). Delete one that isn't used.",
        {"limit_event_types": 1000},
    ),
    ProblemType(
        "too_many_events",
        413,
        "The batch holds more than `limit_events` events.",
        "The batch holds 1200 events; the limit is 1000.",
        {"limit_events": 1000},
    ),
    ProblemType(
        "rate_limited",
        429,
        "The organization has reached its limit of events, or of repeated requests, per minute; see `Retry-After`.",
        "The organization may send 60000 events a minute.",
    ),
    ProblemType(
        "event_backlog_full",
        429,
        "The organization has `limit_events` accepted events that aren't processed yet; retry after `Retry-After`.",
        "The organization has 20000 accepted events waiting to be processed, which is the limit "
        "(MAX_WAITING_EVENTS). Nothing was stored; try again.",
        {"limit_events": 20000},
    ),
    ProblemType(
        "delivery_backlog_full",
        429,
        "The organization has `limit_deliveries` deliveries that are pending or held; retry after `Retry-After`.",
        "The organization has 1000000 deliveries waiting, which is the limit (MAX_WAITING_DELIVERIES). Nothing "
        "was stored. `GET /api/deliveries?status=pending` and `?status=held` list them.",
        {"limit_deliveries": 1000000},
    ),
    ProblemType(
        "backlog_full",
        503,
        "Too many accepted events are waiting to be processed, over all organizations; retry after `Retry-After`.",
        "Too many accepted events of all organizations are waiting (MAX_QUEUE_LENGTH). Nothing was stored; try again.",
    ),
)
