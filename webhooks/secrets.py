"""What a subscription keeps secret: its signing secrets and the values of its custom headers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import orjson

from core.encryption import DecryptionError, decrypt, encrypt
from webhooks.signing import secret_key


@dataclass(frozen=True, slots=True)
class Receiver:
    """A subscription as the sender needs it: opened, in memory only."""

    url: str
    headers: tuple[tuple[str, str], ...]
    keys: tuple[bytes, ...]
    fault: str = ""  # why nothing can be sent; such a subscription's deliveries fail, and nobody else's

    def __repr__(self) -> str:
        return f"Receiver({self.url!r})"  # the rest is secret and must not reach a log


def seal_headers(headers: Mapping[str, str]) -> str:
    """Return the headers encrypted, as text; empty for none."""
    return encrypt(orjson.dumps(dict(headers)).decode()) if headers else ""


def open_headers(sealed: str) -> dict[str, str]:
    """Return what `seal_headers` was given.  Raises DecryptionError when no key fits."""
    return dict(orjson.loads(decrypt(sealed))) if sealed else {}


@lru_cache(maxsize=10_000)
def open_receiver(url: str, sealed_headers: str, sealed_secret: str, sealed_previous: str) -> Receiver:
    """Return the subscription opened.  previous: the secret before, while its overlap lasts, else empty.

    Raises DecryptionError when no key fits.
    """
    keys = tuple(secret_key(decrypt(sealed)) for sealed in (sealed_secret, sealed_previous) if sealed)
    return Receiver(url, tuple(open_headers(sealed_headers).items()), keys)


def open_or_explain(url: str, sealed_headers: str, sealed_secret: str, sealed_previous: str) -> Receiver:
    """Return the subscription opened, or, when it can't be, one with the `fault` that keeps it closed."""
    try:
        return open_receiver(url, sealed_headers, sealed_secret, sealed_previous)
    except (DecryptionError, ValueError, TypeError):
        return Receiver(url, (), (), "The subscription's secrets can't be decrypted with SECRETS_ENCRYPTION_KEYS.")
