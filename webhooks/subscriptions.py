"""What can be done with subscriptions: create, change, disable, enable, delete, rotate the secret.

The API, the admin, the commands and the sender all change subscriptions through these functions.
"""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Unpack

import structlog
from django.conf import settings
from django.db import DatabaseError, transaction
from django.db.models import Case, Q, QuerySet, When
from django.db.models.functions import Now
from django.utils import timezone

from core.db import after_transaction, is_transient
from core.wakeups import WEBHOOKS, wake
from orgs.audit import record
from orgs.models import Organization
from webhooks import notices
from webhooks.credentials import Credentials, with_columns
from webhooks.destinations.http.signing import SecretType, new_secret
from webhooks.destinations.inbox.arrivals import announce_arrivals
from webhooks.models import Delivery, DeliveryStatus, DestinationKind, DisabledCause, Subscription, SubscriptionQueue
from webhooks.ordering_keys import PARKED_FROM, unpark_forgotten
from webhooks.signing_secrets import (
    MAX_PREVIOUS_SECRETS,
    SecretExists,
    TooManySecrets,
    columns,
    first_end,
    holds,
    store,
    stored_secrets,
)

log = structlog.get_logger()

RESYNC_ROWS = 5000
# For a queue: an inbox's is never due.
_DUE_NOW = Case(When(is_fetched=False, then=Now()))
RESYNC_AT_ONCE = 10
# In the audit log, the actor is `system:` and this for what a worker does by itself.
AUTOMATIC = "worker"


class TooManySubscriptions(Exception):
    """The organization has MAX_SUBSCRIPTIONS already."""


def of_organization(organization_id: uuid.UUID) -> QuerySet[Subscription]:
    """Return the organization's subscriptions, without the deleted ones, whose rows stay."""
    return Subscription.objects.filter(organization_id=organization_id, deleted_at=None)


def create(
    organization_id: uuid.UUID,
    *,
    url: str = "",
    inbox: str = "",
    event_types: list[str],
    description: str = "",
    headers: Mapping[str, str] | None = None,
    max_in_flight: int | None = None,
    deliveries_per_second: float | None = None,
    format: str = "standard",
    transform: str = "",
    secret: str | None = None,
    secret_type: str = SecretType.HMAC,
    uid: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    is_hook: bool = False,
    filter: Mapping[str, Any] | None = None,
    channels: Sequence[str] = (),
    ordered: bool = False,
    ordered_attempts: int | None = None,
    ordered_on_failure: str = "skip",
    is_operational: bool = False,
    **credentials: Unpack[Credentials],
) -> tuple[Subscription, str]:
    """Create a subscription; return it and its signing secret, which can't be read again and is empty for an inbox.

    url, inbox: of an endpoint, or the name of an inbox.  secret: the tenant's own; without one a new one of
    `secret_type` is made.  Raises TooManySubscriptions, and IntegrityError if the organization has an inbox of this
    name or a subscription with this uid.
    """
    text = "" if inbox else secret or new_secret(secret_type)
    with transaction.atomic():
        # One at a time for each organization: two requests that count at once would both find room for one more.
        Organization.objects.select_for_update(no_key=True).filter(pk=organization_id).first()
        if of_organization(organization_id).count() >= settings.MAX_SUBSCRIPTIONS:
            raise TooManySubscriptions
        subscription = Subscription.objects.create(
            organization_id=organization_id,
            kind=DestinationKind.INBOX if inbox else DestinationKind.HTTP,
            inbox=inbox,
            url=f"inbox:{inbox}" if inbox else url,
            event_types=event_types,
            description=description,
            **with_columns({"headers": headers or {}, **credentials}),
            **(columns([store(text)]) if text else {"encrypted_secret": ""}),
            max_in_flight=max_in_flight,
            deliveries_per_second=deliveries_per_second,
            format=format,
            transform=transform,
            uid=uid,
            metadata=metadata or {},
            is_hook=is_hook,
            filter=filter,
            channels=list(channels),
            ordered=ordered,
            ordered_attempts=ordered_attempts,
            ordered_on_failure=ordered_on_failure,
            is_operational=is_operational,
        )
        SubscriptionQueue.objects.create(
            subscription=subscription,
            organization_id=organization_id,
            concurrency_window=settings.INITIAL_CONCURRENCY_WINDOW,
            is_fetched=bool(inbox),
        )
    subscription.refresh_from_db()
    return subscription, text


