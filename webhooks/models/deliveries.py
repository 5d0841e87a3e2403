"""Deliveries and their attempts."""

from __future__ import annotations

import datetime
from typing import Any, ClassVar

from django.db import models
from django.db.models import Q
from django.db.models.functions import Now

from core.ids import derive_id
from events.models import Event
from orgs.models import Organization
from webhooks.models.subscriptions import Subscription


class DeliveryStatus(models.TextChoices):
    """pending → delivering → delivered, or back to pending, or → failed when no attempts are left.

    held while the subscription is disabled, cancelled after it was deleted.
    """

    PENDING = "pending"
    DELIVERING = "delivering"
    DELIVERED = "delivered"
    FAILED = "failed"
    HELD = "held"
    CANCELLED = "cancelled"


class Cause(models.TextChoices):
    """Why an attempt is made."""

    SCHEDULE = "schedule"
    MANUAL = "manual"
    REPLAY = "replay"


class Delivery(models.Model):
    """One event for one subscription: the id is derived from the two, so that there can't be a second one."""

    # What is being delivered isn't in the indexes of the lists, in which each delivery would have an entry for that.
    # So a list consists of two parts (`core.query.newest`).
    LIST_PARTS: ClassVar = (
        Q(status__in=["pending", "delivered", "failed", "held", "cancelled"]),
        Q(status="delivering"),
    )

    id = models.UUIDField(primary_key=True, editable=False)
    organization = models.ForeignKey(
        Organization, on_delete=models.PROTECT, related_name="+", db_index=False, db_constraint=False
    )
    event = models.ForeignKey(
        Event, on_delete=models.PROTECT, related_name="deliveries", db_index=False, db_constraint=False
    )
    subscription = models.ForeignKey(
        Subscription, on_delete=models.PROTECT, related_name="deliveries", db_index=False, db_constraint=False
    )
    # Of an ordered subscription, if the event has a key: `webhooks.ordering_keys`.  ordered_at: when the event was
    # accepted.
    ordering_key = models.CharField(max_length=255, null=True, editable=False)
    ordered_at = models.DateTimeField(null=True, editable=False)
    # Of a delivery to an inbox: the event's type, so that what waits of a type is found behind any number of others.
    inbox_type = models.CharField(max_length=256, null=True, editable=False, db_collation="C")
    status = models.CharField(max_length=10, choices=DeliveryStatus.choices, default=DeliveryStatus.PENDING)
    next_attempt_at = models.DateTimeField(null=True, db_default=Now())
    cause = models.CharField(max_length=10, choices=Cause.choices, default=Cause.SCHEDULE)
    attempts_used = models.PositiveSmallIntegerField(
        default=0, help_text="Number of entries of the retry schedule that were used."
    )
    attempt_count = models.PositiveIntegerField(default=0)
    lease_id = models.UUIDField(null=True)
    lease_expires_at = models.DateTimeField(null=True)
    last_status_code = models.PositiveSmallIntegerField(null=True)
    last_error = models.CharField(max_length=30, blank=True, default="")
    completed_at = models.DateTimeField(null=True)
    created_at = models.DateTimeField(db_default=Now())

    class Meta:
        verbose_name_plural = "deliveries"
        permissions: ClassVar = [("manage_delivery", "Can retry, replay, hold and resume deliveries")]
        indexes: ClassVar = [
            models.Index(
                fields=["event"],
                condition=Q(status__in=["pending", "delivered", "failed", "held", "cancelled"]),
                name="webhooks_delivery_event",
            ),
            models.Index(
                fields=["subscription", "next_attempt_at"],
                condition=Q(status="pending"),
                name="webhooks_delivery_pending",
            ),
            models.Index(
                fields=["lease_expires_at"], condition=Q(status="delivering"), name="webhooks_delivery_leased"
            ),
            # What an ordering key has to wait for.  Deliveries without a key are in neither.
            models.Index(
                fields=["subscription", "ordering_key", "ordered_at", "event"],
                condition=Q(status__in=["pending", "delivering", "held"], ordering_key__isnull=False),
                name="webhooks_delivery_ordered",
            ),
            models.Index(
                fields=["subscription", "ordering_key"],
                condition=Q(status="delivering", ordering_key__isnull=False),
                name="webhooks_delivery_order_leased",
            ),
            models.Index(
                fields=["subscription", "ordering_key", "ordered_at", "event"],
                condition=Q(status="failed", ordering_key__isnull=False),
                name="webhooks_delivery_order_failed",
            ),
            # What was fetched from an inbox and not acknowledged; `next_attempt_at` is when it may be fetched again.
            models.Index(
                fields=["subscription", "next_attempt_at"],
                condition=Q(status="pending", lease_id__isnull=False),
                name="webhooks_delivery_fetched",
            ),
            # Both parts of an inbox once more, by type: what was fetched before, and what wasn't.
            models.Index(
                fields=["subscription", "inbox_type", "next_attempt_at"],
                condition=Q(status="pending", lease_id__isnull=False, inbox_type__isnull=False),
                name="webhooks_delivery_type_again",
            ),
            models.Index(
                fields=["subscription", "inbox_type", "next_attempt_at"],
                condition=Q(status="pending", lease_id__isnull=True, inbox_type__isnull=False),
                name="webhooks_delivery_type_fresh",
            ),
            # For the lists by state: the rows wanted may be older than millions of delivered ones.  What waits for its
            # first attempt and what waits for another one (`webhooks.states`) are in one index each.
            models.Index(
                fields=["organization", "status", "created_at", "id"],
                condition=Q(status__in=["held", "failed", "cancelled"]) | Q(status="pending", last_error=""),
                name="webhooks_delivery_by_status",
            ),
            # With the cause, so that the console counts causes without reading a row for each.
            models.Index(
                fields=["organization", "created_at", "id"],
                include=["last_error", "last_status_code"],
                condition=Q(status="pending") & ~Q(last_error=""),
                name="webhooks_delivery_retry_causes",
            ),
            models.Index(fields=["subscription"], condition=Q(status="held"), name="webhooks_delivery_held"),
            # For `GET /api/events?undelivered=true`, which must not walk the history.  What is being delivered is found
            # by its lease: that is little, and each delivery that goes well would write an entry here.
            models.Index(
                fields=["organization", "event"],
                condition=Q(status__in=["pending", "held", "failed"]),
                name="webhooks_delivery_undelivered",
            ),
            models.Index(
                fields=["organization", "created_at", "id"],
                condition=Q(status__in=["pending", "delivered", "failed", "held", "cancelled"]),
                name="webhooks_delivery_list",
            ),
            models.Index(
                fields=["subscription", "created_at", "id"],
                condition=Q(status__in=["pending", "delivered", "failed", "held", "cancelled"]),
                name="webhooks_delivery_sub_list",
            ),
            # For the admin, over all organizations, and what has failed in one.  Deliveries that go well never enter
            # these four.
            models.Index(
                fields=["status", "id"],
                condition=Q(status__in=["failed", "held", "cancelled"]),
                name="webhooks_delivery_troubled",
            ),
            models.Index(
                fields=["completed_at"],
                include=["organization", "last_error", "last_status_code"],
                condition=Q(status="failed"),
                name="webhooks_delivery_fail_causes",
            ),
            models.Index(
                fields=["organization", "completed_at"],
                include=["last_error", "last_status_code"],
                condition=Q(status="failed"),
                name="webhooks_delivery_org_failed",
            ),
            models.Index(
                fields=["last_error", "last_status_code", "id"],
                condition=Q(status="failed"),
                name="webhooks_delivery_outcome",
            ),
        ]

    def __str__(self) -> str:
        return f"delivery {self.id}"

    def save(self, *args: Any, **kwargs: Any) -> None:
        """Give a new delivery its id."""
        if getattr(self, "id", None) is None:
            self.id = derive_id(self.event_id, self.subscription_id)
        super().save(*args, **kwargs)


