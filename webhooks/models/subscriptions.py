"""Subscriptions and their queues."""

from __future__ import annotations

from typing import ClassVar

from django.contrib.postgres.fields import ArrayField
from django.contrib.postgres.indexes import HashIndex
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models
from django.db.models import F, Func, Q, Value
from django.db.models.functions import Coalesce, Lower, Now

from core.ids import new_id
from core.safe_text import visible
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


class DisabledCause(models.TextChoices):
    """Why a subscription is disabled; `disabled_reason` says more, in a sentence for its tenant."""

    BY_REQUEST = "by_request", "by request"
    BY_OPERATOR = "by_operator", "by the operator"
    WITH_HOST = "with_host", "together with its host"
    GONE = "gone", "its endpoint is gone"
    ALWAYS_FAILED = "always_failed", "every delivery failed"

    @property
    def is_automatic(self) -> bool:
        """Whether a worker disables it because of the endpoint's responses."""
        return self in {DisabledCause.GONE, DisabledCause.ALWAYS_FAILED}


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
    disabled_cause = models.CharField(
        max_length=20, choices=DisabledCause.choices, blank=True, default="", db_default="", editable=False
    )
    # Tenants read it, so it names no member of staff: the audit log does.
    disabled_reason = models.CharField(max_length=500, blank=True, default="")
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
        return visible(self.url)


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
        help_text="The last claim took as much as it was allowed to, and more was due.",
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
