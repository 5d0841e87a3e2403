"""Signatures of Standard Webhooks 1.0 (symmetric, `v1`), for those who receive webhooks."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import secrets
import time
from collections.abc import Iterable, Mapping
from typing import Any

PREFIX = "whsec_"
TOLERANCE_SECONDS = 300


class WebhookVerificationError(Exception):
    """The request isn't genuine, or too old: return a 400 or 401 for it, and don't process it."""


def new_secret() -> str:
    """Return a fresh secret: `whsec_` and the base64 of 32 random bytes."""
    return PREFIX + base64.b64encode(secrets.token_bytes(32)).decode()


def sign(payload: bytes, webhook_id: str, timestamp: int, secret: str) -> str:
    """Return the `webhook-signature` of a request.  timestamp: in seconds.  Raises ValueError for a bad secret."""
    signed = b"%b.%d.%b" % (webhook_id.encode(), timestamp, payload)
    return "v1," + base64.b64encode(hmac.digest(_key(secret), signed, hashlib.sha256)).decode()


def verify(
    payload: bytes | str,
    headers: Mapping[str, str] | Iterable[tuple[str, str]],
    secret: str | Iterable[str],
    *,
    tolerance: float = TOLERANCE_SECONDS,
    now: float | None = None,
) -> Any:
    """Return the JSON of a request that is genuine and recent.

    payload: the body as it came, before anything has parsed it.  headers: names in any case.  secret: one, or several
    while one is replaced; one of them has to match one of the signatures.  tolerance: how many seconds the sender's
    clock, `now`, may differ.  Raises WebhookVerificationError, and ValueError for something that isn't a secret.
    """
    body = payload.encode() if isinstance(payload, str) else bytes(payload)
    pairs = headers.items() if isinstance(headers, Mapping) else headers
    found = {name.lower(): value for name, value in pairs}
    candidates = [secret] if isinstance(secret, str) else list(secret)
    if not candidates:
        raise ValueError("at least one secret is needed")
    try:
        webhook_id, sent, given = (found[f"webhook-{name}"] for name in ("id", "timestamp", "signature"))
    except KeyError as missing:
        raise WebhookVerificationError(f"The request has no header {missing}.") from None
    if not (sent.isascii() and sent.isdigit() and len(sent) <= 12):
        raise WebhookVerificationError("webhook-timestamp isn't a number of seconds.")
    difference = (time.time() if now is None else now) - int(sent)
    if abs(difference) > tolerance:
        raise WebhookVerificationError(
            f"webhook-timestamp is {abs(difference):.0f} seconds in the {'past' if difference > 0 else 'future'}."
        )
    expected = [sign(body, webhook_id, int(sent), one).encode() for one in candidates]
    signatures = [one.encode() for one in given.split(" ")]
    # Compare all, so that the time doesn't depend on which of them matches.
    matches = [hmac.compare_digest(right, one) for right in expected for one in signatures]
    if not any(matches):
        raise WebhookVerificationError("No signature matches.")
    try:
        return json.loads(body)
    except ValueError:
        raise WebhookVerificationError("The body isn't JSON.") from None


def _key(secret: str) -> bytes:
    try:
        key = base64.b64decode(secret.removeprefix(PREFIX), validate=True)
    except binascii.Error:
        raise ValueError(f"A secret is {PREFIX} and base64.") from None
    if not 24 <= len(key) <= 64:
        raise ValueError("A secret holds 24 to 64 bytes.")
    return key
