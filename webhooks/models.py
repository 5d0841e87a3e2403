"""Subscriptions, their queues, deliveries, attempts and bulk runs."""

from __future__ import annotations

import datetime
from typing import Any, ClassVar

from django.contrib.postgres.fields import ArrayField
from django.contrib.postgres.indexes import HashIndex
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models
from django.db.models import F, Func, Q, Value
from django.db.models.functions import Coalesce, Lower, Now

from core.ids import derive_id, new_id
from events.models import Event
from orgs.models import Organization
from webhooks.destinations.formats import Format

# The host in a URL, without user and port (RFC 3986 §3.2): what PostgreSQL makes `Subscription.host` of.
_HOST_IN_URL = r"^[^:/?#]*://(?:[^/?#@]*@)?(\[[^/?#\]]*\]|[^/?#:]*)"

FORMATS = tuple(form.value for form in Format)


class DestinationKind(models.TextChoices):
    """Where deliveries go: to an endpoint, or into an inbox, from which the tenant fetches them."""

    HTTP = "http"
    INBOX = "inbox"


# The columns of a subscription that hold secrets; lists and pages leave them out.
ENCRYPTED = (
    "encrypted_secret",
    "encrypted_previous_secrets",
    "encrypted_headers",
    "encrypted_auth",
    "encrypted_client_certificate",
)


class OrderedOnFailure(models.TextChoices):
    """What a delivery that has failed means for the later ones of its ordering key."""

    SKIP = "skip"
    BLOCK = "block"


