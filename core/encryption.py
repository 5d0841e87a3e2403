"""Encryption at rest, for secrets that belong to others.

Fernet with rotation (`MultiFernet`) for what is kept and rotated; `Sealer` for many small values that are deleted after
some time.
"""

from __future__ import annotations

import base64
import os
from functools import lru_cache

from cryptography.exceptions import InvalidTag
from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from django.conf import settings

_SALT_BYTES = 16
_NONCE_BYTES = 12
# Random nonces are safe for 2^32 messages under one key (NIST SP 800-38D §8.3); this is far below.
_MESSAGES_PER_KEY = 1_000_000


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
    """Return whether the newest key decrypts `token`."""
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


class Sealer:
    """Encrypts many small messages, each for less than a microsecond: Fernet takes ten times as long.

    AES-GCM, under keys that are derived from the newest of SECRETS_ENCRYPTION_KEYS and a salt of this object, which is
    put before each message.  For one thread.
    """

    def __init__(self) -> None:
        self._left = 0

    def seal(self, plain: bytes) -> bytes:
        """Return `plain` encrypted, for `unseal`."""
        if not self._left:
            self._salt = os.urandom(_SALT_BYTES)
            self._cipher = _derive(settings.SECRETS_ENCRYPTION_KEYS[0], self._salt)
            self._left = _MESSAGES_PER_KEY
        self._left -= 1
        # Random and not a counter, so that a forked process repeats none.
        nonce = os.urandom(_NONCE_BYTES)
        return self._salt + nonce + self._cipher.encrypt(nonce, plain, None)


def unseal(sealed: bytes) -> bytes:
    """Return what `Sealer.seal` was given.  Raises DecryptionError when no key fits."""
    salt, rest = sealed[:_SALT_BYTES], sealed[_SALT_BYTES:]
    for key in settings.SECRETS_ENCRYPTION_KEYS:
        try:
            return _derive(key, salt).decrypt(rest[:_NONCE_BYTES], rest[_NONCE_BYTES:], None)
        except (InvalidTag, ValueError):
            continue
    raise DecryptionError("no key in SECRETS_ENCRYPTION_KEYS decrypts this value")


@lru_cache(maxsize=64)
def _derive(key: str, salt: bytes) -> AESGCM:
    derived = HKDF(SHA256(), 32, salt, b"triggers sealed message").derive(base64.urlsafe_b64decode(key))
    return AESGCM(derived)
