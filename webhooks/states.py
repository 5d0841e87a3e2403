"""The states of deliveries and subscriptions, in the words that people see.  The API, the admin, health, and the
commands all use these.

A delivery is *retrying* from its first failed attempt until it is sent or has failed for good; the database's `pending`
covers that and what waits for its first attempt.  In an inbox, what a consumer has fetched is *delivering* until it is
acknowledged or its lease ends, although the database has it as `pending` (`destinations.inbox.fetching`).

A subscription is *disabled*, *paused* (its circuit breaker is open, or its endpoint asked for a pause), *failing* (its
last attempt failed) or *active*, whichever applies first.  The conditions are defined once, as SQL.  The queries of
`with_state` and `in_state` include them, and Python only reads the results.
"""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Iterable

from django.conf import settings
from django.db.models import (
    Case,
    CharField,
    DateTimeField,
    F,
    IntegerField,
    OuterRef,
    Q,
    QuerySet,
    Subquery,
    TextChoices,
    Value,
    When,
)  # fmt: skip
from django.db.models.functions import Coalesce, Greatest, Now
from django.utils import timezone

from webhooks.destinations.inbox.fetching import GIVEN_BACK
from webhooks.models import Delivery, DeliveryStatus, DestinationKind, Subscription
from webhooks.ordering_keys import PARKED_FROM

# --- deliveries -------------------------------------------------------------------------------------


class DeliveryState(TextChoices):
    """A delivery's state: its status, except that what is `retrying` or fetched from an inbox isn't `pending`."""

    PENDING = "pending"
    RETRYING = "retrying"
    DELIVERING = "delivering"
    DELIVERED = "delivered"
    FAILED = "failed"
    HELD = "held"
    CANCELLED = "cancelled"


# The conditions of the indexes webhooks_delivery_by_status and webhooks_delivery_retry_causes.
_NOT_ATTEMPTED = Q(status=DeliveryStatus.PENDING, last_error="")
_RETRYING = Q(status=DeliveryStatus.PENDING) & ~Q(last_error="")
# Only inboxes have pending deliveries with a lease.  `NOT_LEASED` is the opposite; in SQL it has no NULL, either.
_LEASED = Q(status=DeliveryStatus.PENDING, lease_id__gt=GIVEN_BACK, next_attempt_at__gt=Now())
_NOT_LEASED = Q(lease_id=None) | Q(lease_id=GIVEN_BACK) | Q(next_attempt_at__lte=Now())
NOT_LEASED = f"(lease_id IS NULL OR lease_id = '{GIVEN_BACK}' OR next_attempt_at <= statement_timestamp())"
# The columns that `delivery_state` takes.
STATE_COLUMNS = ("status", "last_error", "lease_id", "next_attempt_at")


def state_of(delivery: Delivery) -> str:
    """Return the state of a delivery."""
    return delivery_state(delivery.status, delivery.last_error, delivery.lease_id, delivery.next_attempt_at)


def is_leased(status: str, lease_id: uuid.UUID | None, next_attempt_at: datetime.datetime | None) -> bool:
    """Return whether a consumer has fetched a delivery with these columns from its inbox, and its lease lasts."""
    return (
        status == DeliveryStatus.PENDING
        and lease_id not in {None, GIVEN_BACK}
        and next_attempt_at is not None
        and next_attempt_at > timezone.now()
    )


def delivery_state(
    status: str, last_error: str, lease_id: uuid.UUID | None, next_attempt_at: datetime.datetime | None
) -> str:
    """Return the state of a delivery with these columns."""
    if is_leased(status, lease_id, next_attempt_at):
        return DeliveryState.DELIVERING.value
    if status == DeliveryStatus.PENDING and last_error:
        return DeliveryState.RETRYING.value
    return status


def next_attempt_at(delivery: Delivery) -> datetime.datetime | None:
    """Return when a delivery that waits for an attempt is due, or can be fetched again; None if none is planned."""
    if delivery.status != DeliveryStatus.PENDING or delivery.next_attempt_at is None:
        return None
    return delivery.next_attempt_at if delivery.next_attempt_at < PARKED_FROM else None


def in_delivery_state(state: str) -> Q:
    """Return the condition for deliveries in a state."""
    if state == DeliveryState.RETRYING:
        return _RETRYING & _NOT_LEASED
    if state == DeliveryState.DELIVERING:
        return Q(status=DeliveryStatus.DELIVERING) | _LEASED
    return _NOT_ATTEMPTED & _NOT_LEASED if state == DeliveryState.PENDING else Q(status=state)