def change(subscription: Subscription, changes: Mapping[str, Any]) -> None:
    """Set fields by name, credentials as `Credentials` has them.  The next attempt uses the new values.

    A new URL starts with a clean record: failures at the old one say nothing about it.  One that was deleted meanwhile
    stays as it is, without secrets.
    """
    fields = with_columns(changes)
    with transaction.atomic():
        if "url" in fields:
            _reset_health(subscription.pk)
        goes_on = fields.get("ordered_on_failure", subscription.ordered_on_failure) != subscription.ordered_on_failure
        if goes_on:
            _lock([subscription.pk])
        Subscription.objects.filter(pk=subscription.pk, deleted_at=None).update(**fields, updated_at=Now())
        if goes_on:
            unpark_forgotten(subscription.pk)
    subscription.refresh_from_db()


def _reset_health(*subscription_ids: uuid.UUID, **more: Any) -> None:
    """Clear the record of failures, close the circuit breaker, and set what `more` names.

    In a transaction this comes first: everybody locks the queue before anything else of a subscription.
    """
    SubscriptionQueue.objects.filter(pk__in=subscription_ids).update(
        paused_until=None,
        breaker_trips=0,
        consecutive_failures=0,
        failing_since=None,
        recent_failures=[],
        concurrency_window=settings.INITIAL_CONCURRENCY_WINDOW,
        active_since=Now(),
        ready_since=Now(),
        last_error="",
        last_status_code=None,
        last_failure_at=None,
        **more,
    )


Audit = Callable[[], None]


def _disable(subscription_id: uuid.UUID, cause: DisabledCause, reason: str, audit: Audit | None) -> bool:
    """Disable the subscription in the caller's transaction; return False if it isn't active.

    From the commit on no worker claims its deliveries.  Afterward call `resync`, or let the sweep do it: it marks the
    waiting deliveries as held.
    """
    # The queue first: everybody locks it before anything else of a subscription.
    SubscriptionQueue.objects.select_for_update().filter(pk=subscription_id).first()
    changed = Subscription.objects.filter(pk=subscription_id, is_active=True, deleted_at=None).update(
        **_disabled(cause, reason)
    )
    SubscriptionQueue.objects.filter(pk=subscription_id).update(accepts_deliveries=False, needs_resync=True)
    if changed:
        _tell_consumers([subscription_id])
        organization_id = Subscription.objects.values_list("organization_id", flat=True).get(pk=subscription_id)
        notices.note_disabled({subscription_id: organization_id}, cause, reason)
        if audit is not None:
            audit()
    return bool(changed)


def _disabled(cause: DisabledCause, reason: str) -> dict[str, Any]:
    """Return the columns of a subscription that is being disabled."""
    return {
        "is_active": False, "disabled_at": Now(), "disabled_cause": cause, "disabled_reason": reason[:500],
        "updated_at": Now(),
    }  # fmt: skip


def _enabled() -> dict[str, Any]:
    """Return the columns of a subscription that is being enabled."""
    return {
        "is_active": True, "disabled_at": None, "disabled_cause": "", "disabled_reason": "", "updated_at": Now()
    }  # fmt: skip


def disable_automatically(subscription_id: uuid.UUID, cause: DisabledCause, reason: str) -> bool:
    """Disable a subscription whose endpoint returned 410 or failed for too long, in the caller's transaction.

    With a 410, an automation platform unsubscribes, so that deletes a hook. Returns False if that, or its audit entry,
    is refused: then the subscription stays as it is until the next failure, and the rest of the transaction goes on.
    """
    fields = ("organization_id", "url", "is_hook")
    organization_id, url, is_hook = Subscription.objects.values_list(*fields).get(pk=subscription_id)
    unsubscribes = cause == DisabledCause.GONE and is_hook
    action = "subscription.delete" if unsubscribes else "subscription.disable"
    entry = partial(
        record, action, actor=f"system:{AUTOMATIC}", organization_id=organization_id,
        target=subscription_id, name=url, reason=reason,
    )  # fmt: skip
    try:
        with transaction.atomic():
            if unsubscribes:
                _delete(subscription_id, entry)
            else:
                _disable(subscription_id, cause, reason, entry)
    except DatabaseError as error:
        if is_transient(error):
            raise
        log.error("subscription_not_disabled", subscription_id=str(subscription_id), error=repr(error)[:300])
        return False
    return True


