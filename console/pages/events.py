"""The admin's pages for events: what was sent to us, what became of it, and its deliveries."""

from __future__ import annotations

from collections import defaultdict
from typing import Any, ClassVar

from django.contrib import admin
from django.db import connection, transaction
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.safestring import SafeString

from console.actions import TooMany, chunks, refuse_too_many, report, selected_ids
from console.filters import ChoiceFilter, SpanFilter
from console.formatting import badge, code_block, list_link, short
from console.lists import LIST_BOUND
from console.pages.delivery_actions import USE_COMMAND, repair_deliveries
from console.pages.delivery_formatting import delivery_table
from console.tenant_admin import OrganizationFilter, TenantReadOnlyAdmin
from core.ids import parse_id
from core.wakeups import EVENTS, wake
from events import reprocessing
from events.models import Event, EventStatus
from orgs import audit
from webhooks.delivery_actions import DeliveryAction
from webhooks.models import Delivery


class EventStatusFilter(ChoiceFilter):
    """Events in one state."""

    title = "status"
    parameter_name = "status"
    column = "status"
    words = EventStatus.values


SHOWN_DELIVERIES = 100

# One short index probe for each organization: types are indexed by organization.
_FIND_BY_TYPE = """
SELECT e.id FROM orgs_organization o CROSS JOIN LATERAL (
    SELECT id, created_at FROM events_event WHERE organization_id = o.id AND type = %s
    ORDER BY created_at DESC, id DESC LIMIT %s
) AS e ORDER BY e.created_at DESC, e.id DESC LIMIT %s
"""


@admin.register(Event)
class EventAdmin(TenantReadOnlyAdmin):
    """What was sent to us, what became of it, and its payload."""

    audit_word = "event"
    list_display = ("id_shown", "type_shown", "organization_link", "status_shown", "error_shown", "created_at")
    list_select_related = ("organization",)
    list_filter = (EventStatusFilter, SpanFilter, OrganizationFilter)
    search_fields = ("id",)
    search_help_text = (
        f"Exact: an event's id, its dedup_id or its type (the newest {LIST_BOUND:,} of a type, unless an organization "
        "is chosen)."
    )
    ordering = ("-created_at", "-id")
    fields: ClassVar = (
        "id", "organization_link", "type_shown", "status_shown", "error_full", "failed_attempts", "created_at",
        "processed_at",
        "due_at", "dedup_id_shown", "deliveries_shown", "data_shown",
    )  # fmt: skip
    actions = ("reprocess", "replay")
    object_actions = ("reprocess", "replay")

    def get_queryset(self, request: HttpRequest) -> QuerySet[Event]:
        """Return events without their payloads, which only the page of one event reads."""
        return super().get_queryset(request).defer("data")

    @admin.display(description="event")
    def id_shown(self, row: Event) -> str:
        """Return the id, whole, so that it can be copied."""
        return str(row.id)

    @admin.display(description="type")
    def type_shown(self, row: Event) -> str:
        """Return the type."""
        return short(row.type)

    @admin.display(description="dedup id")
    def dedup_id_shown(self, row: Event) -> str:
        """Return the producer's own id."""
        return short(row.dedup_id or "-", 255)

    @admin.display(description="status")
    def status_shown(self, row: Event) -> SafeString:
        """Return the status in its color."""
        return badge(row.status)

    @admin.display(description="error")
    def error_shown(self, row: Event) -> str:
        """Return the beginning of the reason of a failed fan-out."""
        return short(row.last_error or "", 100)

    @admin.display(description="error")
    def error_full(self, row: Event) -> SafeString:
        """Return the reason of a failed fan-out."""
        return code_block(row.last_error)

    @admin.display(description="data, as it was sent")
    def data_shown(self, row: Event) -> SafeString:
        """Return the payload, indented and escaped."""
        return code_block(row.data)

    def search(self, request: HttpRequest, queryset: QuerySet[Any], term: str) -> QuerySet[Any]:
        """Find by id, dedup id or type."""
        row_id = parse_id(term)
        if row_id and Event.objects.filter(pk=row_id).exists():
            return queryset.filter(pk=row_id)
        if len(term) > 255:
            return queryset.none()
        same_dedup_id = Event.objects.filter(dedup_id=term).values_list("pk", flat=True)
        found = list(same_dedup_id[:LIST_BOUND])
        if not found and OrganizationFilter.parameter_name in request.GET:
            return queryset.filter(type=term)
        with connection.cursor() as cursor:
            cursor.execute(_FIND_BY_TYPE, [term, LIST_BOUND, LIST_BOUND])
            return queryset.filter(pk__in=[*found, *(row[0] for row in cursor.fetchall())])

    def has_reprocess_permission(self, request: HttpRequest) -> bool:
        """Tell whether the member of staff may reprocess events."""
        return request.user.has_perm("events.reprocess_event")

    @admin.action(description="Reprocess (events in error)", permissions=["reprocess"])
    def reprocess(self, request: HttpRequest, queryset: QuerySet[Event]) -> None:
        """Give the chosen events a new fan-out with fresh tries."""
        try:
            chosen = selected_ids(queryset)
        except TooMany:
            refuse_too_many(self, request, "Choose status “error” and an organization or a time.")
            return
        changed = 0
        left: dict[str, int] = defaultdict(int)
        for part in chunks(chosen):
            with transaction.atomic():
                rows = list(
                    Event.objects.select_for_update().filter(pk__in=part).order_by("pk")
                    .values_list("pk", "organization_id", "status")
                )  # fmt: skip
                by_organization: dict[Any, list[str]] = defaultdict(list)
                for event_id, organization_id, status in rows:
                    if status == EventStatus.ERROR:
                        by_organization[organization_id].append(str(event_id))
                    else:
                        left[f"are {status}, not in error"] += 1
                changed += reprocessing.reprocess(Event.objects.filter(pk__in=part))
                for organization_id, ids in by_organization.items():
                    target = ids[0] if len(ids) == 1 else f"{len(ids)} events"
                    audit.record_for_user(request, "event.reprocess", organization_id, target, {"events": ids})
        if changed:
            wake(EVENTS)  # again: the first wake-up came before the commit
        report(self, request, "queued for a new fan-out", changed, left)

    @admin.display(description="deliveries")
    def deliveries_shown(self, row: Event) -> SafeString:
        """Return the event's deliveries with their states."""
        found = list(
            Delivery.objects.filter(event_id=row.pk)
            .select_related("subscription").defer("subscription__encrypted_headers")
            .order_by("created_at", "id")[:SHOWN_DELIVERIES]
        )  # fmt: skip
        shown = delivery_table(found)
        if len(found) == SHOWN_DELIVERIES:
            shown += list_link("webhooks_delivery", "all deliveries", event=row.pk)
        return shown

    def has_replay_permission(self, request: HttpRequest) -> bool:
        """Tell whether the member of staff may send deliveries again."""
        return request.user.has_perm("webhooks.manage_delivery")

    @admin.action(description="Replay all deliveries", permissions=["replay"])
    def replay(self, request: HttpRequest, queryset: QuerySet[Event]) -> None:
        """Send every settled delivery of the chosen events again."""
        try:
            deliveries = selected_ids(Delivery.objects.filter(event_id__in=selected_ids(queryset)).order_by("id"))
        except TooMany:
            refuse_too_many(self, request, USE_COMMAND)
            return
        changed, left = repair_deliveries(request, DeliveryAction.REPLAY, deliveries)
        report(self, request, "deliveries to be sent again", changed, left)