class Subscription(models.Model):
    """An endpoint's URL, the event types it wants, and the secret that signs its requests; or an inbox.

    The row of a deleted subscription stays, because deliveries refer to it; `deleted_at` hides it.  An inbox has
    neither secret nor headers, and its `url` is `inbox:` and its name, for people.
    """

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    organization = models.ForeignKey(Organization, on_delete=models.PROTECT, related_name="+", db_index=False)
    kind = models.CharField(
        max_length=10, choices=DestinationKind.choices, default=DestinationKind.HTTP,
        db_default=DestinationKind.HTTP.value, editable=False,
    )  # fmt: skip
    inbox = models.CharField(
        max_length=64,
        blank=True,
        default="",
        db_default="",
        editable=False,
        help_text="The inbox's name, if it is one.",
    )
    url = models.CharField(max_length=2048)
    host = models.GeneratedField(
        # Empty for a text that isn't a URL, which must not be refused here: it fails alone, where it is used.
        expression=Coalesce(
            Lower(Func(F("url"), Value(_HOST_IN_URL), function="substring", output_field=models.TextField())),
            Value(""),
            output_field=models.TextField(),
        ),
        output_field=models.TextField(),
        db_persist=True,
    )
    description = models.CharField(max_length=500, blank=True, default="")
    event_types = ArrayField(models.CharField(max_length=257))
    channels = ArrayField(
        models.CharField(max_length=128), default=list, blank=True, db_default=[], help_text="Empty for all events."
    )
    encrypted_headers = models.TextField(blank=True, default="", editable=False)
    header_names = ArrayField(models.CharField(max_length=100), default=list, blank=True, editable=False)
    encrypted_secret = models.TextField(editable=False)
    # The other secrets that sign, newest first, and when each of them stops; null for never.
    encrypted_previous_secrets = ArrayField(models.TextField(), default=list, blank=True, editable=False)
    previous_secrets_expire_at = ArrayField(models.DateTimeField(null=True), default=list, blank=True, editable=False)
    # What can be shown of the secrets, the current one first: `webhooks.signing_secrets`.
    secret_details = models.JSONField(
        default=list, db_default=Value([], models.JSONField()), blank=True, editable=False
    )
    auth_type = models.CharField(max_length=30, blank=True, default="", db_default="", editable=False)
    encrypted_auth = models.TextField(blank=True, default="", db_default="", editable=False)
    encrypted_client_certificate = models.TextField(blank=True, default="", db_default="", editable=False)
    # What can be shown of the client certificate: `webhooks.destinations.http.client_certificates`.
    client_certificate_details = models.JSONField(null=True, blank=True, editable=False)
    signature_header = models.CharField(
        max_length=100,
        blank=True,
        default="",
        db_default="",
        help_text="A header that repeats `webhook-signature`, for receivers that read it from there.",
    )
    is_active = models.BooleanField(default=True)
    disabled_at = models.DateTimeField(null=True)
    disabled_reason = models.CharField(max_length=500, blank=True, default="")
    stopped_with_host = models.BooleanField(
        default=False, db_default=False, editable=False, help_text="Disabled together with all others of its host."
    )
    format = models.CharField(
        max_length=20,
        choices=[(one, one) for one in FORMATS],
        default="standard",
        db_default="standard",
        help_text="What a request's body looks like.",
    )
    transform = models.TextField(
        max_length=4096, blank=True, default="", db_default="", help_text="JMESPath, for the format `transform`."
    )
    uid = models.CharField(
        max_length=255, null=True, blank=True, help_text="The tenant's own id for it, unique in the organization."
    )
    metadata = models.JSONField(
        default=dict, db_default={}, blank=True, help_text="Names and values that the tenant keeps with it."
    )
    is_hook = models.BooleanField(
        default=False,
        db_default=False,
        editable=False,
        help_text="Made by an automation platform with `POST /api/hooks`: a 410 of its endpoint deletes it.",
    )
    filter = models.JSONField(
        null=True, blank=True, help_text="Conditions on an event's data: `webhooks.routing.filters`. Empty for none."
    )
    ordered = models.BooleanField(
        default=False, db_default=False, help_text="Events with an ordering key are sent one at a time and in order."
    )
    ordered_attempts = models.PositiveSmallIntegerField(
        null=True,
        blank=True,
        validators=[MinValueValidator(1), MaxValueValidator(100)],
        help_text="Attempts after which a delivery with an ordering key fails. Leave empty for the retry schedule's.",
    )
    ordered_on_failure = models.CharField(
        max_length=10,
        choices=OrderedOnFailure.choices,
        default=OrderedOnFailure.SKIP,
        db_default=OrderedOnFailure.SKIP.value,
        help_text="When a delivery has failed: “skip” goes on with its key, “block” waits until it is retried.",
    )
    is_operational = models.BooleanField(
        default=False,
        db_default=False,
        help_text="It receives operational events, about endpoints and keys, and no others.",
    )
    max_in_flight = models.PositiveIntegerField(
        null=True,
        blank=True,
        validators=[MinValueValidator(1), MaxValueValidator(10_000)],
        help_text="Maximum number of requests at a time. Leave empty for MAX_IN_FLIGHT_PER_SUBSCRIPTION.",
    )
    deliveries_per_second = models.FloatField(
        null=True,
        blank=True,
        validators=[MinValueValidator(0.01), MaxValueValidator(100_000)],
        help_text="Maximum number of deliveries per second. Leave empty for no limit.",
    )
    created_at = models.DateTimeField(db_default=Now(), editable=False)
    updated_at = models.DateTimeField(db_default=Now(), editable=False)
    deleted_at = models.DateTimeField(null=True, editable=False)

    class Meta:
        permissions: ClassVar = [("switch_subscription", "Can disable, enable and recover subscriptions")]
        indexes: ClassVar = [
            models.Index(
                fields=["organization", "created_at", "id"], condition=Q(deleted_at=None), name="webhooks_sub_list"
            ),
            HashIndex(fields=["url"], name="webhooks_sub_url"),
            HashIndex(fields=["host"], name="webhooks_sub_host"),
            # For the metrics: few have one.
            models.Index(
                fields=["id"],
                condition=Q(client_certificate_details__isnull=False, deleted_at=None, is_active=True),
                name="webhooks_sub_certificate",
            ),
        ]
        constraints: ClassVar = [
            models.CheckConstraint(
                condition=Q(encrypted_previous_secrets__len=F("previous_secrets_expire_at__len")),
                name="webhooks_sub_previous_secrets",
            ),
            models.UniqueConstraint(
                fields=["organization", "inbox"], condition=Q(kind="inbox", deleted_at=None), name="webhooks_sub_inbox"
            ),
            models.UniqueConstraint(
                fields=["organization", "uid"], condition=Q(deleted_at=None), name="webhooks_sub_uid"
            ),
        ]

    def __str__(self) -> str:
        return self.url


