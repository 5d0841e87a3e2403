"""Events as they were accepted, their dedup ids, and the catalog of event types."""

from __future__ import annotations

from typing import ClassVar

from django.contrib.postgres.fields import ArrayField
from django.db import models
from django.db.models import Q
from django.db.models.functions import Now

from core.ids import new_id
from core.safe_text import visible
from events.origin import split_trace, unpack_request_id
from orgs.models import Organization

# Stored instead of data that was erased.  No producer's text is the same: `events.payload` takes a value without the
# white space around it.
ERASED = "null "


class EventStatus(models.TextChoices):
    """accepted → processed, or → error after repeated failure; error → accepted by reprocessing."""

    ACCEPTED = "accepted"
    PROCESSED = "processed"
    ERROR = "error"


class Event(models.Model):
    """One event.  `data` is the producer's JSON text, byte for byte; nothing rewrites it, but it can be erased."""

    # The indexes of the lists only have entries for events that have been fanned out, so that an event doesn't get a
    # second entry for the row with which it was accepted.  So a list consists of two parts (`core.query.newest`).
    LIST_PARTS: ClassVar = (Q(status__in=["processed", "error"]), Q(status="accepted"))

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    organization = models.ForeignKey(
        Organization, on_delete=models.PROTECT, related_name="+", db_index=False, db_constraint=False
    )
    type = models.CharField(max_length=255)
    data = models.TextField()
    dedup_id = models.CharField(max_length=255, null=True, blank=True)
    channels = ArrayField(models.CharField(max_length=128), null=True, blank=True)  # null for none
    ordering_key = models.CharField(max_length=255, null=True, blank=True)
    status = models.CharField(max_length=10, choices=EventStatus.choices, default=EventStatus.ACCEPTED)
    failed_attempts = models.PositiveSmallIntegerField(default=0, help_text="Fan-outs that failed.")
    due_at = models.DateTimeField(db_default=Now(), help_text="When the fan-out is due.")
    processed_at = models.DateTimeField(null=True)
    last_error = models.TextField(blank=True, default="")
    # In the form of `events.origin`.
    packed_request_id = models.BinaryField(max_length=128, null=True, editable=False)
    trace = models.TextField(null=True, editable=False)
    # Of an event that came as a CloudEvent; `events.cloudevents` says what it holds.
    cloudevent = models.TextField(null=True, editable=False)
    created_at = models.DateTimeField(db_default=Now())

    class Meta:
        permissions: ClassVar = [("reprocess_event", "Can give events in error a new fan-out")]
        indexes: ClassVar = [
            models.Index(
                fields=["organization", "created_at", "id"],
                condition=Q(status__in=["processed", "error"]),
                name="events_event_list",
            ),
            models.Index(
                fields=["organization", "type", "created_at", "id"],
                condition=Q(status__in=["processed", "error"]),
                name="events_event_type_list",
            ),
            # For the fan-out, in which organizations take turns, and for the lists.
            models.Index(
                fields=["organization", "created_at", "id", "due_at"],
                condition=Q(status="accepted"),
                name="events_event_accepted",
            ),
            models.Index(
                fields=["organization", "created_at", "id"], condition=Q(status="error"), name="events_event_error"
            ),
            # For the fan-out, whether an earlier event of the key is still waiting for it.
            models.Index(
                fields=["organization", "ordering_key", "created_at", "id"],
                condition=Q(status="accepted", ordering_key__isnull=False),
                name="events_event_ordering",
            ),
            models.Index(fields=["dedup_id"], condition=Q(dedup_id__isnull=False), name="events_event_dedup_id"),
        ]

    def __str__(self) -> str:
        return visible(f"{self.type} {self.id}")

    @property
    def is_erased(self) -> bool:
        """Return whether its data was erased."""
        return self.data == ERASED

    @property
    def request_id(self) -> str | None:
        """The id of the request that brought the event."""
        return unpack_request_id(self.packed_request_id)

    @property
    def traceparent(self) -> str | None:
        """The `traceparent` of the request that brought the event, if it had a valid one."""
        return split_trace(self.trace)[0]

    @property
    def tracestate(self) -> str | None:
        """The `tracestate` beside it."""
        return split_trace(self.trace)[1]


class DedupKey(models.Model):
    """A dedup id in its window: which event it stands for, and a fingerprint of that event's content."""

    pk = models.CompositePrimaryKey("organization_id", "dedup_id")
    organization = models.ForeignKey(
        Organization, on_delete=models.DO_NOTHING, related_name="+", db_index=False, db_constraint=False
    )
    dedup_id = models.CharField(max_length=255)
    event_id = models.UUIDField()
    fingerprint = models.BinaryField(max_length=32)
    expires_at = models.DateTimeField()

    class Meta:
        indexes: ClassVar = [models.Index(fields=["expires_at"], name="events_dedupkey_expires")]

    def __str__(self) -> str:
        return self.dedup_id


class EventType(models.Model):
    """A type of events in an organization's catalog: what it is for, and what its data looks like."""

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    organization = models.ForeignKey(Organization, on_delete=models.CASCADE, related_name="+", db_index=False)
    name = models.CharField(max_length=255)
    description = models.TextField(max_length=2000, blank=True, default="")
    examples = models.JSONField(default=list, blank=True, help_text="Examples of the data of an event.")
    schema = models.JSONField(null=True, blank=True, help_text="JSON Schema (2020-12) of the data of an event.")
    version = models.PositiveIntegerField(default=1, editable=False, help_text="Counts the changes of the schema.")
    archived_at = models.DateTimeField(null=True, editable=False)
    created_at = models.DateTimeField(db_default=Now(), editable=False)
    updated_at = models.DateTimeField(db_default=Now(), editable=False)

    class Meta:
        indexes: ClassVar = [models.Index(fields=["organization", "created_at", "id"], name="events_eventtype_list")]
        constraints: ClassVar = [models.UniqueConstraint("organization", "name", name="events_eventtype_name")]

    def __str__(self) -> str:
        return visible(self.name)

    @property
    def archived(self) -> bool:
        """Return whether new events shouldn't have this type any more."""
        return self.archived_at is not None
