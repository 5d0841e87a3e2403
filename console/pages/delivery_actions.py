"""Repairing chosen deliveries: in chunks, audited, and told why some were left alone."""

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
    "Use `manage.py replay_deliveries` for so many (it is paced, resumable and takes --org, --subscription, --event, "
    "--status, --since), or narrow the list."
)


def repair_deliveries(
    request: HttpRequest, action: DeliveryAction, chosen: list[uuid.UUID]
) -> tuple[int, dict[str, int]]:
    """Do `what` to the deliveries, in chunks, each with its audit entries in one transaction.

    Returns how many changed, and for the others how many for which reason.
    """
    changed = 0
    left: Counter[str] = Counter()
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
            # A worker may have taken or settled one between the look and the change.
            reasons["changed state meanwhile"] += len(before) - sum(reasons.values()) - done
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
        left += reasons
    left["no longer exist"] += len(chosen) - changed - sum(left.values())
    return changed, dict(left)


def _why_not(action: DeliveryAction, status: str, is_active: bool, deleted: bool) -> str | None:
    """Return why a delivery would be left alone, or None."""
    if status not in action.states:
        return {
            "delivering": "being sent right now",
            "held": "held (resume them instead)",
            "cancelled": "cancelled with their subscription",
        }.get(status, f"{status}, which {action.verb} doesn't apply to")
    if deleted:
        return "of a deleted subscription"
    if not is_active and action is not DeliveryAction.HOLD:
        return "of a disabled subscription (enable it first)"
    return None
