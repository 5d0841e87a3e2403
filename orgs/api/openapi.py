"""Shapes that only the OpenAPI schema needs: keys, the caller, and the audit log."""

from __future__ import annotations

from typing import Any

from rest_framework import serializers

from core.openapi import page_of
from orgs.api.serializers import ApiKeyOut, AuditEntryOut
from orgs.models import Scope

KEY_EXAMPLE = {"name": "shop backend", "scopes": ["events:write"], "expires_at": "2027-01-31T12:00:00Z"}


class ApiKeyWithSecret(ApiKeyOut):
    """A key as it is shown once."""

    key = serializers.CharField(help_text="The key itself. Shown once; it is not stored.")


KeyPage = page_of(ApiKeyOut, "KeyPage")
AuditPage = page_of(AuditEntryOut, "AuditPage")


class CallerOrganization(serializers.Serializer[Any]):
    """The organization that the key speaks for."""

    id = serializers.UUIDField()
    name = serializers.CharField()


class CallerKey(serializers.Serializer[Any]):
    """The key that the request bears."""

    id = serializers.UUIDField()
    prefix = serializers.CharField(help_text="The public part of the key.")
    scopes = serializers.ListField(child=serializers.ChoiceField(choices=Scope.values))


class Me(serializers.Serializer[Any]):
    """Who the key is and what it may do."""

    organization = CallerOrganization()
    key = CallerKey()
    events_per_minute = serializers.IntegerField(help_text="The organization's rate; 0 is no limit.")
