"""The log of the last days: the newest attempts, or who changed what, a page at a time."""

from __future__ import annotations

import datetime
import uuid
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from django.db.models import Q
from django.http import HttpRequest, HttpResponse
from django.utils import timezone

from core.ids import parse_id
from core.query import PAGE_PARAMETERS, ParameterError, moment, newest, page
from orgs.models import AuditEntry
from orgs.scopes import Scope
from portal.pages.rows import attempt_row
from portal.web import PortalView
from webhooks.delivery_filters import matching_deliveries
from webhooks.display.formatting import format_time, host_of_url, short
from webhooks.models import DeliveryAttempt
from webhooks.states import DeliveryState

DAYS = {"1": "last day", "3": "last 3 days", "7": "last 7 days"}
PER_PAGE = 25
# There is no index of attempts but by delivery: a page's are found by so many of the newest deliveries, and by so many
# of those that are being retried, which may be older.
MOST_DELIVERIES, MOST_RETRIED = 500, 200
_VERBS = {
    "subscription.create": "added an endpoint", "subscription.change": "changed an endpoint",
    "subscription.delete": "deleted an endpoint", "subscription.enable": "enabled an endpoint",
    "subscription.disable": "disabled an endpoint", "subscription.rotate_secret": "rotated a secret",
    "subscription.test": "sent a test event", "subscription.recover": "recovered missed webhooks",
    "delivery.retry": "retried a delivery", "delivery.skip": "skipped a delivery",
    "portal.open": "opened the portal", "portal.close": "signed out",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Place:
    """Where a page of attempts begins: with those before one, or with the deliveries before one."""

    attempt: tuple[datetime.datetime, int] | None = None
    delivery: tuple[datetime.datetime, uuid.UUID] | None = None

    @classmethod
    def read(cls, query: Any) -> Place:
        """Return the place that a link on the previous page names.  Raises ParameterError."""
        attempt = delivery = None
        if given := query.get("attempt", ""):
            at, _, number = given.partition("~")
            if not (number.isdecimal() and len(number) < 19):
                raise ParameterError("is not a place in the log")
            attempt = moment(at), int(number)
        if given := query.get("delivery", ""):
            at, _, text = given.partition("~")
            delivery_id = parse_id(text)
            if delivery_id is None:
                raise ParameterError("is not a place in the log")
            delivery = moment(at), delivery_id
        return cls(attempt, delivery)

    def query(self) -> dict[str, str]:
        """Return the parameters of a link that leads here."""
        places = {"attempt": self.attempt, "delivery": self.delivery}
        return {name: f"{place[0].isoformat()}~{place[1]}" for name, place in places.items() if place}


class LogsView(PortalView):
    """What was sent in the last days, or what people did."""

    section = "logs"

    def get(self, request: HttpRequest) -> HttpResponse:
        days = request.GET.get("days", "")
        days = days if days in DAYS else "3"
        since = timezone.now() - datetime.timedelta(days=int(days))
        shows_changes = request.GET.get("show") == "changes" or not self.portal.may(Scope.DELIVERIES_READ)
        only_failed = "failed" in request.GET and not shows_changes
        kept = {"show": "changes"} if shows_changes else {"failed": ""} if only_failed else {}
        found: dict[str, Any] = {"attempts": [], "entries": [], "older": {}}
        error = ""
        try:
            found |= self._changes(since) if shows_changes else self._attempts(since, only_failed)
        except ParameterError:
            error = "This page no longer exists. Start from the newest one."

        def link(**more: str) -> str:
            return f"?{urlencode({'days': days, **kept} | more)}"

        return self.page(
            "logs.html",
            422 if error else 200,
            error=error,
            attempts=found["attempts"],
            entries=found["entries"],
            shows_changes=shows_changes,
            only_failed=only_failed,
            span=DAYS[days],
            spans=[(label, link(days=number), number == days) for number, label in DAYS.items()],
            days=days,
            newest=link() if {"attempt", "delivery", "cursor"} & set(request.GET) else "",
            older=link(**found["older"]) if found["older"] else "",
            most=MOST_DELIVERIES,
        )

    def _attempts(self, since: datetime.datetime, only_failed: bool) -> dict[str, Any]:
        """Return a page of attempts, the newest first, and where the next one begins."""
        place = Place.read(self.request.GET)
        filters = {"org": self.portal.organization_id, "since": since}
        retried = matching_deliveries({**filters, "status": DeliveryState.RETRYING}).order_by("-created_at", "-id")
        retried_ids = set(retried.values_list("pk", flat=True)[:MOST_RETRIED])
        deliveries = matching_deliveries(filters)
        if place.delivery:
            at, delivery_id = place.delivery
            deliveries = deliveries.filter(created_at__lte=at)
            deliveries = deliveries.filter(Q(created_at__lt=at) | Q(pk__lt=delivery_id))
        if place.attempt:  # what was sent before a time was created before it
            deliveries = deliveries.filter(created_at__lte=place.attempt[0])
        looked_at = list(newest(deliveries.only("id", "created_at", "attempt_count"), MOST_DELIVERIES))
        ids = {row.pk for row in looked_at if row.attempt_count}
        # Those that are being retried were on the previous pages, however old they are.
        ids = ids - retried_ids if place.delivery else ids | retried_ids
        attempts = DeliveryAttempt.objects.filter(delivery_id__in=ids)
        if place.attempt:
            started_at, attempt_id = place.attempt
            attempts = attempts.filter(Q(started_at__lt=started_at) | Q(started_at=started_at, pk__lt=attempt_id))
        if only_failed:
            attempts = attempts.exclude(error="")
        rows = list(
            attempts.select_related("delivery__event", "delivery__subscription")
            .defer("sealed_exchange", "delivery__event__data")
            .order_by("-started_at", "-pk")[: PER_PAGE + 1]
        )
        older = Place()
        if len(rows) > PER_PAGE:
            older = Place((rows[PER_PAGE - 1].started_at, rows[PER_PAGE - 1].pk), place.delivery)
        elif len(looked_at) == MOST_DELIVERIES:
            older = Place(delivery=(looked_at[-1].created_at, looked_at[-1].pk))
        shown = [
            {**attempt_row(one), "endpoint": short(host_of_url(one.delivery.subscription.url, with_path=True), 80)}
            for one in rows[:PER_PAGE]
        ]
        return {"attempts": shown, "older": older.query()}

    def _changes(self, since: datetime.datetime) -> dict[str, Any]:
        """Return a page of who changed what.  Members of staff have no name here, and keys only their prefix."""
        parameters: dict[str, Any] = {"limit": PER_PAGE}
        if cursor := self.request.GET.get("cursor", ""):
            parameters["cursor"] = PAGE_PARAMETERS["cursor"](cursor)
        rows = AuditEntry.objects.filter(
            Q(action__in=list(_VERBS)), organization_id=self.portal.organization_id, created_at__gte=since
        )
        found = page(rows, parameters, self._entry)
        return {"entries": found["data"], "older": {"cursor": found["next_cursor"]} if found["next_cursor"] else {}}

    def _entry(self, row: AuditEntry) -> dict[str, Any]:
        return {
            "at": format_time(row.created_at),
            "who": self._who(row),
            "did": _VERBS[row.action],
            "what": short(row.target_name, 100),
        }

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