def disable(subscription: Subscription, why: str = "", *, audit: Audit | None = None) -> None:
    """Stop sending to the subscription, as its tenant asks; its waiting and new deliveries are held until `enable`.

    why: in the tenant's words, if there are any.  audit: writes the audit entry; called in the transaction of
    the change, so that there is never one without the other, and only if there is a change.
    """
    with transaction.atomic():
        reason = f"Disabled by request: {why}" if why else "Disabled by request."
        _disable(subscription.pk, DisabledCause.BY_REQUEST, reason, audit)
    resync(subscription.pk)
    subscription.refresh_from_db()


def enable(subscription: Subscription, *, audit: Audit | None = None) -> None:
    """Send to the subscription again, with a clean record; its held deliveries are due now.

    audit: as in `disable`.
    """
    with transaction.atomic():
        SubscriptionQueue.objects.select_for_update().filter(pk=subscription.pk).first()
        # Not if it was deleted meanwhile.  One that is active is enabled, too: that clears its record of failures.
        enabled = Subscription.objects.filter(pk=subscription.pk, deleted_at=None).update(**_enabled())
        if enabled:
            _reset_health(subscription.pk, accepts_deliveries=True, needs_resync=True, next_due_at=_DUE_NOW)
            if audit is not None:
                audit()
    resync(subscription.pk)
    after_transaction(lambda: wake(WEBHOOKS))
    subscription.refresh_from_db()


def disable_many(
    subscription_ids: Sequence[uuid.UUID],
    cause: DisabledCause,
    reason: str,
    *,
    audit: Callable[[list[Subscription]], None],
) -> list[Subscription]:
    """Disable those of the subscriptions that are active, in one transaction; return them.

    audit: writes one entry for all of them, in that transaction.
    """
    with transaction.atomic():
        _lock(subscription_ids)
        rows = list(Subscription.objects.filter(pk__in=subscription_ids, is_active=True, deleted_at=None))
        ids = [row.pk for row in rows]
        Subscription.objects.filter(pk__in=ids).update(**_disabled(cause, reason))
        SubscriptionQueue.objects.filter(pk__in=ids).update(accepts_deliveries=False, needs_resync=True)
        if rows:
            _tell_consumers(ids)
            notices.note_disabled({row.pk: row.organization_id for row in rows}, cause, reason)
            audit(rows)
    _begin_resync(ids)
    return rows


def enable_many(
    subscription_ids: Sequence[uuid.UUID], *, audit: Callable[[list[Subscription]], None]
) -> list[Subscription]:
    """Enable those of the subscriptions that are disabled, in one transaction; return them.  audit: as above."""
    with transaction.atomic():
        _lock(subscription_ids)
        rows = list(Subscription.objects.filter(pk__in=subscription_ids, is_active=False, deleted_at=None))
        ids = [row.pk for row in rows]
        Subscription.objects.filter(pk__in=ids).update(**_enabled())
        _reset_health(*ids, accepts_deliveries=True, needs_resync=True, next_due_at=_DUE_NOW)
        if rows:
            audit(rows)
    _begin_resync(ids)
    after_transaction(lambda: wake(WEBHOOKS))
    return rows


def _tell_consumers(subscription_ids: Sequence[uuid.UUID]) -> None:
    """After the commit, wake the consumers that wait at those that are inboxes, so that they see the change."""
    found = Subscription.objects.filter(pk__in=subscription_ids, kind=DestinationKind.INBOX)
    if ids := list(found.values_list("pk", flat=True)):
        transaction.on_commit(partial(announce_arrivals, ids))


def _lock(subscription_ids: Sequence[uuid.UUID]) -> None:
    """Lock the queues, in the order of their ids as everywhere."""
    list(SubscriptionQueue.objects.select_for_update().filter(pk__in=subscription_ids).order_by("pk"))


def _begin_resync(subscription_ids: Sequence[uuid.UUID]) -> None:
    """Update the deliveries of a few subscriptions at once; the sweep updates the others within a second."""
    for subscription_id in subscription_ids[:RESYNC_AT_ONCE]:
        resync(subscription_id)


def delete(subscription: Subscription, *, audit: Audit | None = None) -> None:
    """Stop sending, cancel the waiting deliveries, erase the secrets and hide the subscription.

    Its row stays, because deliveries refer to it.  audit: as in `disable`.
    """
    with transaction.atomic():
        _delete(subscription.pk, audit)
    resync(subscription.pk)


