"""The admin's pages for deliveries."""

from __future__ import annotations

import datetime
import uuid
from typing import Any, ClassVar

from django.contrib import admin
from django.db import connection
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.utils import timezone
from django.utils.safestring import SafeString

from console.actions import TooMany, refuse_too_many, report, selected_ids
from console.filters import SpanFilter
from console.formatting import badge, code_block, list_link, object_link, short, table
from console.lists import LIST_BOUND
from console.pages.delivery_actions import USE_COMMAND, repair_deliveries
from console.pages.delivery_formatting import delivery_result, time_shown
from console.pages.row_filters import EventFilter, SubscriptionFilter
from console.tenant_admin import OrganizationFilter, TenantReadOnlyAdmin
from core.ids import parse_id
from events.models import Event
from webhooks.delivery_actions import DeliveryAction
from webhooks.models import Delivery, DeliveryStatus, Subscription

SHOWN_ATTEMPTS = 100


# No index has all pending deliveries by their time: each is written twice on its way, and one more index
# would cost every delivery.  Each queue has its own by their time, and the queues are few.
_SOONEST_DUE = """
SELECT d.id FROM (
    SELECT subscription_id FROM webhooks_subscriptionqueue
    WHERE next_due_at IS NOT NULL AND (%(organization)s::uuid IS NULL OR organization_id = %(organization)s)
      AND (%(subscription)s::uuid IS NULL OR subscription_id = %(subscription)s)
    ORDER BY next_due_at LIMIT %(most)s
) AS l CROSS JOIN LATERAL (
    SELECT id, next_attempt_at FROM webhooks_delivery
    WHERE subscription_id = l.subscription_id AND status = 'pending' ORDER BY next_attempt_at LIMIT %(most)s
) AS d ORDER BY d.next_attempt_at LIMIT %(most)s
"""


def _soonest_due(request: HttpRequest) -> list[uuid.UUID]:
    """Return the ids of the pending deliveries that are due first, within the request's other filters."""
    given = {
        word: parse_id(request.GET[word]) if word in request.GET else None for word in ("organization", "subscription")
    }
    with connection.cursor() as cursor:
        cursor.execute(_SOONEST_DUE, {**given, "most": LIST_BOUND})
        return [row[0] for row in cursor.fetchall()]


class DeliveryStatusFilter(admin.SimpleListFilter):
    """Deliveries in one state, or that failed for good lately."""

    title = "status"
    parameter_name = "status"
    _lately: ClassVar = {
        "failed-1h": ("failed in the last hour", 3600),
        "failed-1d": ("failed in the last 24 hours", 86400),
    }

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        """Return the states."""
        words = [(word, word) for word in DeliveryStatus.values]
        words[4:4] = [(name, label) for name, (label, _) in self._lately.items()]
        return words

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """Keep the deliveries in the state."""
        value = self.value()
        if value is None:
            return queryset
        if (
            value == DeliveryStatus.PENDING
            and request.method == "GET"
            and EventFilter.parameter_name not in request.GET
        ):
            return queryset.filter(pk__in=_soonest_due(request))
        if value in self._lately:
            since = timezone.now() - datetime.timedelta(seconds=self._lately[value][1])
            return queryset.filter(status=DeliveryStatus.FAILED, completed_at__gte=since)
        return queryset.filter(status=value) if value in DeliveryStatus.values else queryset.none()


