"""The client of Triggers API: `Client` and `AsyncClient`, `verify` for receivers of webhooks, and the errors."""

from triggers_client.aio import AsyncClient
from triggers_client.client import Client
from triggers_client.deprecations import ApiDeprecationWarning
from triggers_client.errors import (
    AuthenticationError,
    BadRequestError,
    ConflictError,
    ConnectionFailedError,
    CursorExpiredError,
    DedupConflictError,
    FieldError,
    GoneError,
    InboxNotFoundError,
    InvalidApiKeyError,
    MissingScopeError,
    NotFoundError,
    NotRetryableError,
    PermissionDeniedError,
    RateLimitedError,
    ServerError,
    TooLargeError,
    TriggersError,
)
from triggers_client.operations import NewEvent
from triggers_client.webhooks import WebhookVerificationError, new_secret, sign, verify

__version__ = "1.0.0"

__all__ = [
    "ApiDeprecationWarning",
    "AsyncClient",
    "AuthenticationError",
    "BadRequestError",
    "Client",
    "ConflictError",
    "ConnectionFailedError",
    "CursorExpiredError",
    "DedupConflictError",
    "FieldError",
    "GoneError",
    "InboxNotFoundError",
    "InvalidApiKeyError",
    "MissingScopeError",
    "NewEvent",
    "NotFoundError",
    "NotRetryableError",
    "PermissionDeniedError",
    "RateLimitedError",
    "ServerError",
    "TooLargeError",
    "TriggersError",
    "WebhookVerificationError",
    "new_secret",
    "sign",
    "verify",
]
