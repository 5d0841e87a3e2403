"""What the endpoints of keys and of the audit log take and return."""

from __future__ import annotations

import datetime
from typing import Any

from django.utils import timezone
from rest_framework import serializers

from core.openapi import page_of
from core.openapi.descriptions import CREATED_AT
from core.serializers import (
    OutputSerializer,
    StrictCharField,
    StrictChoiceField,
    StrictIntegerField,
    StrictSerializer,
    validate_plain_text,
)
from orgs.models import ApiKey
from orgs.scopes import Scope

_KEY_NAME = "What the key is for, in your own words."
_KEY_ID = "The key's id, for `/api/keys/{key_id}`."
_KEY_PREFIX = "The public part of the key, `trk_<prefix>_…`; the audit log names the key by it."
_KEY_SCOPES = "What the key may do."


class ApiKeyCreate(StrictSerializer):
    """What `POST /api/keys` takes."""

    name = StrictCharField(
        max_length=200,
        required=False,
        default="",
        allow_blank=True,
        validators=[validate_plain_text],
        help_text=_KEY_NAME,
    )
    scopes = serializers.ListField(
        child=StrictChoiceField(choices=Scope.choices),
        required=False,
        allow_empty=False,
        help_text="Defaults to the scopes of the calling key, and can't go beyond them.",
    )
    expires_at = serializers.DateTimeField(
        required=False,
        allow_null=True,
        help_text="Null means never. Defaults to the expiry of the calling key, and can't be later.",
    )

    def validate_expires_at(self, value: datetime.datetime | None) -> datetime.datetime | None:
        """Reject a time in the past."""
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
        help_text="How long the old key keeps working.",
    )


class ApiKeyOut(OutputSerializer):
    """A key without its secret."""

    id = serializers.UUIDField(help_text=_KEY_ID)
    name = serializers.CharField(help_text=_KEY_NAME)
    prefix = serializers.CharField(help_text=_KEY_PREFIX)
    scopes = serializers.ListField(child=serializers.CharField(), help_text=_KEY_SCOPES)
    expires_at = serializers.DateTimeField(allow_null=True, help_text="When the key stops working; null: never.")
    revoked_at = serializers.DateTimeField(allow_null=True, help_text="When the key was revoked; null if it wasn't.")
    last_used_at = serializers.DateTimeField(
        allow_null=True, help_text="When the key was last used, to the minute; null if it never was."
    )
    created_at = serializers.DateTimeField(help_text=CREATED_AT)


class ApiKeyWithSecret(ApiKeyOut):
    """A key as it is shown once."""

    key = serializers.CharField(help_text="The key itself. Shown once; it is not stored.")

    def to_representation(self, instance: tuple[ApiKey, str]) -> dict[str, Any]:
        """Return the members of a new key, given with its full text."""
        key, text = instance
        return {**ApiKeyOut().to_representation(key), "key": text}


class AuditEntryOut(OutputSerializer):
    """One entry of the audit log."""

    id = serializers.UUIDField(help_text="The entry's id.")
    actor = serializers.CharField(
        help_text="Who did it: `key:<prefix>`, `user:<name>`, `portal:<session>`, `command:<name>`, or "
        "`system:worker` for what happens automatically."
    )
    action = serializers.CharField(help_text="What was done, such as `key.create`.")
    target = serializers.CharField(help_text="The id of what it was done to.")
    target_name = serializers.CharField(help_text="The name that it had then, such as a subscription's URL.")
    reason = serializers.CharField(help_text="Why, in the words of who did it; may be empty.")
    detail = serializers.DictField(help_text="More about it; the members depend on the action.")
    request_id = serializers.CharField(
        help_text="The `X-Request-Id` of the request that did it; empty if it wasn't a request."
    )
    created_at = serializers.DateTimeField(help_text="When it was done.")


class CallerOrganization(OutputSerializer):
    """The organization that the key speaks for."""

    id = serializers.UUIDField(source="organization_id", help_text="The organization's id.")
    name = serializers.CharField(source="organization_name", help_text="The organization's name, for people.")


class CallerKey(OutputSerializer):
    """The key that the request bears."""

    id = serializers.UUIDField(source="key_id", help_text=_KEY_ID)
    prefix = serializers.CharField(help_text=_KEY_PREFIX)
    scopes = serializers.ListField(
        child=serializers.ChoiceField(choices=Scope.values), source="sorted_scopes", help_text=_KEY_SCOPES
    )


class Me(OutputSerializer):
    """Who the key is and what it may do."""

    label = serializers.CharField(  # type: ignore[assignment]
        help_text="The organization and the key, for people: a name of the connection."
    )
    organization = CallerOrganization(source="*")
    key = CallerKey(source="*")
    events_per_minute = serializers.IntegerField(help_text="The organization's rate limit; 0 means no limit.")


KeyPage = page_of(ApiKeyOut, "KeyPage")
AuditPage = page_of(AuditEntryOut, "AuditPage")
