"""Subscriptions' lives: making, changing, disabling, enabling, deleting, and their secrets."""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Iterable, Mapping
from typing import Any

from django.conf import settings
from django.db import transaction
from django.db.models import Q
from django.db.models.functions import Now

from core.encryption import encrypt
from core.wakeups import WEBHOOKS, wake
from orgs.models import Organization
from webhooks.destinations.http.endpoint import seal_headers
from webhooks.destinations.http.signing import new_secret
from webhooks.models import Delivery, DeliveryStatus, Subscription, SubscriptionQueue

RESYNC_ROWS = 5000
DISABLED_BY_REQUEST = "Disabled by request."


class TooManySubscriptions(Exception):
    """The organization has as many subscriptions as it may."""


def live(organization_id: uuid.UUID) -> Any:
    """Return the organization's subscriptions that aren't deleted."""
    return Subscription.objects.filter(organization_id=organization_id, deleted_at=None)


def create(
    organization_id: uuid.UUID,
    *,
    url: str,
    event_types: list[str],
    description: str = "",
    headers: Mapping[str, str] | None = None,
    max_in_flight: int | None = None,
    deliveries_per_second: float | None = None,
) -> tuple[Subscription, str]:
    """Make a subscription and return it with its secret, which isn't shown again.

    Raises TooManySubscriptions.
    """
    secret = new_secret()
    with transaction.atomic():
        # Counted under a lock, so that two requests at once don't both get the last place.
        Organization.objects.select_for_update(no_key=True).filter(pk=organization_id).first()
        # One at a time for an organization: two that count at once would both find room for one.
        Organization.objects.select_for_update(no_key=True).filter(pk=organization_id).first()
        if live(organization_id).count() >= settings.MAX_SUBSCRIPTIONS:
            raise TooManySubscriptions
        subscription = Subscription.objects.create(
            organization_id=organization_id,
            url=url,
            event_types=event_types,
            description=description,
            encrypted_headers=seal_headers(headers or {}),
            header_names=sorted(headers or {}),
            encrypted_secret=encrypt(secret),
            max_in_flight=max_in_flight,
            deliveries_per_second=deliveries_per_second,
        )
        SubscriptionQueue.objects.create(
            subscription=subscription,
            organization_id=organization_id,
            concurrency_window=settings.INITIAL_CONCURRENCY_WINDOW,
        )
    subscription.refresh_from_db()
    return subscription, secret


def change(subscription: Subscription, changes: Mapping[str, Any]) -> None:
    """Apply `changes` (fields by name; `headers` as plain values).  The next attempt uses the new ones."""
    fields = dict(changes)
    if "headers" in fields:
        headers = fields.pop("headers")
        fields["encrypted_headers"] = seal_headers(headers)
        fields["header_names"] = sorted(headers)
    with transaction.atomic():
        if "url" in fields:
            # The queue first, as everywhere.  What went wrong at the old address says nothing about the new one.
            _forgive(subscription.pk)
        Subscription.objects.filter(pk=subscription.pk).update(**fields, updated_at=Now())
    subscription.refresh_from_db()


def _forgive(subscription_id: uuid.UUID) -> None:
    SubscriptionQueue.objects.filter(pk=subscription_id).update(
        paused_until=None,
        breaker_trips=0,
        consecutive_failures=0,
        failing_since=None,
        recent_failures=[],
        concurrency_window=settings.INITIAL_CONCURRENCY_WINDOW,
    )


def disable_in_transaction(subscription_ids: Iterable[uuid.UUID], reason: str) -> int:
    """Disable active subscriptions, in the caller's transaction; return how many.

    Nothing more is sent at once; what waits is marked as held by `resync`.
    """
    ids = list(subscription_ids)
    # The queue first: everybody locks it before anything else of the subscription.
    list(SubscriptionQueue.objects.select_for_update().filter(pk__in=ids).order_by("pk").values_list("pk"))
    changed = Subscription.objects.filter(pk__in=ids, is_active=True, deleted_at=None).update(
        is_active=False, disabled_at=Now(), disabled_reason=reason[:500], updated_at=Now()
    )
    SubscriptionQueue.objects.filter(pk__in=ids).update(accepts_deliveries=False, needs_resync=True)
    return changed


