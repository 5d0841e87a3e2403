"""The admin's pages for deliveries."""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Iterable
from typing import Any, ClassVar

from django.contrib import admin
from django.contrib.admin.views.main import ChangeList
from django.db import connection
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponseRedirect
from django.utils import timezone
from django.utils.safestring import SafeString

from console import search
from console.actions import TooMany, refuse_too_many, report, selected_ids
from console.causes import words_for
from console.delivery_actions import USE_COMMAND, apply_to_deliveries
from console.filters import EventFilter, OrganizationFilter, SpanFilter, SubscriptionFilter
from console.formatting import (
    badge,
    code_block,
    format_time,
    host_of_url,
    last_result,
    list_link,
    next_attempt,
    object_link,
    short,
    short_id,
    table,
)
from console.lists import LIST_BOUND
from console.model_admin import ReadOnlyAdmin
from core.ids import parse_id
from webhooks.delivery_actions import DeliveryAction
from webhooks.models import Delivery, DeliveryStatus, SubscriptionQueue
from webhooks.rollups import outcome_of

SHOWN_ATTEMPTS = 100


# The pending deliveries that are due first.  SQL, because of the LATERAL join: there is no index of all pending
# deliveries by their time, which would cost every delivery two more index entries.  There is one for each
# subscription, and the subscriptions are few.
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
    """Return the ids of the first pending deliveries by due time, within the request's other filters."""
    chosen = {
        name: parse_id(request.GET[name]) if name in request.GET else None for name in ("organization", "subscription")
    }
    with connection.cursor() as cursor:
        cursor.execute(_SOONEST_DUE, {**chosen, "most": LIST_BOUND})
        return [row[0] for row in cursor.fetchall()]


class DeliveryStatusFilter(admin.SimpleListFilter):
    """Deliveries with one status, or that failed for good in the last hour or day."""

    title = "status"
    parameter_name = "status"
    _recently_failed: ClassVar = {
        "failed-1h": ("failed in the last hour", 3600),
        "failed-1d": ("failed in the last 24 hours", 86400),
    }

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        offered = [(status, status) for status in DeliveryStatus.values]
        offered[4:4] = [(name, label) for name, (label, _) in self._recently_failed.items()]
        return offered

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        value = self.value()
        if value is None:
            return queryset
        if (
            value == DeliveryStatus.PENDING
            and request.method == "GET"
            and not getattr(request, "is_export", False)
            and EventFilter.parameter_name not in request.GET
        ):
            return queryset.filter(pk__in=_soonest_due(request))
        if value in self._recently_failed:
            since = timezone.now() - datetime.timedelta(seconds=self._recently_failed[value][1])
            return queryset.filter(status=DeliveryStatus.FAILED, completed_at__gte=since)
        return queryset.filter(status=value) if value in DeliveryStatus.values else queryset.none()


