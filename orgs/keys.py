"""API keys: creating, checking, rotating and revoking them.

A key reads `trk_<prefix>_<secret>`.  Every request checks it in the database, so a revocation takes effect on the next
request, in every process.
"""

from __future__ import annotations

import datetime
import hashlib
import hmac
import secrets
import uuid
from collections.abc import Iterable
from dataclasses import dataclass

from django.conf import settings
from django.db import transaction
from django.db.models import Q
from django.db.models.functions import Now
from psycopg.rows import class_row

from core.db import server_cursor
from orgs.models import ApiKey, Organization, Strictness
from orgs.scopes import all_scopes

_ALPHABET = "ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz23456789"
_PREFIX_CHARACTERS = 12


class ScopeError(ValueError):
    """A key tried to grant scopes that it doesn't have."""


class ExpiryError(ScopeError):
    """A key tried to create one that outlives it."""


class TooManyKeys(Exception):
    """The organization has MAX_API_KEYS keys already; the message says so."""

    def __init__(self) -> None:
        super().__init__(
            f"The organization has {settings.MAX_API_KEYS} API keys, which is the limit. Revoke one that isn't used."
        )


class KeyEnded(ValueError):
    """The key can't be rotated; the message is `revoked` or `expired`."""


@dataclass(frozen=True, slots=True)
class Caller:
    """The key that authenticates a request, and its organization."""

    key_id: uuid.UUID
    prefix: str
    scopes: frozenset[str]
    organization_id: uuid.UUID
    organization_name: str
    events_per_minute: int
    expires_at: datetime.datetime | None = None
    # Which events the organization takes, and the state of its catalog of event types (`events.event_types`).
    strictness: str = Strictness.FREE.value
    catalog_version: int = 0

    is_authenticated = True

    @property
    def actor(self) -> str:
        """Return the key's name in the audit log."""
        return f"key:{self.prefix}"

    @property
    def label(self) -> str:
        """Return what tells this key apart from others in a list of connections."""
        return f"{self.organization_name} ({self.prefix})"

    @property
    def sorted_scopes(self) -> list[str]:
        """Return the scopes as the API lists them."""
        return sorted(self.scopes)


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def create_api_key(
    organization: Organization | uuid.UUID,
    *,
    name: str = "",
    scopes: Iterable[str] | None = None,
    expires_at: datetime.datetime | None = None,
) -> tuple[ApiKey, str]:
    """Create a key and return it with its full text, which is not stored and can't be read again.

    scopes: None grants all of them.  Raises TooManyKeys.
    """
    organization_id = organization.id if isinstance(organization, Organization) else organization
    with transaction.atomic():
        require_room(organization_id, lock=True)
        return _create(organization_id, name, scopes, expires_at)


def require_room(organization_id: uuid.UUID, *, lock: bool = False) -> None:
    """Raise TooManyKeys when the organization has MAX_API_KEYS keys that are neither revoked nor expired.

    lock: let no other request create one before the caller's transaction ends: two that count at once would both find
    room for one more.
    """
    if lock:
        Organization.objects.select_for_update(no_key=True).filter(pk=organization_id).first()
    live = ApiKey.objects.filter(Q(expires_at=None) | Q(expires_at__gt=Now()), revoked_at=None)
    if live.filter(organization_id=organization_id).count() >= settings.MAX_API_KEYS:
        raise TooManyKeys


def _create(
    organization_id: uuid.UUID, name: str, scopes: Iterable[str] | None, expires_at: datetime.datetime | None
) -> tuple[ApiKey, str]:
    """Create a key, whether or not the organization has room for it."""
    prefix = "".join(secrets.choice(_ALPHABET) for _ in range(_PREFIX_CHARACTERS))
    key = f"trk_{prefix}_{secrets.token_urlsafe(32)}"
    row = ApiKey.objects.create(
        organization_id=organization_id,
        name=name,
        prefix=prefix,
        secret_hash=_hash(key),
        scopes=sorted(scopes) if scopes is not None else all_scopes(),
        expires_at=expires_at,
    )
    return row, key


# Whether a row `k` of orgs_apikey, joined with its organization `o`, may be used now.
USABLE = "o.is_active AND k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > clock_timestamp())"

# SQL because it runs on every request: the ORM costs more than the query.
_FIND_KEY = f"""
SELECT k.id, k.secret_hash, k.scopes, k.expires_at, o.id AS organization_id, o.name AS organization_name,
       o.events_per_minute, o.event_type_strictness, o.catalog_version, {USABLE} AS is_usable,
       k.last_used_at IS NULL OR k.last_used_at < clock_timestamp() - interval '1 minute' AS last_use_is_stale
FROM orgs_apikey k JOIN orgs_organization o ON o.id = k.organization_id
WHERE k.prefix = %s
"""  # noqa: S608 - a constant of ours