def disable(subscription: Subscription, reason: str = DISABLED_BY_REQUEST) -> None:
    """Stop sending to the subscription; it loses nothing, what waits is held until `enable`."""
    with transaction.atomic():
        disable_in_transaction([subscription.pk], reason)
    resync(subscription.pk)
    subscription.refresh_from_db()


def enable(subscription: Subscription) -> None:
    """Send to the subscription again, with a clean record; what was held is due now."""
    with transaction.atomic():
        SubscriptionQueue.objects.select_for_update().filter(pk=subscription.pk).first()
        enabled = Subscription.objects.filter(pk=subscription.pk, deleted_at=None).update(
            is_active=True, disabled_at=None, disabled_reason="", updated_at=Now()
        )
        if enabled:  # and not deleted a moment ago
            _forgive(subscription.pk)
            SubscriptionQueue.objects.filter(pk=subscription.pk).update(
                accepts_deliveries=True, needs_resync=True, next_due_at=Now()
            )
    resync(subscription.pk)
    wake(WEBHOOKS)
    subscription.refresh_from_db()


def delete(subscription: Subscription) -> None:
    """Send nothing more, cancel what waits, and hide the subscription; its secrets are erased."""
    with transaction.atomic():
        SubscriptionQueue.objects.select_for_update().filter(pk=subscription.pk).first()
        Subscription.objects.filter(pk=subscription.pk, deleted_at=None).update(
            deleted_at=Now(),
            is_active=False,
            updated_at=Now(),
            encrypted_secret="",
            encrypted_previous_secret="",
            encrypted_headers="",
        )
        SubscriptionQueue.objects.filter(pk=subscription.pk).update(accepts_deliveries=False, needs_resync=True)
    resync(subscription.pk)


def rotate_secret(subscription: Subscription, overlap: datetime.timedelta) -> str:
    """Give the subscription a new secret and return it; old and new both sign for `overlap`."""
    secret = new_secret()
    with transaction.atomic():
        locked = Subscription.objects.select_for_update().get(pk=subscription.pk)
        Subscription.objects.filter(pk=subscription.pk).update(
            encrypted_previous_secret=locked.encrypted_secret if overlap else "",
            previous_secret_expires_at=Now() + overlap if overlap else None,
            encrypted_secret=encrypt(secret),
            updated_at=Now(),
        )
    subscription.refresh_from_db()
    return secret


def resync(subscription_id: uuid.UUID, rows: int = RESYNC_ROWS) -> bool:
    """Bring up to `rows` waiting deliveries in line with their subscription; True when all are.

    Waiting means `pending` for an active subscription, `held` for a disabled one, and the end
    (`cancelled`) for a deleted one.  A crash in between leaves the queue marked, and the sweep goes on.
    """
    with transaction.atomic():
        queue = SubscriptionQueue.objects.select_for_update().filter(pk=subscription_id, needs_resync=True).first()
        if queue is None:
            return True
        subscription = Subscription.objects.get(pk=subscription_id)
        changes: dict[str, Any]
        if subscription.deleted_at is not None:
            wrong = Q(status__in=[DeliveryStatus.PENDING, DeliveryStatus.HELD])
            changes = {"status": DeliveryStatus.CANCELLED, "completed_at": Now(), "next_attempt_at": None}
        elif subscription.is_active:
            wrong = Q(status=DeliveryStatus.HELD)
            changes = {"status": DeliveryStatus.PENDING, "next_attempt_at": Now()}
        else:
            wrong = Q(status=DeliveryStatus.PENDING)
            changes = {"status": DeliveryStatus.HELD}
        waiting = Delivery.objects.filter(wrong, subscription_id=subscription_id)
        ids = list(waiting.select_for_update(skip_locked=True).values_list("id", flat=True)[:rows])
        Delivery.objects.filter(id__in=ids).update(**changes)
        done = len(ids) < rows and not waiting.exists()
        fields: dict[str, Any] = {"needs_resync": not done}
        if ids and subscription.is_active and subscription.deleted_at is None:
            fields["next_due_at"] = Now()
        SubscriptionQueue.objects.filter(pk=subscription_id).update(**fields)
    return done
