"""Problem codes of the subscriptions' and deliveries' endpoints."""

from core.problems import ProblemType, register

register(
    ProblemType(
        "too_many_subscriptions",
        409,
        "The organization has reached its limit of subscriptions.",
        "The organization has reached its limit of subscriptions.",
    ),
    ProblemType(
        "hook_exists",
        409,
        "The URL is subscribed to other events already: to other types, or with another `filter` or other `channels`. "
        "`hook_id` names the hook.",
        "This URL is subscribed to order.paid. Unsubscribe it with `DELETE /api/hooks/{hook_id}` first.",
        {
            "hook_id": "0198f2d0-6d3c-7a52-9b1e-2f4c8a7d1e91",
            "event_types": ["order.paid"],
            "filter": None,
            "channels": [],
        },
    ),
    ProblemType(
        "handshake_failed",
        422,
        "The endpoint didn't confirm the handshake that the request asked for; `error` is the error class of the "
        "request to it, null if its response lacked the echo.",
        "The endpoint's response had no X-Hook-Secret. The endpoint must respond to the handshake with a 2xx that "
        "repeats the header X-Hook-Secret. Nothing was stored.",
        {"status_code": 200, "error": None, "errors": [{"pointer": "/url", "detail": "doesn't confirm the handshake"}]},
    ),
    ProblemType(
        "too_many_handshakes",
        429,
        "Too many handshakes in a minute, or another one is under way; retry after `Retry-After`.",
        "The organization may send 30 handshakes a minute.",
    ),
    ProblemType(
        "too_many_previous_secrets",
        409,
        "Ten earlier secrets are still in use for signing; `next_rotation_at` says when the first of them ends.",
        "Ten earlier secrets still sign. Rotate again at 2027-01-31T12:00:00Z, or end them with `end_earlier_secrets`.",
        {"next_rotation_at": "2027-01-31T12:00:00Z"},
    ),
    ProblemType(
        "too_many_secrets",
        409,
        "Ten secrets sign in addition to the current one; remove one of them, or wait until one expires.",
        "10 secrets sign in addition to the current one. Remove one of them first.",
    ),
    ProblemType(
        "secret_exists",
        409,
        "The subscription has this secret already.",
        "The subscription has this secret already.",
    ),
    ProblemType(
        "last_secret",
        409,
        "The secret is the only one without an end; add another one first.",
        "No other secret of the subscription is without an end. Add one first.",
    ),
    ProblemType(
        "too_many_test_events",
        429,
        "Too many test events in a minute, or another one is under way; retry after `Retry-After`.",
        "The organization may send 10 test events a minute.",
    ),
    ProblemType(
        "too_many_previews",
        429,
        "Too many previews in a minute; retry after `Retry-After`.",
        "The organization may make 60 previews a minute.",
    ),
    ProblemType(
        "too_many_runs",
        429,
        "Too many retries of many deliveries, or recoveries, are under way; retry after `Retry-After`.",
        "20 retries or recoveries of the organization are under way. Wait for one to end.",
    ),
    ProblemType(
        "not_retryable",
        409,
        "The delivery is in flight, held, or cancelled, as `delivery_status` says, or its event's payload was erased.",
        "The delivery is held; enable its subscription first.",
        {"delivery_status": "held"},
    ),
    ProblemType(
        "not_skippable",
        409,
        "The delivery has no ordering key, is in flight, or is over, as `delivery_status` says.",
        "The delivery was delivered.",
        {"delivery_status": "delivered"},
    ),
    ProblemType(
        "inbox_not_found",
        404,
        "The organization has no inbox of this name.",
        "The organization has no inbox named orders.",
    ),
    ProblemType(
        "inbox_disabled",
        409,
        "The inbox is disabled; `subscription_id` names the subscription to enable.",
        "The inbox is disabled: Disabled by request. What comes is held.",
        {"subscription_id": "0198f2d0-6d3c-7a52-9b1e-2f4c8a7d1e91"},
    ),
    ProblemType(
        "uid_taken",
        409,
        "Another subscription of the organization has this `uid`; `subscription_id` names it.",
        "Another subscription of the organization has this uid.",
        {"subscription_id": "0198f2d0-6d3c-7a52-9b1e-2f4c8a7d1e91"},
    ),
    ProblemType(
        "inbox_exists",
        409,
        "The organization has an inbox of this name already; `subscription_id` names it.",
        "The organization has an inbox named orders already.",
        {"subscription_id": "0198f2d0-6d3c-7a52-9b1e-2f4c8a7d1e91"},
    ),
    ProblemType(
        "not_for_inboxes",
        409,
        "The subscription is an inbox, to which nothing is sent.",
        "The subscription is an inbox: it has no secret.",
    ),
    ProblemType(
        "not_acknowledged",
        409,
        "The event can't be acknowledged; `item_status` says why.",
        "The lease has ended: another consumer has fetched the event since, or it was given back.",
        {"item_status": "lease_expired"},
    ),
    ProblemType(
        "cursor_expired",
        410,
        "The cursor is older than the `retention_days` for which events are kept; begin again with an empty one.",
        "The cursor is older than the 30 days for which events are kept, so events behind it may be gone.",
        {"retention_days": 30},
    ),
    ProblemType(
        "too_many_consumers",
        429,
        "Too many of the organization's requests wait at its inboxes; retry after `Retry-After`.",
        "2000 requests of the organization are waiting at its inboxes, which is the limit for a web process.",
    ),
)
