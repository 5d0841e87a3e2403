"""API keys: making, checking, rotating and revoking them.

A key reads `trk_<prefix>_<secret>`.  The database is asked on every request, so a revocation takes
effect on the next one, on every process, whatever became of any cache: by a look-up, or by the statement that does
what is asked for (`HOLDS`).
"""

from __future__ import annotations

import datetime
import hashlib
import hmac
import secrets
import uuid
from collections.abc import Iterable
from dataclasses import dataclass

from django.db import transaction
from django.db.models import Q
from django.db.models.functions import Now

from core.db import server_cursor
from orgs.models import ApiKey, Organization, all_scopes

_ALPHABET = "ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz23456789"
_PREFIX_CHARACTERS = 12


class ScopeError(ValueError):
    """A key was asked to give away more than it has."""


class ExpiryError(ScopeError):
    """A key was asked for one that outlives it."""


class KeyEnded(ValueError):
    """The key is revoked or has expired; the message is the word for which."""


@dataclass(frozen=True, slots=True)
class Caller:
    """The key behind a request and the organization that it speaks for."""

    key_id: uuid.UUID
    prefix: str
    scopes: frozenset[str]
    organization_id: uuid.UUID
    organization_name: str
    events_per_minute: int
    expires_at: datetime.datetime | None = None

    is_authenticated = True

    @property
    def actor(self) -> str:
        """Return the name that the audit log uses."""
        return f"key:{self.prefix}"


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def create_api_key(
    organization: Organization | uuid.UUID,
    *,
    name: str = "",
    scopes: Iterable[str] | None = None,
    expires_at: datetime.datetime | None = None,
) -> tuple[ApiKey, str]:
    """Make a key and return it with its full text, which is not stored and can't be read again.

    scopes: all of them when None.
    """
    prefix = "".join(secrets.choice(_ALPHABET) for _ in range(_PREFIX_CHARACTERS))
    key = f"trk_{prefix}_{secrets.token_urlsafe(32)}"
    row = ApiKey.objects.create(
        organization_id=organization.id if isinstance(organization, Organization) else organization,
        name=name,
        prefix=prefix,
        secret_hash=_hash(key),
        scopes=sorted(scopes) if scopes is not None else all_scopes(),
        expires_at=expires_at,
    )
    return row, key


_USABLE = "o.is_active AND k.revoked_at IS NULL AND (k.expires_at IS NULL OR k.expires_at > clock_timestamp())"
_FIND_KEY = f"""
SELECT k.id, k.secret_hash, k.scopes, o.id, o.name, o.events_per_minute, k.expires_at, {_USABLE},
       k.last_used_at IS NULL OR k.last_used_at < clock_timestamp() - interval '1 minute'
FROM orgs_apikey k JOIN orgs_organization o ON o.id = k.organization_id
WHERE k.prefix = %s
"""  # noqa: S608

# The condition under which a key still lets `scope` be done, at the rate that was known for its organization.
# Parameters: key_id, scope, events_per_minute.
HOLDS = f"""EXISTS (
    SELECT 1 FROM orgs_apikey k JOIN orgs_organization o ON o.id = k.organization_id
    WHERE k.id = %(key_id)s AND {_USABLE} AND %(scope)s = ANY (k.scopes)
      AND o.events_per_minute = %(events_per_minute)s
)"""  # noqa: S608


def authenticate(text: str) -> Caller | None:
    """Return who presents the key `text`, or None when it is wrong, revoked, expired or inactive."""
    parts = text.split("_", 2)
    if len(text) > 200 or len(parts) != 3 or parts[0] != "trk" or not parts[1].isalnum() or not text.isascii():
        return None
    prefix = parts[1]
    with server_cursor() as cursor:
        row = cursor.execute(_FIND_KEY, (prefix,)).fetchone()
        if row is None:
            return None
        key_id, secret_hash, scopes, org_id, org_name, per_minute, expires_at, usable, touch = row
        if not hmac.compare_digest(bytes(secret_hash), _hash(text)) or not usable:
            return None
        if touch:
            # At most once a minute: a write on every request would make one row the bottleneck.
            cursor.execute(
                "UPDATE orgs_apikey SET last_used_at = clock_timestamp() WHERE id = %s"
                " AND (last_used_at IS NULL OR last_used_at < clock_timestamp() - interval '1 minute')",
                (key_id,),
            )
    return Caller(key_id, prefix, frozenset(scopes), org_id, org_name, per_minute, expires_at)


def revoke(key: ApiKey) -> bool:
    """Refuse the key from the next request on.  False when it already was revoked."""
    changed = ApiKey.objects.filter(pk=key.pk, revoked_at=None).update(revoked_at=Now())
    key.refresh_from_db(fields=["revoked_at"])
    return bool(changed)


def rotate(key: ApiKey, overlap: datetime.timedelta) -> tuple[ApiKey, str]:
    """Make a key with the same name, scopes and expiry; the old one ends after `overlap`.

    Returns the new key and its full text.  The old key never lives longer than it already would.
    Raises KeyEnded: a key that was revoked, a moment ago even, gets no successor.
    """
    with transaction.atomic():
        now = Now()
        old = ApiKey.objects.select_for_update().annotate(expired=Q(expires_at__lte=now)).get(pk=key.pk)
        if old.revoked_at is not None:
            raise KeyEnded("revoked")
        if old.expired:
            raise KeyEnded("expired")
        new_key, text = create_api_key(old.organization_id, name=old.name, scopes=old.scopes, expires_at=old.expires_at)
        ApiKey.objects.filter(pk=old.pk).filter(Q(expires_at=None) | Q(expires_at__gt=now + overlap)).update(
            expires_at=now + overlap
        )
    key.refresh_from_db(fields=["expires_at"])
    return new_key, text


def require_within(wanted: Iterable[str], held: Iterable[str]) -> None:
    """Raise ScopeError when `wanted` holds a scope that `held` doesn't."""
    beyond = sorted(set(wanted) - set(held))
    if beyond:
        raise ScopeError("a key can't give what it doesn't have: " + ", ".join(beyond))


def require_no_longer(wanted: datetime.datetime | None, held: datetime.datetime | None) -> None:
    """Raise ExpiryError when a key that ends at `wanted` would outlive one that ends at `held` (None is never)."""
    if held is not None and (wanted is None or wanted > held):
        raise ExpiryError(f"a key can't give one that outlives it: it ends at {held.isoformat()}")