class SubscriptionQueue(models.Model):
    """A subscription's queue of deliveries: what claiming them fairly takes, in one small row.

    Whoever changes a delivery's status to or from `delivering` holds the lock on this row, so that
    `in_flight` is exact.  `next_due_at` is never later than the earliest time of a pending delivery.
    """

    subscription = models.OneToOneField(Subscription, primary_key=True, on_delete=models.CASCADE, related_name="queue")
    organization_id = models.UUIDField()
    accepts_deliveries = models.BooleanField(
        default=True, help_text="False while the subscription is disabled or deleted."
    )
    next_due_at = models.DateTimeField(null=True)
    in_flight = models.IntegerField(default=0)
    concurrency_window = models.IntegerField(
        help_text="Current maximum of requests at a time: it grows with successes and shrinks with failures."
    )
    paused_until = models.DateTimeField(
        null=True, help_text="End of the pause set by the circuit breaker or the endpoint's Retry-After."
    )
    consecutive_failures = models.IntegerField(default=0)
    breaker_trips = models.IntegerField(
        default=0, help_text="How often the circuit breaker has opened since the last success."
    )
    failing_since = models.DateTimeField(null=True)
    active_since = models.DateTimeField(
        db_default=Now(), help_text="When it began to be neither failing nor disabled; kept from before while it is."
    )
    ready_since = models.DateTimeField(
        db_default=Now(),
        help_text="When it last stopped waiting for its endpoint: since then, only for workers.",
    )
    last_failure_at = models.DateTimeField(null=True)
    last_error = models.CharField(max_length=30, blank=True, default="", db_default="")
    last_status_code = models.PositiveSmallIntegerField(null=True)
    recent_failures = ArrayField(
        models.DateTimeField(),
        default=list,
        db_default=[],
        help_text="When the last attempts failed, as many as the retry schedule holds; empty after a success.",
    )
    last_success_at = models.DateTimeField(null=True)
    last_claimed_at = models.DateTimeField(db_default=Now())
    rate_reserved_until = models.DateTimeField(null=True, help_text="Rate limit: theoretical arrival time (GCRA).")
    is_fetched = models.BooleanField(
        default=False, db_default=False, help_text="An inbox: nothing is sent, so `next_due_at` is always empty."
    )
    needs_resync = models.BooleanField(
        default=False, help_text="Waiting deliveries don't have the status that fits the subscription yet."
    )
    has_ordered = models.BooleanField(
        default=False, db_default=False, help_text="It has had deliveries with an ordering key."
    )
    has_backlog = models.BooleanField(
        default=False,
        db_default=False,
        help_text="The last claim took as much as it was allowed to, so more may be due.",
    )

    class Meta:
        indexes: ClassVar = [
            models.Index(fields=["next_due_at"], condition=Q(accepts_deliveries=True), name="webhooks_queue_due"),
            models.Index(fields=["subscription"], condition=Q(needs_resync=True), name="webhooks_queue_resync"),
            models.Index(
                fields=["failing_since"], condition=Q(failing_since__isnull=False), name="webhooks_queue_failing"
            ),
        ]

    def __str__(self) -> str:
        return f"queue of {self.subscription_id}"


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
    # Of an ordered subscription, if the event has a key: `webhooks.order`.  ordered_at: when the event was accepted.
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


class NoticeKind(models.TextChoices):
    """What operators and organizations are told of: each is the type of an operational event, without its prefix."""

    ENDPOINT_FAILING = "endpoint.failing"
    ENDPOINT_DISABLED = "endpoint.disabled"
    ENDPOINT_RECOVERED = "endpoint.recovered"
    DELIVERY_FAILED = "delivery.failed"
    KEY_EXPIRING = "key.expiring"


class Notice(models.Model):
    """What there is to tell of one kind about one subscription or API key, and when that was done last.

    One row for each subject and kind, however often it happens: what happens while nothing may be told is counted here
    and told together.  `webhooks.notices` writes it, and `webhooks.upkeep.notifications` tells it.
    """

    pk = models.CompositePrimaryKey("subject_id", "kind")
    subject_id = models.UUIDField()
    kind = models.CharField(max_length=30, choices=NoticeKind.choices)
    organization_id = models.UUIDField()
    since = models.DateTimeField(
        null=True, help_text="When the first of what hasn't been told happened; empty for none. Of an endpoint that "
        "fails: since when.",
    )  # fmt: skip
    number = models.PositiveIntegerField(default=0, db_default=0, help_text="How often it has happened since then.")
    detail = models.JSONField(default=dict, db_default=Value({}, models.JSONField()))
    told_at = models.DateTimeField(null=True)
    is_open = models.BooleanField(
        default=False, db_default=False, help_text="It was told that the endpoint fails, and not yet that it recovered."
    )

    class Meta:
        indexes: ClassVar = [
            models.Index(
                fields=["since"], condition=Q(since__isnull=False, is_open=False), name="webhooks_notice_untold"
            ),
            models.Index(fields=["subject_id"], condition=Q(is_open=True), name="webhooks_notice_open"),
        ]

    def __str__(self) -> str:
        return f"{self.kind} of {self.subject_id}"


