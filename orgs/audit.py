"""The audit log: one row for each action on keys, subscriptions, and deliveries."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

from django.http import HttpRequest

from core.client_address import client_address
from orgs.models import AuditEntry

MOST_TARGETS = 1000


def record(
    action: str,
    *,
    actor: str,
    organization_id: uuid.UUID | None,
    target: object = "",
    detail: dict[str, Any] | None = None,
    request: HttpRequest | None = None,
    name: str = "",
    reason: str = "",
    targets: Sequence[object] = (),
) -> None:
    """Add an entry, in the caller's transaction.

    The action belongs in the same transaction, so that there is never one without the other.  An action that takes many
    transactions (a command that goes through a table) gets an entry before the first one, and another one with its
    numbers after the last.

    actor: `key:<prefix>`, `user:<name>`, `portal:<session>`, `command:<name>`, or `system:worker` for what happens
    automatically.  target: the id of the object.  name: a name of it for people, such as a subscription's URL.  An
    action on many rows is one entry, with their number and how they were selected in `detail`, and their ids in
    `targets`, of which MOST_TARGETS are kept: the history of each of them leads to the entry. reason: why, in the
    actor's words. detail: JSON without any secret.
    """
    AuditEntry.objects.create(
        organization_id=organization_id,
        actor=actor[:200],
        action=action,
        target=str(target)[:200],
        target_name=name[:300],
        targets=[str(one)[:40] for one in targets[:MOST_TARGETS]],
        reason=reason[:500],
        detail=detail or {},
        address=client_address(request)[:64] if request is not None else "",
        request_id=getattr(request, "request_id", "") if request is not None else "",
    )


def record_for_caller(
    request: Any,
    action: str,
    target: object = "",
    detail: dict[str, Any] | None = None,
    *,
    name: str = "",
    reason: str = "",
) -> None:
    """Add an entry for what a key did through the API.  request: DRF's, authenticated."""
    record(
        action,
        actor=request.user.actor,
        organization_id=request.user.organization_id,
        target=target,
        detail=detail,
        request=request._request,
        name=name,
        reason=reason,
    )


def record_for_user(
    request: HttpRequest,
    action: str,
    organization_id: uuid.UUID | None,
    target: object = "",
    detail: dict[str, Any] | None = None,
    *,
    name: str = "",
    reason: str = "",
    targets: Sequence[object] = (),
) -> None:
    """Add an entry for what a member of staff did in the admin."""
    record(
        action,
        actor=staff_actor(request),
        organization_id=organization_id,
        target=target,
        detail=detail,
        request=request,
        name=name,
        reason=reason,
        targets=targets,
    )


def staff_actor(request: HttpRequest) -> str:
    """Return the name that the member of staff who makes the request has in the audit log."""
    return f"user:{getattr(request.user, 'username', '') or 'unknown'}"