@admin.register(Delivery)
class DeliveryAdmin(TenantReadOnlyAdmin):
    """One event for one subscription: where it stands, every attempt, and what can be done."""

    audit_word = "delivery"
    list_display = (
        "id_shown", "status_shown", "event_link", "subscription_link", "result_shown", "attempt_count",
        "next_attempt_shown", "created_at", "organization_link",
    )  # fmt: skip
    list_select_related = ("organization", "subscription", "event")
    list_filter = (DeliveryStatusFilter, SpanFilter, EventFilter, SubscriptionFilter, OrganizationFilter)
    search_fields = ("id",)
    search_help_text = (
        "Exact: the id of a delivery, an event or a subscription, an event's dedup_id, or a subscription's URL."
    )
    fields: ClassVar = (
        "id", "status_shown", "result_shown", "event_link", "subscription_link", "organization_link", "attempt_count",
        "attempts_used", "cause", "next_attempt_at", "lease_expires_at", "created_at", "completed_at", "attempts_shown",
        "data_shown",
    )  # fmt: skip
    actions = ("retry", "replay", "hold", "resume")
    object_actions = ("retry", "replay", "hold", "resume")

    def get_queryset(self, request: HttpRequest) -> QuerySet[Delivery]:
        """Return deliveries with what the lists show of their event and subscription."""
        return (
            super().get_queryset(request).defer("event__data", "subscription__encrypted_headers",
                                                "subscription__encrypted_secret",
                                                "subscription__encrypted_previous_secret")
            .select_related("organization", "subscription", "event")
        )  # fmt: skip

    def get_ordering(self, request: HttpRequest) -> tuple[str, ...]:
        """Newest first, as the index that serves the filters has it; what is pending, by when it is due."""
        if request.method == "GET" and request.GET.get("status") == DeliveryStatus.PENDING:
            return ("next_attempt_at", "id")
        narrowed = {"organization", "subscription", "event"} & set(request.GET)
        return ("-created_at", "-id") if narrowed else ("-id",)

    @admin.display(description="delivery")
    def id_shown(self, row: Delivery) -> str:
        """Return the id, whole, so that it can be copied."""
        return str(row.id)

    @admin.display(description="status")
    def status_shown(self, row: Delivery) -> SafeString:
        """Return the status in its color."""
        return badge(row.status)

    @admin.display(description="event")
    def event_link(self, row: Delivery) -> SafeString | str:
        """Return a link to the event."""
        return object_link(row.event, row.event.type)

    @admin.display(description="subscription")
    def subscription_link(self, row: Delivery) -> SafeString | str:
        """Return a link to the subscription."""
        return object_link(row.subscription, short(row.subscription.url, 60))

    @admin.display(description="last result")
    def result_shown(self, row: Delivery) -> str:
        """Return the last status code and error class."""
        return delivery_result(row)

    @admin.display(description="next attempt")
    def next_attempt_shown(self, row: Delivery) -> str:
        """Return when a pending delivery is tried next."""
        return time_shown(row.next_attempt_at if row.status == DeliveryStatus.PENDING else None)

    @admin.display(description="attempts")
    def attempts_shown(self, row: Delivery) -> SafeString:
        """Return the newest attempts, with why each failed."""
        attempts = list(row.attempts.order_by("-number", "-id")[:SHOWN_ATTEMPTS])
        shown = table(
            ("attempt", "started", "took", "cause", "answer", "why", "response"),
            (
                (
                    object_link(attempt, f"#{attempt.number}"),
                    time_shown(attempt.started_at),
                    f"{attempt.duration_ms:.0f} ms",
                    attempt.cause,
                    attempt.status_code or "-",
                    short(" ".join(part for part in (attempt.error, attempt.error_detail) if part), 160) or "-",
                    short(attempt.response_body, 80) or "-",
                )
                for attempt in attempts
            ),
        )
        if len(attempts) == SHOWN_ATTEMPTS:
            shown += list_link("webhooks_deliveryattempt", "all attempts", delivery=row.pk)
        return shown

    @admin.display(description="event's data")
    def data_shown(self, row: Delivery) -> SafeString:
        """Return the payload, indented and escaped."""
        return code_block(row.event.data)

    def search(self, request: HttpRequest, queryset: QuerySet[Any], term: str) -> QuerySet[Any]:
        """Find by a delivery's, event's or subscription's id, a dedup id or a URL."""
        row_id = parse_id(term)
        if row_id:
            return queryset.filter(pk=row_id)
        return queryset.none()

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """Turn a search that names an event or a subscription into a filter by it."""
        term = request.GET.get("q", "").strip()
        if request.method == "GET" and term and "\x00" not in term:
            found = _what_is(term)
            if found is not None:
                query = request.GET.copy()
                del query["q"]
                query[found[0]] = str(found[1])
                return HttpResponseRedirect(f"{request.path}?{query.urlencode()}")
        return super().changelist_view(request, extra_context)

    # --- actions ------------------------------------------------------------------------------------

    def has_repair_permission(self, request: HttpRequest) -> bool:
        """Tell whether the member of staff may repair deliveries."""
        return request.user.has_perm("webhooks.manage_delivery")

    def _repair(self, request: HttpRequest, queryset: QuerySet[Delivery], action: DeliveryAction, said: str) -> None:
        try:
            chosen = selected_ids(queryset)
        except TooMany:
            refuse_too_many(self, request, USE_COMMAND)
            return
        changed, left = repair_deliveries(request, action, chosen)
        report(self, request, said, changed, left)

    @admin.action(description="Retry now (one more try)", permissions=["repair"])
    def retry(self, request: HttpRequest, queryset: QuerySet[Delivery]) -> None:
        """Make one more try of each, now, whatever the circuit says."""
        self._repair(request, queryset, DeliveryAction.RETRY, "to be tried now")

    @admin.action(description="Replay (whole schedule anew)", permissions=["repair"])
    def replay(self, request: HttpRequest, queryset: QuerySet[Delivery]) -> None:
        """Send each again, with a fresh schedule."""
        self._repair(request, queryset, DeliveryAction.REPLAY, "to be sent again")

    @admin.action(description="Hold (send nothing until resumed)", permissions=["repair"])
    def hold(self, request: HttpRequest, queryset: QuerySet[Delivery]) -> None:
        """Keep each from being sent."""
        self._repair(request, queryset, DeliveryAction.HOLD, "held")

    @admin.action(description="Resume (held deliveries)", permissions=["repair"])
    def resume(self, request: HttpRequest, queryset: QuerySet[Delivery]) -> None:
        """Let each that is held go on."""
        self._repair(request, queryset, DeliveryAction.RESUME, "resumed")


def _what_is(term: str) -> tuple[str, uuid.UUID] | None:
    """Return the filter that a search term stands for and the row's id, if it names an event or subscription."""
    row_id = parse_id(term)
    if row_id is not None:
        for name, model in (("event", Event), ("subscription", Subscription)):
            if model.objects.filter(pk=row_id).exists():
                return name, row_id
        if Delivery.objects.filter(pk=row_id).exists():
            return None
    by_dedup_id = Event.objects.filter(dedup_id=term).order_by("-created_at").values_list("pk", flat=True)[:1]
    by_url = (
        Subscription.objects.filter(url=term).order_by("deleted_at", "-created_at").values_list("pk", flat=True)[:1]
    )
    for name, found in (("event", by_dedup_id), ("subscription", by_url)):
        for found_id in found:
            return name, found_id
    return None
