"""Standard Webhooks 1.0 signatures: symmetric (`v1`, HMAC-SHA256) and asymmetric (`v1a`, ed25519)."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
from collections.abc import Iterable
from enum import StrEnum

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

PREFIX = "whsec_"
PRIVATE_PREFIX = "whsk_"
PUBLIC_PREFIX = "whpk_"
SECRET_BYTES = 32
_SEED_BYTES = 32

Key = bytes | Ed25519PrivateKey


class SecretType(StrEnum):
    """What a secret signs with: a key that both sides share, or one whose public half the receiver has."""

    HMAC = "hmac-sha256"
    ED25519 = "ed25519"


def new_secret(secret_type: str = SecretType.HMAC) -> str:
    """Return a fresh secret: `whsec_` and the base64 of 32 random bytes, or an ed25519 key as `whsk_…`."""
    if secret_type == SecretType.ED25519:
        private = Ed25519PrivateKey.generate()
        raw = private.private_bytes_raw() + private.public_key().public_bytes_raw()
        return PRIVATE_PREFIX + base64.b64encode(raw).decode()
    return PREFIX + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()


def type_of(secret: str) -> SecretType:
    """Return what a valid secret signs with."""
    return SecretType.ED25519 if secret.startswith(PRIVATE_PREFIX) else SecretType.HMAC


def secret_key(secret: str) -> Key:
    """Return the key behind a secret.  Raises ValueError when it isn't one; the message never quotes it."""
    prefix = next((known for known in (PREFIX, PRIVATE_PREFIX) if secret.startswith(known)), None)
    if prefix is None:
        raise ValueError(f"a secret starts with {PREFIX}, or with {PRIVATE_PREFIX} for ed25519")
    try:
        key = base64.b64decode(secret[len(prefix) :], validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("a secret is base64 after its prefix") from None
    if prefix == PREFIX:
        if not 24 <= len(key) <= 64:
            raise ValueError("a secret holds 24 to 64 bytes")
        return key
    if len(key) not in (_SEED_BYTES, 2 * _SEED_BYTES):
        raise ValueError("an ed25519 secret holds 32 bytes, or 64 with its public key")
    private = Ed25519PrivateKey.from_private_bytes(key[:_SEED_BYTES])
    if key[_SEED_BYTES:] not in (b"", private.public_key().public_bytes_raw()):
        raise ValueError("the second half of an ed25519 secret is the public key of the first")
    return private


def public_key(secret: str) -> str | None:
    """Return the public key of a valid ed25519 secret, `whpk_…`; None for a shared one."""
    key = secret_key(secret)
    if isinstance(key, bytes):
        return None
    return PUBLIC_PREFIX + base64.b64encode(key.public_key().public_bytes_raw()).decode()


def sign(keys: Iterable[Key], webhook_id: str, timestamp: int, body: bytes) -> str:
    """Return the `webhook-signature` header: one `v1,…` or `v1a,…` for each key, with spaces between them.

    timestamp: seconds since the epoch, the `webhook-timestamp` of this attempt.
    """
    signed = b"%b.%d.%b" % (webhook_id.encode(), timestamp, body)
    return " ".join(_sign(key, signed) for key in keys)


def _sign(key: Key, signed: bytes) -> str:
    if isinstance(key, bytes):
        return "v1," + base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()
    return "v1a," + base64.b64encode(key.sign(signed)).decode()