class DeliveryAttempt(models.Model):
    """One attempt of a delivery: when it was made, how long it took, and what came back."""

    id = models.BigAutoField(primary_key=True)
    delivery = models.ForeignKey(
        Delivery, on_delete=models.PROTECT, related_name="attempts", db_index=False, db_constraint=False
    )
    number = models.PositiveIntegerField()
    cause = models.CharField(max_length=10, choices=Cause.choices)
    started_at = models.DateTimeField()
    duration_ms = models.FloatField()
    status_code = models.PositiveSmallIntegerField(null=True)
    error = models.CharField(max_length=30, blank=True, default="", help_text="Error class; empty for a success.")
    error_detail = models.CharField(max_length=500, blank=True, default="")
    response_body = models.TextField(blank=True, default="")
    sealed_exchange = models.BinaryField(
        null=True, editable=False, help_text="What was sent and received, encrypted: `webhooks.destinations.exchange`."
    )

    class Meta:
        indexes: ClassVar = [models.Index(fields=["delivery", "number"], name="webhooks_attempt_delivery")]

    def __str__(self) -> str:
        return f"attempt {self.number} of {self.delivery_id}"

    @property
    def finished_at(self) -> datetime.datetime:
        """The end of the attempt."""
        return self.started_at + datetime.timedelta(milliseconds=self.duration_ms)
