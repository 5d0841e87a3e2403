"""Which address a request comes from."""

from __future__ import annotations

from django.conf import settings
from django.http import HttpRequest

from core.front_door.http import Request


def client_address(request: HttpRequest | Request) -> str:
    """Return the client's address: the peer's, or the one seen by the outermost of TRUSTED_PROXIES proxies."""
    hops = settings.TRUSTED_PROXIES
    if hops:
        forwarded = [part.strip() for part in request.META.get("HTTP_X_FORWARDED_FOR", "").split(",")]
        if len(forwarded) >= hops and forwarded[-hops]:
            return str(forwarded[-hops])
    return str(request.META.get("REMOTE_ADDR", ""))
