"""A subscription's signing secrets: the current one, and others that sign beside it until they end or are removed.

The row keeps them encrypted: the current one in `encrypted_secret`, which never ends, and the others in
`encrypted_previous_secrets`.  What may be shown of each is in `secret_details`, in the same order.
"""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any

from django.db import transaction
from django.db.models.functions import Now
from django.utils import timezone

from core.encryption import DecryptionError, decrypt, encrypt
from core.ids import new_id
from webhooks.destinations.http.signing import SecretType, new_secret, public_key, type_of
from webhooks.models import Subscription

# Beside the current one.  Each signature makes the header longer, and endpoints compare all of them.
MAX_PREVIOUS_SECRETS = 10

Audit = Callable[["StoredSecret"], None]


class TooManySecrets(Exception):
    """MAX_PREVIOUS_SECRETS others sign already.  ends_at: when the first of them stops; None if none does."""

    def __init__(self, ends_at: datetime.datetime | None) -> None:
        super().__init__(ends_at)
        self.ends_at = ends_at


class SecretExists(Exception):
    """The subscription has this secret already."""


class LastSecret(Exception):
    """Without this secret none would be left that doesn't end, and webhooks would go out unsigned."""


@dataclass(frozen=True, slots=True)
class StoredSecret:
    """One secret, encrypted.  public_key: of an ed25519 one, `whpk_…`.  expires_at: None for never."""

    id: uuid.UUID
    type: str
    created_at: datetime.datetime
    expires_at: datetime.datetime | None
    sealed: str
    public_key: str | None = None

    @property
    def masked(self) -> str:
        """Return what stands for the secret wherever it is shown."""
        return "whsk_***" if self.type == SecretType.ED25519 else "whsec_***"

    def for_audit(self) -> dict[str, Any]:
        """Return what the audit log keeps."""
        ends = self.expires_at.isoformat() if self.expires_at else None
        return {"secret": str(self.id), "type": str(self.type), "expires_at": ends}


def store(secret: str, expires_at: datetime.datetime | None = None) -> StoredSecret:
    """Return a new secret as it is stored."""
    return StoredSecret(new_id(), type_of(secret), timezone.now(), expires_at, encrypt(secret), public_key(secret))


# The columns of a subscription that `stored_secrets` reads.
COLUMNS = (
    "encrypted_secret",
    "encrypted_previous_secrets",
    "previous_secrets_expire_at",
    "secret_details",
    "created_at",
)


def stored_secrets(subscription: Subscription) -> list[StoredSecret]:
    """Return all that are stored, the current one first, without those that have ended."""
    sealed = [subscription.encrypted_secret, *subscription.encrypted_previous_secrets]
    ends = [None, *subscription.previous_secrets_expire_at]
    now = timezone.now()
    found = []
    rows = zip_longest(sealed, ends, subscription.secret_details[: len(sealed)], fillvalue=None)
    for position, (token, expires_at, details) in enumerate(rows):
        if token and (expires_at is None or expires_at > now):
            found.append(_read(subscription, position, token, expires_at, details or {}))
    return found


def _read(
    subscription: Subscription, position: int, token: str, expires_at: datetime.datetime | None, details: dict[str, Any]
) -> StoredSecret:
    """Return one secret.  In a row without details, from an earlier version, the position says which secret it is."""
    created = details.get("created_at")
    return StoredSecret(
        id=uuid.UUID(details["id"]) if "id" in details else uuid.uuid5(subscription.pk, str(position)),
        type=details.get("type", SecretType.HMAC.value),
        created_at=datetime.datetime.fromisoformat(created) if created else subscription.created_at,
        expires_at=expires_at,
        sealed=token,
        public_key=details.get("public_key"),
    )


def columns(stored: list[StoredSecret]) -> dict[str, Any]:
    """Return the values of the columns that hold these secrets, the current one first."""
    return {
        "encrypted_secret": stored[0].sealed,
        "encrypted_previous_secrets": [secret.sealed for secret in stored[1:]],
        "previous_secrets_expire_at": [secret.expires_at for secret in stored[1:]],
        "secret_details": [
            {
                "id": str(secret.id),
                "type": str(secret.type),
                "created_at": secret.created_at.isoformat(),
                "public_key": secret.public_key,
            }
            for secret in stored
        ],
    }


def holds(stored: list[StoredSecret], text: str) -> bool:
    """Return whether one of the secrets is `text`."""
    return any(_text(secret) == text for secret in stored)


def first_end(stored: list[StoredSecret]) -> datetime.datetime | None:
    """Return when the first of them ends; None if none does."""
    return min((secret.expires_at for secret in stored if secret.expires_at), default=None)


def add(
    subscription: Subscription,
    secret: str | None = None,
    *,
    secret_type: str = SecretType.HMAC,
    expires_at: datetime.datetime | None = None,
    audit: Audit,
) -> tuple[StoredSecret, str]:
    """Let another secret sign beside those there are; return it, and its text.

    secret: the caller's own; without one a new one of `secret_type` is made.  audit: writes the audit entry; called
    in the transaction of the change.  Raises TooManySecrets, SecretExists, Subscription.DoesNotExist.
    """
    text = secret or new_secret(secret_type)
    with transaction.atomic():
        stored = _lock(subscription)
        if holds(stored, text):
            raise SecretExists
        if len(stored) > MAX_PREVIOUS_SECRETS:
            raise TooManySecrets(first_end(stored))
        added = store(text, expires_at)
        _write(subscription, [*stored[:1], added, *stored[1:]])
        audit(added)
    return added, text


def change_end(
    subscription: Subscription, secret_id: uuid.UUID, expires_at: datetime.datetime | None, *, audit: Audit
) -> StoredSecret | None:
    """Set when a secret stops signing, None for never, and return it; None if there is no such secret.

    Raises LastSecret, Subscription.DoesNotExist.
    """
    with transaction.atomic():
        stored = _lock(subscription)
        changed = None
        for position, secret in enumerate(stored):
            if secret.id == secret_id:
                changed = stored[position] = replace(secret, expires_at=expires_at)
        if changed is not None:
            _write(subscription, _with_current_first(stored))
            audit(changed)
    return changed


def remove(subscription: Subscription, secret_id: uuid.UUID, *, audit: Audit) -> bool:
    """Erase a secret, which stops signing at once; return False if there is no such secret.

    Raises LastSecret, Subscription.DoesNotExist.
    """
    with transaction.atomic():
        stored = _lock(subscription)
        removed = next((secret for secret in stored if secret.id == secret_id), None)
        if removed is None:
            return False
        _write(subscription, _with_current_first([secret for secret in stored if secret is not removed]))
        audit(removed)
    return True


def _with_current_first(stored: list[StoredSecret]) -> list[StoredSecret]:
    """Return the secrets with the first one that doesn't end in front: that is the current one from now on."""
    current = next((secret for secret in stored if secret.expires_at is None), None)
    if current is None:
        raise LastSecret
    return [current, *(secret for secret in stored if secret is not current)]


def _lock(subscription: Subscription) -> list[StoredSecret]:
    return stored_secrets(Subscription.objects.select_for_update().get(pk=subscription.pk, deleted_at=None))


def _write(subscription: Subscription, stored: list[StoredSecret]) -> None:
    Subscription.objects.filter(pk=subscription.pk).update(**columns(stored), updated_at=Now())


def _text(secret: StoredSecret) -> str | None:
    try:
        return decrypt(secret.sealed)
    except DecryptionError:
        return None