def in_delivery_states(states: Iterable[str]) -> Q:
    """Return the condition for deliveries in one of the states."""
    condition = Q(pk__in=[])
    for state in states:
        condition |= in_delivery_state(state)
    return condition


# --- subscriptions ----------------------------------------------------------------------------------


class SubscriptionState(TextChoices):
    """A subscription's state."""

    ACTIVE = "active"
    FAILING = "failing"
    PAUSED = "paused"
    DISABLED = "disabled"


class Breaker(TextChoices):
    """The circuit breaker: closed while deliveries flow, open during a pause, half-open while it probes."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


# What a deleted subscription's page shows; the API has no deleted ones.
DELETED = "deleted"

# In order: a subscription is in the first state whose condition it meets, and otherwise active.
_CONDITIONS: dict[str, Q] = {
    DELETED: Q(deleted_at__isnull=False),
    SubscriptionState.DISABLED.value: Q(is_active=False),
    SubscriptionState.PAUSED.value: Q(queue__paused_until__gt=Now()),
    SubscriptionState.FAILING.value: Q(queue__failing_since__isnull=False),
}
_IS_PAUSED = _CONDITIONS[SubscriptionState.PAUSED]


def in_state(state: str) -> Q:
    """Return the condition for subscriptions in a state: `deleted`, or one of SubscriptionState."""
    condition = Q()
    for name, holds in _CONDITIONS.items():
        if name == state:
            return condition & holds
        # Spelled out, because NOT (NULL > now()) is NULL, which isn't true.
        condition &= (
            Q(queue__paused_until__isnull=True) | Q(queue__paused_until__lte=Now()) if holds is _IS_PAUSED else ~holds
        )
    return condition


def with_state(rows: QuerySet[Subscription]) -> QuerySet[Subscription]:
    """Return the subscriptions with their states, as further attributes of each.

    state, state_since; breaker; paused_until (of a pause that lasts); failing_since, last_success_at, last_failure_at,
    last_error, last_status_code; next_attempt_at: when the next attempt is planned, none while it is disabled.
    """
    active = Q(is_active=True, deleted_at=None)
    # The queue's own time is later only while a rate limit makes it wait.  GREATEST ignores what is NULL.
    attempt_at = Greatest("next_attempt_at", OuterRef("queue__next_due_at"), OuterRef("queue__paused_until"))
    # Named once in the query: the planner looks at each partition of the deliveries wherever it is named.
    first_attempt = (
        Delivery.objects.filter(
            subscription_id=OuterRef("pk"), status=DeliveryStatus.PENDING, next_attempt_at__lt=PARKED_FROM
        )
        .order_by("next_attempt_at").values(attempt_at=attempt_at)[:1]
    )  # fmt: skip
    nothing = Value(None, DateTimeField())
    is_sent_to = active & Q(kind=DestinationKind.HTTP) if not settings.DISABLE_WEBHOOK_DELIVERY else Q(pk__in=[])
    return rows.annotate(
        state=Case(
            *(When(condition, then=Value(name)) for name, condition in _CONDITIONS.items()),
            default=Value(SubscriptionState.ACTIVE.value),
            output_field=CharField(),
        ),
        state_since=Case(
            When(_CONDITIONS[DELETED], then=F("deleted_at")),
            When(~active, then=F("disabled_at")),
            default=Coalesce("queue__failing_since", "queue__active_since"),
            output_field=DateTimeField(),
        ),
        breaker=Case(
            When(_IS_PAUSED & Q(queue__breaker_trips__gt=0), then=Value(Breaker.OPEN.value)),
            When(queue__breaker_trips__gt=0, then=Value(Breaker.HALF_OPEN.value)),
            default=Value(Breaker.CLOSED.value),
            output_field=CharField(),
        ),
        paused_until=Case(When(active & _IS_PAUSED, then=F("queue__paused_until")), default=nothing),
        failing_since=Case(When(active, then=F("queue__failing_since")), default=nothing),
        last_success_at=F("queue__last_success_at"),
        last_failure_at=F("queue__last_failure_at"),
        last_error=F("queue__last_error"),
        last_status_code=Case(default=F("queue__last_status_code"), output_field=IntegerField()),
        next_attempt_at=Case(When(is_sent_to, then=Subquery(first_attempt)), default=nothing),
    )