def _delete(subscription_id: uuid.UUID, audit: Audit | None) -> None:
    """Delete the subscription in the caller's transaction; `resync` or the sweep cancels its deliveries afterward."""
    SubscriptionQueue.objects.select_for_update().filter(pk=subscription_id).first()
    deleted = Subscription.objects.filter(pk=subscription_id, deleted_at=None).update(
        deleted_at=Now(),
        is_active=False,
        updated_at=Now(),
        encrypted_secret="",
        encrypted_previous_secrets=[],
        previous_secrets_expire_at=[],
        secret_details=[],
        encrypted_headers="",
        encrypted_auth="",
        encrypted_client_certificate="",
    )
    SubscriptionQueue.objects.filter(pk=subscription_id).update(accepts_deliveries=False, needs_resync=True)
    notices.forget([subscription_id])
    if deleted:
        _tell_consumers([subscription_id])
    if deleted and audit is not None:
        audit()


def rotate_secret(
    subscription: Subscription,
    overlap: datetime.timedelta,
    *,
    end_earlier: bool = False,
    secret: str | None = None,
    secret_type: str | None = None,
) -> str:
    """Replace the current signing secret and return the new one.

    Requests carry the signatures of both for `overlap`; a zero overlap drops the old secret at once.  The other
    secrets sign as long as they were to, unless `end_earlier`.  secret: the tenant's own; without one a new one of
    `secret_type` is made, by default of the same type.  Raises TooManySecrets, SecretExists, or
    Subscription.DoesNotExist for one that was deleted meanwhile, whose secrets stay erased.
    """
    with transaction.atomic():
        locked = Subscription.objects.select_for_update().annotate(now=Now()).get(pk=subscription.pk, deleted_at=None)
        current, *earlier = stored_secrets(locked)
        if secret is not None and holds([current, *earlier], secret):
            raise SecretExists
        text = secret or new_secret(secret_type or current.type)
        kept = [] if end_earlier else earlier
        if overlap:
            if len(kept) >= MAX_PREVIOUS_SECRETS:
                raise TooManySecrets(first_end(kept))
            kept = [replace(current, expires_at=locked.now + overlap), *kept]
        Subscription.objects.filter(pk=subscription.pk).update(**columns([store(text), *kept]), updated_at=Now())
    subscription.refresh_from_db()
    return text


def ends_of_previous_secrets(subscription: Subscription) -> list[datetime.datetime]:
    """Return when each of the other secrets that sign stops, that of the last rotation first; not those that don't."""
    now = timezone.now()
    return [ends_at for ends_at in subscription.previous_secrets_expire_at if ends_at is not None and ends_at > now]


def resync(subscription_id: uuid.UUID, rows: int = RESYNC_ROWS) -> bool:
    """Give the waiting deliveries of a subscription the status that fits its state; return whether all of them have it
    now.

    A subscription is enabled, disabled or deleted in a short transaction, however many deliveries wait for it; that
    transaction marks the queue (`needs_resync`), and their statuses follow here, at most `rows` in each call: `pending`
    for an active subscription, `held` for a disabled one, `cancelled` for a deleted one.  The mark is cleared with the
    last of them.  After a crash, the sweep finds the mark and continues.
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
            # What was fetched from an inbox is leased until then.
            due = Case(When(lease_id__isnull=False, then="next_attempt_at"), default=Now())
            changes = {"status": DeliveryStatus.PENDING, "next_attempt_at": due}
        else:
            wrong = Q(status=DeliveryStatus.PENDING)
            # What was parked for its ordering key is held from now on (`upkeep.held_retention`).
            parked = When(next_attempt_at__gt=PARKED_FROM, then=Now())
            changes = {"status": DeliveryStatus.HELD, "next_attempt_at": Case(parked, default="next_attempt_at")}
        waiting = Delivery.objects.filter(wrong, subscription_id=subscription_id)
        ids = list(waiting.select_for_update(skip_locked=True).values_list("id", flat=True)[:rows])
        Delivery.objects.filter(id__in=ids).update(**changes)
        done = len(ids) < rows and not waiting.exists()
        fields: dict[str, Any] = {"needs_resync": not done}
        if ids and subscription.is_active and subscription.deleted_at is None:
            fields["next_due_at"] = _DUE_NOW
        SubscriptionQueue.objects.filter(pk=subscription_id).update(**fields)
    return done
