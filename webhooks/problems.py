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
        "too_many_previous_secrets",
        409,
        "Ten earlier secrets are still in use for signing; `next_rotation_at` says when the first of them ends.",
        "Ten earlier secrets still sign. Rotate again at 2027-01-31T12:00:00Z, or end them with `end_earlier_secrets`.",
        {"next_rotation_at": "2027-01-31T12:00:00Z"},
    ),
    ProblemType(
        "too_many_test_events",
        429,
        "Too many test events in a minute, or at a time; retry after `Retry-After`.",
        "The organization may send 10 test events a minute.",
    ),
    ProblemType(
        "too_many_previews",
        429,
        "Too many previews in a minute; retry after `Retry-After`.",
        "The organization may make 60 previews a minute.",
    ),
    ProblemType(
        "not_retryable",
        409,
        "The delivery is in flight, held, or cancelled; `delivery_status` says which.",
        "The delivery is held; enable its subscription first.",
        {"delivery_status": "held"},
    ),
)
