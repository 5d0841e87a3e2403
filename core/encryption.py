"""Encryption at rest for other people's secrets: Fernet with rotation (`MultiFernet`)."""

from __future__ import annotations

from functools import lru_cache

from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from django.conf import settings


class DecryptionError(Exception):
    """No configured key decrypts the value: a key was dropped from SECRETS_ENCRYPTION_KEYS too early."""


@lru_cache(maxsize=4)
def _fernet(keys: tuple[str, ...]) -> MultiFernet:
    return MultiFernet([Fernet(key) for key in keys])


def _configured() -> MultiFernet:
    return _fernet(tuple(settings.SECRETS_ENCRYPTION_KEYS))


def encrypt(plain: str) -> str:
    """Return `plain` encrypted with the newest key, as text."""
    return _configured().encrypt(plain.encode()).decode()


def decrypt(token: str) -> str:
    """Return what `encrypt` was given. Raises DecryptionError when no key fits."""
    try:
        return _configured().decrypt(token.encode()).decode()
    except InvalidToken:
        raise DecryptionError("no key in SECRETS_ENCRYPTION_KEYS decrypts this value") from None


def is_newest(token: str) -> bool:
    """Tell whether the newest key alone decrypts `token`."""
    try:
        _fernet(tuple(settings.SECRETS_ENCRYPTION_KEYS[:1])).decrypt(token.encode())
    except InvalidToken:
        return False
    return True


def reencrypt(token: str) -> str:
    """Return the same secret encrypted with the newest key. Raises DecryptionError when no key fits."""
    try:
        return _configured().rotate(token.encode()).decode()
    except InvalidToken:
        raise DecryptionError("no key in SECRETS_ENCRYPTION_KEYS decrypts this value") from None
