"""The audit log: one row for each thing that somebody did to keys, subscriptions and deliveries."""

from __future__ import annotations

import uuid
from typing import Any

from django.http import HttpRequest

from core.client_address import client_address
from orgs.models import AuditEntry


def record(
    action: str,
    *,
    actor: str,
    organization_id: uuid.UUID | None,
    target: object = "",
    detail: dict[str, Any] | None = None,
    request: HttpRequest | None = None,
) -> None:
    """Add an entry, in the caller's transaction.

    The action belongs into the same transaction, so that neither is ever there without the other.  What takes many
    transactions (a command that goes through a table) gets an entry before the first one, and one with its figures
    after the last.

    actor: `key:<prefix>`, `user:<name>`, `command:<name>`, or `system:worker` for what happens by itself.
    detail: JSON without any secret.
    """
    AuditEntry.objects.create(
        organization_id=organization_id,
        actor=actor[:200],
        action=action,
        target=str(target)[:200],
        detail=detail or {},
        address=client_address(request)[:64] if request is not None else "",
        request_id=getattr(request, "request_id", "") if request is not None else "",
    )


def record_for_caller(request: Any, action: str, target: object = "", detail: dict[str, Any] | None = None) -> None:
    """Add an entry for what a key did through the API.  request: DRF's, authenticated."""
    record(
        action,
        actor=request.user.actor,
        organization_id=request.user.organization_id,
        target=target,
        detail=detail,
        request=request._request,
    )


def record_for_user(
    request: HttpRequest,
    action: str,
    organization_id: uuid.UUID | None,
    target: object = "",
    detail: dict[str, Any] | None = None,
) -> None:
    """Add an entry for what a member of staff did in the admin."""
    username = getattr(request.user, "username", "") or "unknown"
    record(
        action, actor=f"user:{username}", organization_id=organization_id, target=target, detail=detail, request=request
    )
