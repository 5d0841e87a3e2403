"""A tenant's visit to the portal: the link that begins it, and the session that the link opens."""

from __future__ import annotations

from typing import ClassVar

from django.contrib.postgres.fields import ArrayField
from django.db import models
from django.db.models import Q
from django.db.models.functions import Now

from core.ids import new_id
from core.safe_text import visible
from orgs.models import ApiKey, Organization
from orgs.scopes import Scope

# What a session can be allowed, besides looking at the endpoints.
PORTAL_SCOPES = (Scope.SUBSCRIPTIONS_MANAGE, Scope.DELIVERIES_READ, Scope.DELIVERIES_RETRY, Scope.EVENTS_READ)
# Those that change something.
_CHANGES = frozenset({Scope.SUBSCRIPTIONS_MANAGE, Scope.DELIVERIES_RETRY})


def all_portal_scopes() -> list[str]:
    """Return what a session is allowed unless its link says otherwise."""
    return [scope.value for scope in PORTAL_SCOPES]


class PortalSession(models.Model):
    """A link, and once it was opened, the session.  Only hashes of their tokens are kept.

    A fast hash is right, as for API keys: what is hashed can't be guessed.
    """

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    organization = models.ForeignKey(Organization, on_delete=models.CASCADE, related_name="+", db_index=False)
    key = models.ForeignKey(ApiKey, on_delete=models.CASCADE, related_name="+", help_text="The key that made the link.")
    name = models.CharField(max_length=100, blank=True, default="", help_text="Who it is for, as the key's owner says.")
    is_read_only = models.BooleanField(default=False)
    scopes = ArrayField(
        models.CharField(max_length=40), default=all_portal_scopes, db_default=all_portal_scopes(),
        help_text="What the session may do, besides looking at the endpoints.",
    )  # fmt: skip
    link_hash = models.BinaryField(max_length=32, unique=True, editable=False)
    link_expires_at = models.DateTimeField()
    session_seconds = models.PositiveIntegerField(help_text="How long the session lasts once the link was opened.")
    token_hash = models.BinaryField(max_length=32, null=True, unique=True, editable=False)
    opened_at = models.DateTimeField(null=True)
    expires_at = models.DateTimeField(null=True)
    ended_at = models.DateTimeField(null=True, help_text="When it was ended before its time.")
    created_at = models.DateTimeField(db_default=Now(), editable=False)

    class Meta:
        verbose_name = "portal session"
        permissions: ClassVar = [("end_portalsession", "Can end portal sessions")]
        indexes: ClassVar = [models.Index(fields=["organization", "link_expires_at"], name="portal_session_expiry")]
        constraints: ClassVar = [
            models.CheckConstraint(
                condition=Q(opened_at=None, token_hash=None, expires_at=None)
                | Q(opened_at__isnull=False, token_hash__isnull=False, expires_at__isnull=False),
                name="portal_session_opened",
            )
        ]

    def __str__(self) -> str:
        return visible(self.name) or str(self.id)

    def may(self, scope: Scope) -> bool:
        """Return whether the session may do what needs this scope."""
        return scope in self.scopes and not (self.is_read_only and scope in _CHANGES)

    @property
    def actor(self) -> str:
        """Return the session's name in the audit log."""
        return f"portal:{self.id}"
