"""Shapes of the keys' and audit endpoints."""

from __future__ import annotations

import datetime

from django.utils import timezone
from rest_framework import serializers

from core.serializers import StrictCharField, StrictIntegerField, StrictSerializer, validate_plain_text
from orgs.models import ApiKey, AuditEntry, Scope


class ApiKeyCreate(StrictSerializer):
    """What `POST /api/keys` takes."""

    name = StrictCharField(
        max_length=200, required=False, default="", allow_blank=True, validators=[validate_plain_text]
    )
    scopes = serializers.ListField(
        child=serializers.ChoiceField(choices=Scope.choices),
        required=False,
        allow_empty=False,
        help_text="Defaults to the scopes of the key that asks; never more than those.",
    )
    expires_at = serializers.DateTimeField(
        required=False,
        allow_null=True,
        help_text="Null is never. Defaults to when the key that asks ends; never later than that.",
    )

    def validate_expires_at(self, value: datetime.datetime | None) -> datetime.datetime | None:
        """Refuse a time that has passed."""
        if value is not None and value <= timezone.now():
            raise serializers.ValidationError("must be in the future")
        return value


class ApiKeyRotate(StrictSerializer):
    """What `POST /api/keys/{id}/rotate` takes."""

    overlap_seconds = StrictIntegerField(
        min_value=0,
        max_value=30 * 86400,
        required=False,
        default=86400,
        help_text="How long the old key still works.",
    )


class ApiKeyOut(serializers.Serializer[ApiKey]):
    """A key without its secret."""

    id = serializers.UUIDField()
    name = serializers.CharField()
    prefix = serializers.CharField()
    scopes = serializers.ListField(child=serializers.CharField())
    expires_at = serializers.DateTimeField(allow_null=True)
    revoked_at = serializers.DateTimeField(allow_null=True)
    last_used_at = serializers.DateTimeField(allow_null=True)
    created_at = serializers.DateTimeField()


class AuditEntryOut(serializers.Serializer[AuditEntry]):
    """One entry of the audit log."""

    id = serializers.UUIDField()
    actor = serializers.CharField()
    action = serializers.CharField()
    target = serializers.CharField()
    detail = serializers.DictField()
    request_id = serializers.CharField()
    created_at = serializers.DateTimeField()
