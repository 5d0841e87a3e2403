"""What works on many deliveries, or regularly: bulk runs and leases on tasks."""

from __future__ import annotations

from typing import ClassVar

from django.db import models
from django.db.models import Q
from django.db.models.functions import Now

from core.ids import new_id
from webhooks.models.subscriptions import Subscription


class BulkRun(models.Model):
    """A retry, replay or recovery of many deliveries, with its position, so that it can continue after a crash."""

    class Kind(models.TextChoices):
        """retry and replay send matching deliveries again; recover queues the events that a subscription missed."""

        RETRY = "retry"
        REPLAY = "replay"
        RECOVER = "recover"

    class State(models.TextChoices):
        """running until every matching row has been visited, or somebody cancels it."""

        RUNNING = "running"
        DONE = "done"
        CANCELLED = "cancelled"

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    kind = models.CharField(max_length=10, choices=Kind.choices)
    state = models.CharField(max_length=10, choices=State.choices, default=State.RUNNING)
    organization_id = models.UUIDField(null=True)
    subscription = models.ForeignKey(Subscription, null=True, on_delete=models.CASCADE, related_name="+")
    actor = models.CharField(max_length=200, blank=True, default="", db_default="", help_text="As in the audit log.")
    filters = models.JSONField(default=dict)
    fingerprint = models.CharField(
        max_length=64, blank=True, default="", db_default="", editable=False,
        help_text="What was asked for, as a hash: two who ask for the same get one run.",
    )  # fmt: skip
    in_background = models.BooleanField(
        default=False, db_default=False, help_text="Workers move it on; otherwise the command that began it does."
    )
    before = models.DateTimeField(db_default=Now(), help_text="Only rows older than this are included.")
    cursor_at = models.DateTimeField(null=True)
    cursor_id = models.UUIDField(null=True)
    total = models.PositiveIntegerField(
        null=True, help_text="Matching rows when it began, counted to a bound; empty if nobody counted them."
    )
    visited = models.PositiveIntegerField(default=0, db_default=0, help_text="Matching rows that it has seen.")
    queued = models.PositiveIntegerField(default=0, help_text="Deliveries made due, and those held instead.")
    held = models.PositiveIntegerField(
        default=0, db_default=0, help_text="Of those queued: held, because their subscription is disabled."
    )
    created_at = models.DateTimeField(db_default=Now())
    updated_at = models.DateTimeField(db_default=Now())
    finished_at = models.DateTimeField(null=True)

    class Meta:
        indexes: ClassVar = [
            models.Index(fields=["created_at"], condition=Q(state="running"), name="webhooks_bulkrun_running"),
            models.Index(fields=["organization_id", "created_at", "id"], name="webhooks_bulkrun_list"),
            models.Index(fields=["fingerprint", "created_at"], name="webhooks_bulkrun_same"),
        ]

    def __str__(self) -> str:
        return f"{self.kind} {self.id}"


class TaskLease(models.Model):
    """Which process does a task that one of them does at a time, and until when it has the task to itself.

    A row and not an advisory lock: that belongs to a session, and a connection pooler in transaction mode, such as
    PgBouncer, gives each transaction another session.
    """

    task = models.CharField(primary_key=True, max_length=40)
    holder = models.UUIDField()
    expires_at = models.DateTimeField()

    def __str__(self) -> str:
        return f"{self.task} held by {self.holder}"
