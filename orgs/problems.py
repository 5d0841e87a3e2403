"""Problem codes of authentication and of the keys' endpoints."""

from core.problems import ProblemType, register

register(
    ProblemType(
        "not_authenticated",
        401,
        "The request has no API key.",
        "Send an API key as `X-API-Key: <key>` or `Authorization: Bearer <key>`.",
    ),
    ProblemType(
        "invalid_api_key",
        401,
        "The API key is wrong, revoked, or expired, or its organization is inactive.",
        "The API key is not valid.",
    ),
    ProblemType(
        "missing_scope",
        403,
        "The key lacks the scope that the operation needs, or that it tried to grant.",
        "This key lacks the scope events:write.",
        {"scope": "events:write"},
    ),
    ProblemType(
        "outlives_caller",
        403,
        "A key tried to create one that expires later than itself.",
        "A key can't create one that expires later than itself.",
        {
            "errors": [
                {
                    "pointer": "/expires_at",
                    "detail": "a key can't create one that expires later than itself, at 2027-01-31T12:00:00+00:00",
                }
            ]
        },
    ),
    ProblemType(
        "too_many_keys",
        409,
        "The organization has reached its limit of API keys, `limit_keys`; revoked and expired ones don't count.",
        "The organization has 1000 API keys, which is the limit. Revoke one that isn't used.",
        {"limit_keys": 1000},
    ),
    ProblemType(
        "key_revoked",
        409,
        "The key to rotate is revoked.",
        "The key is revoked; create a new one instead.",
    ),
    ProblemType(
        "key_expired",
        409,
        "The key to rotate has expired.",
        "The key is expired; create a new one instead.",
    ),
    ProblemType(
        "idempotency_key_in_use",
        409,
        "A request with this `Idempotency-Key` is still being served; retry after `Retry-After`.",
        "A request with this Idempotency-Key is still being served. Send it again later to get its response.",
    ),
    ProblemType(
        "idempotent_response_lost",
        409,
        "A request with this `Idempotency-Key` was served, but the response that was kept can't be decrypted any more.",
        "The request was served, but its response can't be read any more: encryption keys were changed.",
    ),
    ProblemType(
        "idempotency_key_reused",
        422,
        "The `Idempotency-Key` was used for another body or another route in the last 24 hours.",
        "The Idempotency-Key was used for another request in the last 24 hours: another body, or another route. "
        "Nothing was stored.",
        {
            "errors": [
                {
                    "pointer": "#Idempotency-Key",
                    "detail": "was used for another request in the last 24 hours: another body, or another route",
                }
            ]
        },
    ),
    ProblemType(
        "too_many_failures",
        429,
        "Too many failed authentications from this address; retry after `Retry-After`.",
        "Too many failed authentications from this address.",
    ),
)
