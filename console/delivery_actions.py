"""Retrying, replaying, holding and resuming many deliveries: in steps, each with its audit entries."""

from __future__ import annotations

import uuid
from collections import Counter, defaultdict

from django.db import transaction
from django.http import HttpRequest

from console.actions import chunks
from core.wakeups import WEBHOOKS, wake
from orgs import audit
from webhooks import delivery_actions
from webhooks.delivery_actions import DeliveryAction
from webhooks.models import Delivery

USE_COMMAND = (
    "Narrow the list with filters, or use `manage.py replay_deliveries`, which is paced and can be resumed. It takes "
    "--org, --subscription, --event, --status and --since."
)


def apply_to_deliveries(
    request: HttpRequest, action: DeliveryAction, chosen: list[uuid.UUID]
) -> tuple[int, dict[str, int]]:
    """Apply the action to the deliveries, in steps; each step and its audit entries are one transaction.

    Returns how many deliveries changed, and for the others how many were skipped for which reason.
    """
    changed = 0
    skipped: Counter[str] = Counter()
    for part in chunks(chosen):
        with transaction.atomic():
            before = {
                row[0]: row[1:]
                for row in Delivery.objects.filter(pk__in=part).values_list(
                    "pk", "organization_id", "status", "subscription__is_active", "subscription__deleted_at"
                )
            }
            able: dict[uuid.UUID, list[str]] = defaultdict(list)
            reasons: Counter[str] = Counter()
            for delivery_id, (organization_id, status, is_active, deleted_at) in before.items():
                reason = _why_not(action, status, is_active, deleted_at is not None)
                if reason is None:
                    able[organization_id].append(str(delivery_id))
                else:
                    reasons[reason] += 1
            done = delivery_actions.apply(action, part, announce=False)
            # A worker may have claimed or completed one between the look and the change.
            reasons["changed meanwhile"] += len(before) - sum(reasons.values()) - done
            for organization_id, ids in able.items():
                target = ids[0] if len(ids) == 1 else f"{len(ids)} deliveries"
                audit.record_for_user(
                    request,
                    f"delivery.{action.verb}",
                    organization_id,
                    target,
                    {"deliveries": ids, "changed_in_all": done},
                )
        if done:
            wake(WEBHOOKS)
        changed += done
        skipped += reasons
    skipped["deleted meanwhile"] += len(chosen) - changed - sum(skipped.values())
    return changed, dict(skipped)


def _why_not(action: DeliveryAction, status: str, is_active: bool, deleted: bool) -> str | None:
    """Return why the action skips a delivery, or None if it doesn't."""
    if status not in action.states:
        return {
            "delivering": "being sent right now",
            "held": "held (use Resume)",
            "cancelled": "cancelled with the subscription",
        }.get(status, f"{status} (can't {action.verb})")
    if deleted:
        return "for a deleted subscription"
    if not is_active and action is not DeliveryAction.HOLD:
        return "for a disabled subscription (enable it first)"
    return None