class OperatorMessage(models.Model):
    """A notification on its way to the operator by one channel; the row goes when it has arrived."""

    class Channel(models.TextChoices):
        """By e-mail to OPERATOR_EMAILS, or as a request to OPERATOR_WEBHOOK_URL."""

        EMAIL = "email"
        WEBHOOK = "webhook"

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    channel = models.CharField(max_length=10, choices=Channel.choices)
    content = models.JSONField()
    attempts = models.PositiveSmallIntegerField(default=0, db_default=0)
    due_at = models.DateTimeField(db_default=Now())
    created_at = models.DateTimeField(db_default=Now())

    class Meta:
        indexes: ClassVar = [models.Index(fields=["channel", "due_at"], name="webhooks_opmessage_due")]

    def __str__(self) -> str:
        return f"{self.channel} {self.id}"


class Rollup(models.Model):
    """How many attempts of one subscription had one outcome in a period, and how long they took.

    `NO_ID` as the subscription sums up an organization, and as the organization, too, everything.  `rollups` says
    who writes which rows, and what the numbers mean.
    """

    pk = models.CompositePrimaryKey("step", "organization_id", "subscription_id", "at", "outcome")
    step = models.PositiveSmallIntegerField(help_text="The length of the period in minutes.")
    organization_id = models.UUIDField()
    subscription_id = models.UUIDField()
    at = models.DateTimeField(help_text="The beginning of the period.")
    outcome = models.CharField(max_length=40)
    attempts = models.BigIntegerField()
    settled = models.BigIntegerField(default=0, help_text="Deliveries that were delivered or failed for good.")
    duration_ms = models.FloatField(default=0, help_text="The sum of the attempts' durations.")
    durations = ArrayField(models.IntegerField(), help_text="Attempts by duration, in the buckets of `rollups`.")
    latencies = ArrayField(
        models.IntegerField(), help_text="Deliveries by the time from the event's acceptance to its receipt."
    )

    class Meta:
        indexes: ClassVar = [models.Index(fields=["step", "at"], name="webhooks_rollup_at")]

    def __str__(self) -> str:
        return f"{self.at:%Y-%m-%d %H:%M} {self.outcome}"


class Gauge(models.Model):
    """What waited and what worked at one time: of an organization, or with `NO_ID`, of all.

    A period without a row of all was not observed: no worker swept.  An organization's row is left out where it would
    hold only zeros.
    """

    pk = models.CompositePrimaryKey("step", "organization_id", "at")
    step = models.PositiveSmallIntegerField(help_text="In minutes; beyond 1, the highest values of the period.")
    organization_id = models.UUIDField()
    at = models.DateTimeField()
    due = models.BigIntegerField(null=True, help_text="Deliveries that could be sent now.")
    retrying = models.BigIntegerField(null=True, help_text="Deliveries that failed and wait for another attempt.")
    paused = models.BigIntegerField(null=True, help_text="Due, but behind a circuit breaker or Retry-After.")
    rate_limited = models.BigIntegerField(null=True, help_text="Due, but behind the subscription's rate limit.")
    held = models.BigIntegerField(null=True, help_text="Held, mostly behind a disabled subscription.")
    in_flight = models.BigIntegerField(null=True)
    oldest_due_seconds = models.FloatField(null=True)
    workers = models.IntegerField(null=True, help_text="Live workers; empty if Redis didn't say.")
    places = models.IntegerField(null=True, help_text="Requests that the live workers may have in flight together.")

    class Meta:
        indexes: ClassVar = [models.Index(fields=["step", "at"], name="webhooks_gauge_at")]

    def __str__(self) -> str:
        return f"{self.at:%Y-%m-%d %H:%M}"
