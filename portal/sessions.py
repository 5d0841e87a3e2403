"""Links and sessions of the portal: making a link, opening it once, finding its session, ending it.

A link's token is random and signed: one that we didn't make is refused without a look at the database.  Opening it
makes the session's own token, which is in no link, so that a session can't be planted on somebody else.
"""

from __future__ import annotations

import datetime
import hashlib
import secrets
from enum import StrEnum
from typing import Any

from django.core import signing
from django.db import transaction
from django.db.models import Q
from django.db.models.functions import Now
from django.http import HttpRequest

from core import ratelimits
from orgs import audit
from orgs.keys import Caller
from orgs.scopes import Scope
from portal.models import PortalSession

PER_MINUTE = 120
DEFAULT_LINK_SECONDS, MAX_LINK_SECONDS = 300, 86_400
DEFAULT_SESSION_SECONDS, MAX_SESSION_SECONDS = 8 * 3600, 7 * 86_400
MIN_SECONDS = 60
# Links and sessions are deleted this long after their end; until then their page can say what happened.
KEPT_AFTER_END = datetime.timedelta(days=7)
MAX_DELETED_AT_ONCE = 100

_signer = signing.Signer(salt="portal.link", sep=".")


class TooManyLinks(Exception):
    """The organization has made PER_MINUTE.  retry_after: in seconds."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"The organization may make {PER_MINUTE} links to the portal a minute.")
        self.retry_after = retry_after


class Refusal(StrEnum):
    """Why a link or a session is refused, for the page that says so."""

    FORGED = "forged"
    LINK_EXPIRED = "link_expired"
    LINK_USED = "link_used"
    NO_SESSION = "no_session"
    SESSION_EXPIRED = "session_expired"
    ENDED = "ended"
    SIGNED_OUT = "signed_out"
    ACCESS_ENDED = "access_ended"


class Refused(Exception):
    """The link or the session is refused."""

    def __init__(self, reason: Refusal) -> None:
        super().__init__(reason)
        self.reason = reason


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def create_link(
    caller: Caller, *, link_seconds: int, session_seconds: int, is_read_only: bool, scopes: list[str], name: str
) -> tuple[PortalSession, str]:
    """Make a link, in the caller's transaction; return its row and its token, which can't be read again.

    Raises TooManyLinks.
    """
    decision = ratelimits.hit("portal-links", str(caller.organization_id), PER_MINUTE)
    if not decision.allowed:
        raise TooManyLinks(max(1, decision.reset_seconds))
    _delete_old(caller)
    token = _signer.sign(secrets.token_urlsafe(32))
    row = PortalSession.objects.create(
        organization_id=caller.organization_id,
        key_id=caller.key_id,
        name=name,
        is_read_only=is_read_only,
        scopes=scopes,
        link_hash=_hash(token),
        link_expires_at=Now() + datetime.timedelta(seconds=link_seconds),
        session_seconds=session_seconds,
    )
    row.refresh_from_db()
    return row, token


def _delete_old(caller: Caller) -> None:
    """Delete some of the organization's rows that ended long ago: more at a time than it creates."""
    past = Now() - KEPT_AFTER_END
    over = PortalSession.objects.filter(organization_id=caller.organization_id, link_expires_at__lt=past).filter(
        Q(expires_at=None) | Q(expires_at__lt=past)
    )
    old = list(over.order_by("link_expires_at").values_list("pk", flat=True)[:MAX_DELETED_AT_ONCE])
    PortalSession.objects.filter(pk__in=old).delete()


def _with_owner() -> Any:
    """Return rows with their organization and key, and which of their times are over by the database's clock."""
    return PortalSession.objects.select_related("organization", "key").annotate(
        is_link_over=Q(link_expires_at__lte=Now()),
        is_over=Q(expires_at__lte=Now()),
        is_key_over=Q(key__expires_at__lte=Now()),
    )


def _check_owner(row: Any) -> None:
    """Raise Refused unless the organization is active and the key that made the link may still make one."""
    key = row.key
    if not row.organization.is_active or key.revoked_at or row.is_key_over or Scope.PORTAL_LINKS not in key.scopes:
        raise Refused(Refusal.ACCESS_ENDED)


def open_link(token: str, request: HttpRequest) -> tuple[PortalSession, str]:
    """Open a link, which works once; return the session and its token.  Raises Refused."""
    try:
        _signer.unsign(token[:200])
    except signing.BadSignature:
        raise Refused(Refusal.FORGED) from None
    with transaction.atomic():
        row = _with_owner().select_for_update(of=("self",)).filter(link_hash=_hash(token)).first()
        if row is None:  # deleted since
            raise Refused(Refusal.LINK_EXPIRED)
        if row.opened_at is not None:
            raise Refused(Refusal.LINK_USED)
        if row.ended_at is not None:
            raise Refused(Refusal.ACCESS_ENDED)
        if row.is_link_over:
            raise Refused(Refusal.LINK_EXPIRED)
        _check_owner(row)
        session_token = secrets.token_urlsafe(32)
        PortalSession.objects.filter(pk=row.pk).update(
            opened_at=Now(),
            token_hash=_hash(session_token),
            expires_at=Now() + datetime.timedelta(seconds=row.session_seconds),
        )
        record(row, request, "portal.open", row.id)
    return row, session_token


def find(token: str) -> PortalSession:
    """Return the session of a token.  Raises Refused."""
    if not token:
        raise Refused(Refusal.NO_SESSION)
    row = _with_owner().filter(token_hash=_hash(token[:200])).first()
    if row is None:
        raise Refused(Refusal.NO_SESSION)
    if row.ended_at is not None:
        raise Refused(Refusal.ENDED)
    if row.is_over:
        raise Refused(Refusal.SESSION_EXPIRED)
    _check_owner(row)
    found: PortalSession = row
    return found


def end(session: PortalSession, request: HttpRequest) -> None:
    """End the session now."""
    with transaction.atomic():
        if mark_ended(session):
            record(session, request, "portal.close", session.id)


def mark_ended(session: PortalSession) -> bool:
    """End a session, or a link that wasn't opened yet, in the caller's transaction; tell whether it hadn't ended yet.

    Whoever calls it adds the audit entry.
    """
    return bool(PortalSession.objects.filter(pk=session.pk, ended_at=None).update(ended_at=Now()))


def record(
    session: PortalSession,
    request: HttpRequest,
    action: str,
    target: object = "",
    detail: dict[str, Any] | None = None,
    *,
    name: str = "",
    reason: str = "",
) -> None:
    """Add an audit entry for what a session did, in the caller's transaction."""
    who = {"portal_user": session.name} if session.name else {}
    audit.record(
        action, actor=session.actor, organization_id=session.organization_id, target=target,
        detail={**(detail or {}), **who}, request=request, name=name, reason=reason,
    )  # fmt: skip
