"""Log-ins, failed log-ins and log-outs of staff, written to the audit log."""

from __future__ import annotations

from typing import Any

from django.contrib.auth.signals import user_logged_in, user_logged_out, user_login_failed
from django.dispatch import receiver
from django.http import HttpRequest

from orgs import audit


def _actor(name: object) -> str:
    # Whatever somebody typed into the form: kept as text that the database takes.
    return "user:" + str(name or "unknown").replace("\x00", "\\0")


@receiver(user_logged_in, dispatch_uid="orgs.audit.login")
def logged_in(sender: Any, request: HttpRequest | None, user: Any, **kwargs: Any) -> None:
    """Note a log-in."""
    audit.record("login", actor=_actor(user.get_username()), organization_id=None, request=request)


@receiver(user_login_failed, dispatch_uid="orgs.audit.login_failed")
def login_failed(sender: Any, credentials: dict[str, Any], request: HttpRequest | None = None, **kwargs: Any) -> None:
    """Note a log-in that failed: the name that was tried, never the password."""
    audit.record("login.failed", actor=_actor(credentials.get("username")), organization_id=None, request=request)


@receiver(user_logged_out, dispatch_uid="orgs.audit.logout")
def logged_out(sender: Any, request: HttpRequest | None, user: Any, **kwargs: Any) -> None:
    """Note a log-out."""
    if user is not None:
        audit.record("logout", actor=_actor(user.get_username()), organization_id=None, request=request)
