"""What `POST /api/portal-links` takes and returns."""

from __future__ import annotations

from rest_framework import serializers

from core.openapi.descriptions import CREATED_AT
from core.serializers import (
    OutputSerializer,
    StrictBooleanField,
    StrictCharField,
    StrictChoiceField,
    StrictIntegerField,
    StrictSerializer,
    validate_plain_text,
)
from portal import sessions
from portal.models import PORTAL_SCOPES, all_portal_scopes

_NAME = "Who the link is for, such as an email address: shown in the portal and in the audit log."
_READ_ONLY = "Whether the session can only look."
_SESSION_SECONDS = "How long the session lasts once the link is opened, in seconds."


class PortalLinkCreate(StrictSerializer):
    """The body of `POST /api/portal-links`, which may be empty."""

    name = StrictCharField(
        max_length=100,
        required=False,
        default="",
        allow_blank=True,
        validators=[validate_plain_text],
        help_text=_NAME,
    )
    read_only = StrictBooleanField(  # type: ignore[assignment]
        required=False, default=False, help_text=_READ_ONLY
    )
    scopes = serializers.ListField(
        child=StrictChoiceField(choices=[scope.value for scope in PORTAL_SCOPES]),
        required=False,
        default=all_portal_scopes,
        help_text="What the session may do with the organization's endpoints and deliveries. Endpoints can always be "
        "looked at; an empty list allows nothing else. Defaults to all of these.",
    )
    link_seconds = StrictIntegerField(
        min_value=sessions.MIN_SECONDS,
        max_value=sessions.MAX_LINK_SECONDS,
        required=False,
        default=sessions.DEFAULT_LINK_SECONDS,
        help_text="How long the link can be opened, in seconds.",
    )
    session_seconds = StrictIntegerField(
        min_value=sessions.MIN_SECONDS,
        max_value=sessions.MAX_SESSION_SECONDS,
        required=False,
        default=sessions.DEFAULT_SESSION_SECONDS,
        help_text=_SESSION_SECONDS,
    )


class PortalLinkOut(OutputSerializer):
    """A link, with its URL."""

    id = serializers.UUIDField(help_text="The session's id, which the audit log names.")
    url = serializers.SerializerMethodField(
        help_text="Opens the portal, once. Send the tenant's browser there, or load it in a frame."
    )
    name = serializers.CharField(help_text=_NAME)
    read_only = serializers.BooleanField(  # type: ignore[assignment]
        source="is_read_only", help_text=_READ_ONLY
    )
    scopes = serializers.ListField(
        child=serializers.CharField(),
        help_text="What the session may do besides looking at endpoints; with `read_only`, without the scopes that "
        "change something.",
    )
    link_expires_at = serializers.DateTimeField(help_text="When the link can't be opened any more.")
    session_seconds = serializers.IntegerField(help_text=_SESSION_SECONDS)
    created_at = serializers.DateTimeField(help_text=CREATED_AT)

    def get_url(self, row: object) -> str:
        return str(self.context["url"])
