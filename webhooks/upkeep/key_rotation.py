"""Rotates the encryption key: encrypts every stored secret with the newest of SECRETS_ENCRYPTION_KEYS."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass

from django.db.models import QuerySet

from core.encryption import DecryptionError, is_newest, reencrypt
from webhooks.models import ENCRYPTED, Subscription

BATCH = 500
# How often a row that was changed meanwhile is read again.
MAX_ATTEMPTS = 10


@dataclass(slots=True)
class Rekeyed:
    """What a run did.  seen: subscriptions.  values: how many were encrypted again.  unreadable: how many no key
    decrypts."""

    seen: int = 0
    values: int = 0
    unreadable: int = 0


def _holding_secrets() -> QuerySet[Subscription]:
    without = Subscription()
    return Subscription.objects.exclude(**{name: getattr(without, name) for name in ENCRYPTED})


def count() -> int:
    """Return how many subscriptions hold something encrypted."""
    return _holding_secrets().count()


def rekey(
    done: Rekeyed,
    complain: Callable[[str], None],
    advance: Callable[[int], None] | None = None,
    batch: int = BATCH,
) -> None:
    """Encrypt every subscription's secrets with the newest key, and count in `done`.

    complain: called for each value that no key decrypts, with its subscription and column; the run continues.  advance:
    called after each batch, with how many were seen.  No lock is held from one row to the next, and a row is written
    only if it still holds what was read, so requests and workers go on meanwhile. What the newest key already decrypts
    is left alone, so after an interruption, run it again.
    """
    cursor: uuid.UUID | None = None
    while True:
        rows = _holding_secrets().order_by("id")
        if cursor is not None:
            rows = rows.filter(id__gt=cursor)
        ids = list(rows.values_list("id", flat=True)[:batch])
        if not ids:
            return
        for subscription_id in ids:
            _rekey_one(subscription_id, done, complain)
            done.seen += 1
        if advance is not None:
            advance(done.seen)
        cursor = ids[-1]


def _renew(token: str) -> str | None:
    """Return `token` under the newest key, None if no key decrypts it; what is under that key already, unchanged."""
    if not token or is_newest(token):
        return token
    try:
        return reencrypt(token)
    except DecryptionError:
        return None


def _rekey_one(subscription_id: uuid.UUID, done: Rekeyed, complain: Callable[[str], None]) -> None:
    for _ in range(MAX_ATTEMPTS):
        # Each is a text, or a list of texts.
        stored = Subscription.objects.filter(pk=subscription_id).values(*ENCRYPTED).first()
        if stored is None:
            return
        fresh: dict[str, str | list[str]] = {}
        values = 0
        unreadable = []
        for column, held in stored.items():
            tokens = held if isinstance(held, list) else [held]
            renewed = [_renew(token) for token in tokens]
            if renewed != tokens:
                values += sum(new not in (None, old) for new, old in zip(renewed, tokens, strict=True))
                # What can't be read is kept as it is.
                kept = [old if new is None else new for new, old in zip(renewed, tokens, strict=True)]
                fresh[column] = kept if isinstance(held, list) else kept[0]
            unreadable += [column] * renewed.count(None)
        # Compare and swap: a secret that was rotated or erased meanwhile must not come back.
        if not values or Subscription.objects.filter(pk=subscription_id, **stored).update(**fresh):
            done.values += values
            done.unreadable += len(unreadable)
            for column in unreadable:
                complain(f"Subscription {subscription_id}: no key decrypts {column}.")
            return
    done.unreadable += 1
    complain(f"Subscription {subscription_id} was changed {MAX_ATTEMPTS} times meanwhile; run the command again.")
