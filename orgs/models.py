"""Who may call: organizations, their API keys, and the record of who did what."""

from __future__ import annotations

from typing import ClassVar

from django.conf import settings
from django.contrib.postgres.fields import ArrayField
from django.contrib.postgres.indexes import GinIndex
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models
from django.db.models.functions import Now

from core.ids import new_id
from core.safe_text import visible
from orgs.scopes import Scope, all_scopes


def default_events_per_minute() -> int:
    """Return the setting; a function so that a migration doesn't freeze its value."""
    return int(settings.DEFAULT_EVENTS_PER_MINUTE)


def default_retention_days() -> int:
    """Return the setting; a function so that a migration doesn't freeze its value."""
    return int(settings.DEFAULT_RETENTION_DAYS)


class Strictness(models.TextChoices):
    """Which events an organization accepts: all, those whose type is in its catalog, or those that fit their type's
    schema."""

    FREE = "free", "any type"
    KNOWN = "known", "types in the catalog"
    SCHEMA = "schema", "types in the catalog, with data that fits their schema"


class Organization(models.Model):
    """A tenant: everything else belongs to exactly one."""

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    name = models.CharField(max_length=200, unique=True)
    is_active = models.BooleanField(default=True, help_text="An inactive organization's keys are refused.")
    events_per_minute = models.PositiveIntegerField(
        default=default_events_per_minute, help_text="Most events accepted in a minute; 0 means no limit."
    )
    retention_days = models.PositiveIntegerField(
        default=default_retention_days,
        validators=[MinValueValidator(1), MaxValueValidator(3650)],
        help_text="Completed events are deleted after this many days.",
    )
    keep_exchanges = models.BooleanField(
        default=True,
        db_default=True,
        help_text="Keep with each attempt what was sent and received: URL, headers, addresses, and timings.",
    )
    event_type_strictness = models.CharField(
        max_length=10,
        choices=Strictness.choices,
        default=Strictness.FREE,
        db_default=Strictness.FREE.value,
        help_text="Which events are accepted.",
    )
    catalog_version = models.PositiveIntegerField(
        default=0,
        db_default=0,
        editable=False,
        help_text="Changes with each change of the event types or of their strictness.",
    )
    created_at = models.DateTimeField(db_default=Now(), editable=False)

    class Meta:
        verbose_name = "organization"
        ordering: ClassVar = ["name"]

    def __str__(self) -> str:
        return visible(self.name)


class ApiKey(models.Model):
    """A key: a public prefix to find it by, and the SHA-256 of its 256 random bits.

    A fast hash is right here: the random bits can't be guessed, so guessing needn't be slowed down.
    """

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    organization = models.ForeignKey(Organization, on_delete=models.CASCADE, related_name="api_keys")
    name = models.CharField(max_length=200, blank=True)
    prefix = models.CharField(max_length=20, unique=True, editable=False)
    secret_hash = models.BinaryField(max_length=32, editable=False)
    scopes = ArrayField(models.CharField(max_length=40, choices=Scope.choices), default=all_scopes)
    expires_at = models.DateTimeField(null=True, blank=True)
    revoked_at = models.DateTimeField(null=True, blank=True, editable=False)
    last_used_at = models.DateTimeField(null=True, blank=True, editable=False)
    created_at = models.DateTimeField(db_default=Now(), editable=False)

    class Meta:
        verbose_name = "API key"
        permissions: ClassVar = [("revoke_apikey", "Can revoke API keys")]
        ordering: ClassVar = ["-created_at"]
        indexes: ClassVar = [models.Index(fields=["organization", "created_at", "id"], name="orgs_apikey_list")]

    def __str__(self) -> str:
        return visible(f"{self.prefix}… {self.name}".strip())


class AuditEntry(models.Model):
    """An action that somebody took.  Rows are only added; a trigger refuses changes."""

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    organization = models.ForeignKey(
        Organization, null=True, on_delete=models.DO_NOTHING, related_name="+", db_constraint=False
    )
    actor = models.CharField(
        max_length=200,
        help_text="`key:<prefix>`, `user:<name>`, `portal:<session>`, `command:<name>`, or `system:worker`",
    )
    action = models.CharField(max_length=60)
    target = models.CharField(max_length=200, blank=True, help_text="The id of what it was done to.")
    target_name = models.CharField(
        max_length=300, blank=True, default="", db_default="", help_text="The name that it had then, for people."
    )
    targets = ArrayField(
        models.CharField(max_length=40), default=list, db_default=[], blank=True,
        help_text="The ids of all that it was done to, if they are several and not too many.",
    )  # fmt: skip
    reason = models.CharField(max_length=500, blank=True, default="", db_default="", help_text="As the actor gave it.")
    detail = models.JSONField(default=dict)
    address = models.CharField(max_length=64, blank=True)
    request_id = models.CharField(max_length=128, blank=True)
    created_at = models.DateTimeField(db_default=Now(), editable=False)

    class Meta:
        verbose_name = "audit entry"
        verbose_name_plural = "audit entries"
        indexes: ClassVar = [
            models.Index(fields=["organization", "created_at", "id"], name="orgs_audit_org_list"),
            models.Index(fields=["created_at", "id"], name="orgs_audit_list"),
            models.Index(fields=["target", "created_at", "id"], name="orgs_audit_target"),
            GinIndex(fields=["targets"], name="orgs_audit_targets"),
        ]

    def __str__(self) -> str:
        return visible(f"{self.actor} {self.action} {self.target_name or self.target}")


class IdempotencyKey(models.Model):
    """The `Idempotency-Key` of a request that succeeded, what the request was, and its response."""

    pk = models.CompositePrimaryKey("organization_id", "key")
    organization = models.ForeignKey(
        Organization, on_delete=models.DO_NOTHING, related_name="+", db_index=False, db_constraint=False
    )
    key = models.CharField(max_length=255)
    fingerprint = models.BinaryField(max_length=32)
    status = models.PositiveSmallIntegerField()
    location = models.TextField()
    body = models.BinaryField()
    is_encrypted = models.BooleanField()
    expires_at = models.DateTimeField()

    class Meta:
        indexes: ClassVar = [models.Index(fields=["expires_at"], name="orgs_idempotency_expires")]

    def __str__(self) -> str:
        return self.key
