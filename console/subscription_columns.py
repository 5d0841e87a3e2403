"""What the admin shows of a subscription, in its list and on its page."""

from __future__ import annotations

import datetime
import json
from typing import Any

from django.contrib import admin
from django.utils import timezone
from django.utils.safestring import SafeString

from console import secret_actions
from webhooks import signing_secrets
from webhooks.display.formatting import badge, cause_of, format_time, lines, short, short_id, with_note
from webhooks.models import Subscription, SubscriptionQueue


class SubscriptionColumns:
    """The columns of the list, and the fields that can only be read."""

    @admin.display(description="URL")
    def url_display(self, row: Subscription) -> SafeString:
        return with_note(short(row.url), " · ".join(short(one, 60) for one in (row.uid, row.description) if one))

    @admin.display(description="URL")
    def url_full(self, row: Subscription) -> str:
        return short(row.url, 2048)

    @admin.display(description="description")
    def description_full(self, row: Subscription) -> str:
        return short(row.description, 500)

    @admin.display(description="uid")
    def uid_display(self, row: Subscription) -> str:
        return short(row.uid or "-", 255)

    @admin.display(description="metadata")
    def metadata_display(self, row: Subscription) -> SafeString | str:
        return lines([short(f"{name}: {value}", 610) for name, value in row.metadata.items()]) or "-"

    @admin.display(description="transform")
    def transform_full(self, row: Subscription) -> str:
        return short(row.transform, 4096) or "-"

    @admin.display(description="channels")
    def channels_display(self, row: Subscription) -> str:
        return short(", ".join(row.channels), 1500) or "-"

    @admin.display(description="filter")
    def filter_display(self, row: Subscription) -> str:
        return "-" if row.filter is None else short(json.dumps(row.filter, ensure_ascii=False), 8192)

    @admin.display(description="event types")
    def event_types_display(self, row: Subscription) -> SafeString:
        some = (["operational events:"] if row.is_operational else []) + [short(one) for one in row.event_types[:10]]
        return lines(some + (["…"] if len(row.event_types) > 10 else []))

    @admin.display(description="event types")
    def first_types_display(self, row: Subscription) -> SafeString:
        """Only the first ones, so that the list's row stays one line."""
        some = (["operational events:"] if row.is_operational else []) + [short(one, 40) for one in row.event_types[:3]]
        more = len(row.event_types) - 3
        return lines(some + ([f"and {more} more"] if more > 0 else []))

    @admin.display(description="operational events")
    def operational_display(self, row: Subscription) -> str:
        return "yes, and no others" if row.is_operational else "no"

    @admin.display(description="state")
    def state_display(self, row: Any) -> SafeString:
        return badge(row.state)

    @admin.display(description="state, since")
    def state_since_display(self, row: Any) -> SafeString:
        return with_note(badge(row.state), format_time(row.state_since))

    @admin.display(description="next attempt")
    def next_attempt_display(self, row: Any) -> str:
        return format_time(row.next_attempt_at)

    @admin.display(description="in flight")
    def in_flight_display(self, row: Subscription) -> int | str:
        queue: SubscriptionQueue | None = getattr(row, "queue", None)
        return "-" if queue is None else queue.in_flight

    @admin.display(description="cause")
    def cause_display(self, row: Any) -> str:
        return cause_of(row) or "-"

    @admin.display(description="disabled reason")
    def disabled_reason_display(self, row: Subscription) -> str:
        return short(row.disabled_reason, 500) or "-"

    @admin.display(description="custom headers")
    def header_names_display(self, row: Subscription) -> SafeString | str:
        return lines([short(name) for name in row.header_names]) or "-"

    @admin.display(description="secrets that sign")
    def secrets_display(self, row: Subscription) -> SafeString | str:
        stored = signing_secrets.stored_secrets(Subscription.objects.only(*signing_secrets.COLUMNS).get(pk=row.pk))
        return secret_actions.secrets_table(stored) if stored else "-"

    @admin.display(description="authorization")
    def auth_type_display(self, row: Subscription) -> str:
        return short(row.auth_type) or "-"

    @admin.display(description="second signature header")
    def signature_header_full(self, row: Subscription) -> str:
        return short(row.signature_header) or "-"

    @admin.display(description="client certificate")
    def certificate_display(self, row: Subscription) -> SafeString | str:
        details = row.client_certificate_details
        if not details:
            return "-"
        ends = datetime.datetime.fromisoformat(details["expires_at"])
        state = "expired" if ends <= timezone.now() else "expires"
        return lines(
            [
                short(details["subject"], 300),
                short(f"issued by {details['issuer']}", 310),
                f"{state} {format_time(ends)}",
                short(f"SHA-256 {details['fingerprint_sha256']}", 80),
            ]
        )

    @admin.display(description="created", ordering="id")
    def created_display(self, row: Subscription) -> str:
        return format_time(row.created_at)

    @admin.display(description="id")
    def id_display(self, row: Subscription) -> SafeString:
        return short_id(row.pk)