@admin.register(Delivery)
class DeliveryAdmin(ReadOnlyAdmin):
    """One event for one subscription: its status, its attempts and the actions on it."""

    audit_noun = "delivery"
    list_display = (
        "time_display", "organization_link", "type_display", "endpoint_link", "status_display", "cause_display",
        "attempts_column", "next_attempt_display", "id_display",
    )  # fmt: skip
    sortable_by: ClassVar = ("time_display",)
    export_columns: ClassVar = {
        "id": "id", "created_at": "created_at", "organization": "organization__name", "event_id": "event_id",
        "event_type": "event__type", "dedup_id": "event__dedup_id", "subscription_id": "subscription_id",
        "url": "subscription__url", "status": "status", "last_error": "last_error",
        "last_status_code": "last_status_code", "attempts": "attempt_count", "next_attempt_at": "next_attempt_at",
        "completed_at": "completed_at",
    }  # fmt: skip
    list_select_related = ("organization", "subscription", "event")
    list_filter = (DeliveryStatusFilter, SpanFilter, EventFilter, SubscriptionFilter, OrganizationFilter)
    search_fields = ("id",)
    search_help_text = (
        "An id, a dedup_id, an event type, part of an endpoint's URL or of an organization's name; with a creation "
        "time chosen, also text in payloads."
    )
    fields: ClassVar = (
        "id", "status_display", "result_display", "event_link", "subscription_link", "organization_link",
        "attempt_count", "attempts_used", "cause", "next_attempt_at", "lease_expires_at", "created_at", "completed_at",
        "attempts_display", "data_display",
    )  # fmt: skip
    actions = ("retry", "replay", "hold", "resume")
    object_actions = ("retry", "replay", "hold", "resume")

    def get_queryset(self, request: HttpRequest) -> QuerySet[Delivery]:
        """Return deliveries with what the list shows of their event and subscription."""
        return (
            super().get_queryset(request).defer("event__data", "subscription__encrypted_headers",
                                                "subscription__encrypted_secret",
                                                "subscription__encrypted_previous_secrets")
            .select_related("organization", "subscription", "event")
        )  # fmt: skip

    def get_ordering(self, request: HttpRequest) -> tuple[str, ...]:
        """Newest first, in the order of the index that serves the filters; pending deliveries by due time."""
        is_export = getattr(request, "is_export", False)
        if request.method == "GET" and request.GET.get("status") == DeliveryStatus.PENDING and not is_export:
            return ("next_attempt_at", "id")
        narrowed = {"organization", "subscription", "event"} & set(request.GET)
        return ("-created_at", "-id") if narrowed else ("-id",)

    @admin.display(description="time", ordering="created_at")
    def time_display(self, row: Delivery) -> str:
        return format_time(row.created_at)

    @admin.display(description="id")
    def id_display(self, row: Delivery) -> SafeString:
        return short_id(row.id)

    @admin.display(description="type")
    def type_display(self, row: Delivery) -> SafeString | str:
        return object_link(row.event, short(row.event.type, 60))

    @admin.display(description="endpoint")
    def endpoint_link(self, row: Delivery) -> SafeString | str:
        return object_link(row.subscription, short(host_of_url(row.subscription.url), 60))

    @admin.display(description="attempts")
    def attempts_column(self, row: Delivery) -> int:
        return row.attempt_count

    @admin.display(description="cause")
    def cause_display(self, row: Delivery) -> str:
        return words_for(outcome_of(row.last_error, row.last_status_code)) if row.last_error else "-"

    @admin.display(description="status")
    def status_display(self, row: Delivery) -> SafeString:
        return badge(row.status)

    @admin.display(description="event")
    def event_link(self, row: Delivery) -> SafeString | str:
        return object_link(row.event, row.event.type)

    @admin.display(description="subscription")
    def subscription_link(self, row: Delivery) -> SafeString | str:
        return object_link(row.subscription, short(row.subscription.url, 60))

    @admin.display(description="last result")
    def result_display(self, row: Delivery) -> str:
        return last_result(row)

    @admin.display(description="next attempt")
    def next_attempt_display(self, row: Delivery) -> str:
        return next_attempt(row)

    @admin.display(description="attempts")
    def attempts_display(self, row: Delivery) -> SafeString:
        attempts = list(row.attempts.order_by("-number", "-id")[:SHOWN_ATTEMPTS])
        shown = table(
            ("attempt", "started at", "duration", "cause", "status code", "error", "response"),
            (
                (
                    object_link(attempt, f"#{attempt.number}"),
                    format_time(attempt.started_at),
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

    @admin.display(description="event data")
    def data_display(self, row: Delivery) -> SafeString:
        return code_block(row.event.data)

    def search(self, request: HttpRequest, queryset: QuerySet[Any], term: str) -> QuerySet[Any]:
        """Find by id, event type, part of a URL or of an organization's name, or text in payloads."""
        row_id = parse_id(term)
        if row_id:
            return queryset.filter(pk=row_id)
        found = search.find_deliveries(term, search.Scope.of(request))
        request.search_note = found.note  # type: ignore[attr-defined]
        return queryset.filter(pk__in=found.ids)

    def export_querysets(self, request: HttpRequest, rows: ChangeList) -> Iterable[tuple[QuerySet[Any], list[str]]]:
        """Read pending deliveries of each organization in turn: no index has those of all in an order."""
        narrowed = {"organization", "subscription", "event"} & set(request.GET)
        if request.GET.get("status") != DeliveryStatus.PENDING or narrowed:
            yield from super().export_querysets(request, rows)
            return
        waiting = SubscriptionQueue.objects.filter(next_due_at__isnull=False)
        for organization_id in waiting.order_by("organization_id").values_list("organization_id", flat=True).distinct():
            yield rows.queryset.filter(organization_id=organization_id), ["created_at", "id"]

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> Any:
        """Turn a search that names an event, a subscription or an organization into a filter by it."""
        term = request.GET.get("q", "").strip()
        if request.method == "GET" and term and "\x00" not in term:
            found = search.filter_for(term)
            if found is not None:
                query = request.GET.copy()
                del query["q"]
                query[found[0]] = str(found[1])
                return HttpResponseRedirect(f"{request.path}?{query.urlencode()}")
        return super().changelist_view(request, extra_context)

    # --- actions ------------------------------------------------------------------------------------

    def has_manage_permission(self, request: HttpRequest) -> bool:
        """Whether the user may use the actions, for `permissions=["manage"]`."""
        return request.user.has_perm("webhooks.manage_delivery")

    def _apply(self, request: HttpRequest, queryset: QuerySet[Delivery], action: DeliveryAction, done: str) -> None:
        try:
            chosen = selected_ids(queryset)
        except TooMany:
            refuse_too_many(self, request, USE_COMMAND)
            return
        changed, skipped = apply_to_deliveries(request, action, chosen)
        report(self, request, done, changed, skipped)

    @admin.action(description="Retry now (one attempt)", permissions=["manage"])
    def retry(self, request: HttpRequest, queryset: QuerySet[Delivery]) -> None:
        """Make one more attempt of each now, even while a circuit breaker is open."""
        self._apply(request, queryset, DeliveryAction.RETRY, "queued for a retry")

    @admin.action(description="Replay (full retry schedule)", permissions=["manage"])
    def replay(self, request: HttpRequest, queryset: QuerySet[Delivery]) -> None:
        """Send each again, with a fresh retry schedule."""
        self._apply(request, queryset, DeliveryAction.REPLAY, "queued for replay")

    @admin.action(description="Hold", permissions=["manage"])
    def hold(self, request: HttpRequest, queryset: QuerySet[Delivery]) -> None:
        """Send none of them until they are resumed."""
        self._apply(request, queryset, DeliveryAction.HOLD, "held")

    @admin.action(description="Resume", permissions=["manage"])
    def resume(self, request: HttpRequest, queryset: QuerySet[Delivery]) -> None:
        """Send those that are held."""
        self._apply(request, queryset, DeliveryAction.RESUME, "resumed")
