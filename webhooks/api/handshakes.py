"""`handshake`: a member of requests that make or change a subscription, and what it does before they are served."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rest_framework.request import Request

from core.problems import Problem
from core.serializers import StrictBooleanField
from orgs.authentication import caller_of
from webhooks import handshake
from webhooks.models import Subscription
from webhooks.probes import TooManyProbes

HELP = (
    "Ask the endpoint first: it gets a POST with a random `X-Hook-Secret` and the subscription's own headers and "
    "credentials, and confirms with a 2xx that repeats this header, within 10 seconds. Otherwise nothing is stored. "
    "Automation platforms such as Zapier don't support it."
)


def handshake_field() -> StrictBooleanField:
    """Return the field of a request."""
    return StrictBooleanField(required=False, write_only=True, help_text=HELP)


def require_handshake(
    request: Request, url: str, values: Mapping[str, Any], pointer: str, current: Subscription | None = None
) -> None:
    """Return if the endpoint confirms.  pointer: to what names it in the body.  Raises Problem 422 or 429."""
    try:
        handshake.shake_hands(caller_of(request).organization_id, url, values, current)
    except TooManyProbes as error:
        headers = {"Retry-After": str(error.retry_after)}
        raise Problem("too_many_handshakes", error.sentence, headers=headers) from None
    except handshake.HandshakeFailed as error:
        failure = error.outcome.failure
        raise Problem(
            "handshake_failed",
            f"{error.sentence} The endpoint must respond to the handshake with a 2xx that repeats the header "
            f"{handshake.HEADER}. Nothing was stored.",
            errors=[(pointer, "doesn't confirm the handshake")],
            extra={"status_code": error.outcome.status_code, "error": failure.value if failure else None},
        ) from None
