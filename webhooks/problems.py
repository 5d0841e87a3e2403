"""Problem codes of the subscriptions' and deliveries' endpoints."""

from core.problems import ProblemType, register

register(
    ProblemType(
        "too_many_subscriptions",
        409,
        "The organization has as many subscriptions as it may.",
        "The organization has as many subscriptions as it may.",
    ),
    ProblemType(
        "not_retryable",
        409,
        "The delivery is in flight, held or cancelled; `delivery_status` says which.",
        "The delivery is held; enable its subscription first.",
        {"delivery_status": "held"},
    ),
)