@dataclass(frozen=True, slots=True)
class _FoundKey:
    """A row of _FIND_KEY."""

    id: uuid.UUID
    secret_hash: bytes
    scopes: list[str]
    expires_at: datetime.datetime | None
    organization_id: uuid.UUID
    organization_name: str
    events_per_minute: int
    event_type_strictness: str
    catalog_version: int
    is_usable: bool
    last_use_is_stale: bool


def authenticate(text: str) -> Caller | None:
    """Return whose key `text` is, or None when it is wrong, revoked, expired or of an inactive organization."""
    parts = text.split("_", 2)
    if len(text) > 200 or len(parts) != 3 or parts[0] != "trk" or not parts[1].isalnum() or not text.isascii():
        return None
    prefix = parts[1]
    with server_cursor(class_row(_FoundKey)) as cursor:
        key = cursor.execute(_FIND_KEY, (prefix,)).fetchone()
    if key is None or not hmac.compare_digest(bytes(key.secret_hash), _hash(text)) or not key.is_usable:
        return None
    if key.last_use_is_stale:
        _note_use(key.id)
    return Caller(
        key.id,
        prefix,
        frozenset(key.scopes),
        key.organization_id,
        key.organization_name,
        key.events_per_minute,
        key.expires_at,
        key.event_type_strictness,
        key.catalog_version,
    )


def _note_use(key_id: uuid.UUID) -> None:
    """Set `last_used_at`, at most once a minute: a write on every request would make one row the bottleneck."""
    now = Now()
    stale = Q(last_used_at=None) | Q(last_used_at__lt=now - datetime.timedelta(minutes=1))
    ApiKey.objects.filter(stale, pk=key_id).update(last_used_at=now)


def revoke(key: ApiKey) -> bool:
    """Revoke the key, from the next request on.  Returns False when it was revoked already."""
    changed = ApiKey.objects.filter(pk=key.pk, revoked_at=None).update(revoked_at=Now())
    key.refresh_from_db(fields=["revoked_at"])
    return bool(changed)


def rotate(key: ApiKey, overlap: datetime.timedelta) -> tuple[ApiKey, str]:
    """Create a key with the same name, scopes and expiry; the old one expires after `overlap`.

    Returns the new key and its full text.  The old key never lives longer than it would have.  Raises KeyEnded for a
    key that is revoked or has expired, even since it was read, and TooManyKeys, unless `overlap` is zero.
    """
    with transaction.atomic():
        now = Now()
        old = ApiKey.objects.select_for_update().annotate(expired=Q(expires_at__lte=now)).get(pk=key.pk)
        if old.revoked_at is not None:
            raise KeyEnded("revoked")
        if old.expired:
            raise KeyEnded("expired")
        if overlap:  # else the successor takes the old key's place
            require_room(old.organization_id, lock=True)
        new_key, text = _create(old.organization_id, old.name, old.scopes, old.expires_at)
        ApiKey.objects.filter(pk=old.pk).filter(Q(expires_at=None) | Q(expires_at__gt=now + overlap)).update(
            expires_at=now + overlap
        )
    key.refresh_from_db(fields=["expires_at"])
    return new_key, text


def require_within(wanted: Iterable[str], held: Iterable[str]) -> None:
    """Raise ScopeError when `wanted` has a scope that `held` lacks."""
    beyond = sorted(set(wanted) - set(held))
    if beyond:
        raise ScopeError("a key can't grant scopes that it doesn't have: " + ", ".join(beyond))


def require_no_longer(wanted: datetime.datetime | None, held: datetime.datetime | None) -> None:
    """Raise ExpiryError when a key that ends at `wanted` would outlive one that ends at `held` (None is never)."""
    if held is not None and (wanted is None or wanted > held):
        raise ExpiryError(f"a key can't create one that expires later than itself, at {held.isoformat()}")


# SQL, because it is the same condition as that of _FIND_KEY.
_MAY = f"""
SELECT true FROM orgs_apikey k JOIN orgs_organization o ON o.id = k.organization_id
WHERE k.id = %s AND {USABLE} AND %s = ANY (k.scopes)
"""  # noqa: S608 - a constant of ours


def still_may(key_id: uuid.UUID, scope: str) -> bool:
    """Return whether a key that was looked up earlier may still be used, and has the scope."""
    with server_cursor() as cursor:
        return cursor.execute(_MAY, (key_id, scope)).fetchone() is not None
