"""The log of the last days: the newest attempts, and who changed what."""

from __future__ import annotations

import datetime
from typing import Any

from django.db.models import Q
from django.http import HttpRequest, HttpResponse
from django.utils import timezone

from orgs.models import AuditEntry
from portal.pages.shown import attempt_row
from portal.web import PortalView
from webhooks.delivery_filters import matching_deliveries
from webhooks.display.formatting import format_time, short
from webhooks.display.standing import NEWEST_DELIVERIES, recent_attempts
from webhooks.states import DeliveryState

DAYS = {"1": "last day", "3": "last 3 days", "7": "last 7 days"}
MAX_ATTEMPTS = 200
MAX_ENTRIES = 50
_VERBS = {
    "subscription.create": "added an endpoint", "subscription.change": "changed an endpoint",
    "subscription.delete": "deleted an endpoint", "subscription.enable": "enabled an endpoint",
    "subscription.disable": "disabled an endpoint", "subscription.rotate_secret": "rotated a secret",
    "subscription.test": "sent a test event", "subscription.recover": "recovered missed webhooks",
    "delivery.retry": "retried a delivery", "delivery.skip": "skipped a delivery",
    "portal.open": "opened the portal", "portal.close": "signed out",
}  # fmt: skip


class LogsView(PortalView):
    """What was sent in the last days, and what people did."""

    section = "logs"

    def get(self, request: HttpRequest) -> HttpResponse:
        days = request.GET.get("days", "")
        days = days if days in DAYS else "3"
        only_failed = "failed" in request.GET
        since = timezone.now() - datetime.timedelta(days=int(days))
        filters = {"org": self.portal.organization_id, "since": since}
        retrying = matching_deliveries({**filters, "status": DeliveryState.RETRYING}).order_by("-created_at", "-id")
        attempts = recent_attempts(matching_deliveries(filters), MAX_ATTEMPTS, retrying)
        if only_failed:
            attempts = [one for one in attempts if one.error]
        return self.page(
            "logs.html",
            attempts=[attempt_row(one) for one in attempts],
            days=days,
            choices=DAYS,
            only_failed=only_failed,
            newest=f"{NEWEST_DELIVERIES}",
            most=MAX_ATTEMPTS,
            entries=self._entries(since),
        )

    def _entries(self, since: datetime.datetime) -> list[dict[str, Any]]:
        """Return who changed what.  Members of staff have no name here, and keys only their prefix."""
        rows = AuditEntry.objects.filter(
            Q(action__in=list(_VERBS)), organization_id=self.portal.organization_id, created_at__gte=since
        ).order_by("-created_at", "-id")
        return [
            {
                "at": format_time(row.created_at),
                "who": self._who(row),
                "did": _VERBS[row.action],
                "what": short(row.target_name, 100),
            }
            for row in rows[:MAX_ENTRIES]
        ]

    def _who(self, row: AuditEntry) -> str:
        kind, _, name = row.actor.partition(":")
        if row.actor == self.portal.actor:
            return "You"
        if kind == "portal":
            user = row.detail.get("portal_user") if isinstance(row.detail, dict) else None
            return short(str(user or "Somebody in the portal"), 60)
        if kind == "key":
            return f"API key {short(name, 20)}"
        return "The system" if kind == "system" else "Support"
