"""The admin's pages for events."""

from __future__ import annotations

import uuid
from collections import defaultdict
from typing import Any, ClassVar

from django.contrib import admin
from django.db import transaction
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.utils.safestring import SafeString

from console import search
from console.actions import TooMany, chunks, refuse_too_many, report, selected_ids
from console.delivery_actions import USE_COMMAND
from console.filters import ChoiceFilter, OrganizationFilter, SpanFilter
from console.formatting import delivery_table, list_link
from console.lists import LIST_BOUND
from console.model_admin import ReadOnlyAdmin
from console.runs import ask_and_run
from core.ids import parse_id
from core.query import newest
from core.wakeups import EVENTS, wake
from events import reprocessing
from events.models import Event, EventStatus
from orgs import audit
from webhooks.display.formatting import badge, code_block, format_time, short, short_id
from webhooks.models import ENCRYPTED, BulkRun, Delivery


class EventStatusFilter(ChoiceFilter):
    """Events with one status."""

    title = "status"
    parameter_name = "status"
    column = "status"
    values = EventStatus.values


SHOWN_DELIVERIES = 100
OLDEST_FIRST = ("created_at", "id")


@admin.register(Event)
class EventAdmin(ReadOnlyAdmin):
    """One event: its status, its deliveries and its data."""

    audit_noun = "event"
    list_display = ("time_display", "organization_link", "type_display", "status_display", "error_display",
                    "dedup_id_display", "id_display")  # fmt: skip
    sortable_by: ClassVar = ("time_display",)
    export_columns: ClassVar = {
        "id": "id", "created_at": "created_at", "organization": "organization__name", "type": "type",
        "dedup_id": "dedup_id", "channels": "channels", "ordering_key": "ordering_key", "status": "status",
        "last_error": "last_error", "processed_at": "processed_at",
    }  # fmt: skip
    list_select_related = ("organization",)
    list_filter = (EventStatusFilter, SpanFilter, OrganizationFilter)
    search_fields = ("id",)
    search_help_text = (
        "An id, a dedup_id, a type, part of an organization's name; with a creation time chosen, also text in "
        "payloads. "
        f"A search for a type finds the newest {LIST_BOUND:,}, unless you filter by organization."
    )
    fields: ClassVar = (
        "id", "organization_link", "type_display", "status_display", "error_full", "failed_attempts", "created_at",
        "processed_at", "due_at", "dedup_id_display", "channels_display", "ordering_key_display", "request_id_display",
        "trace_display", "deliveries_display", "data_display",
    )  # fmt: skip
    actions = ("reprocess", "replay")
    object_actions = ("reprocess", "replay")

    def fits(self, action: str, row: Event) -> bool:
        """Offer to reprocess only an event that is in error."""
        return action != "reprocess" or row.status == EventStatus.ERROR

    def get_ordering(self, request: HttpRequest) -> tuple[str, ...]:
        """Newest first, in the order of the index that serves the filters."""
        return ("-created_at", "-id") if "organization" in request.GET else ("-id",)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Event]:
        """Return events without their data, which only the page of one event needs."""
        return super().get_queryset(request).defer("data")

    @admin.display(description="time", ordering="created_at")
    def time_display(self, row: Event) -> str:
        return format_time(row.created_at)

    @admin.display(description="id")
    def id_display(self, row: Event) -> SafeString:
        return short_id(row.id)

    @admin.display(description="type")
    def type_display(self, row: Event) -> str:
        return short(row.type, 120)

    @admin.display(description="dedup_id")
    def dedup_id_display(self, row: Event) -> str:
        return short(row.dedup_id or "-", 255)

    @admin.display(description="channels")
    def channels_display(self, row: Event) -> str:
        return short(", ".join(row.channels or []), 1500) or "-"

    @admin.display(description="ordering key")
    def ordering_key_display(self, row: Event) -> str:
        return short(row.ordering_key or "-", 255)

    @admin.display(description="request id")
    def request_id_display(self, row: Event) -> str:
        return short(row.request_id or "-", 255)

    @admin.display(description="trace")
    def trace_display(self, row: Event) -> str:
        return short(row.trace or "-", 600)

    @admin.display(description="status")
    def status_display(self, row: Event) -> SafeString:
        return badge(row.status)

    @admin.display(description="error")
    def error_display(self, row: Event) -> str:
        return short(row.last_error or "", 100)

    @admin.display(description="error")
    def error_full(self, row: Event) -> SafeString:
        return code_block(row.last_error)

    @admin.display(description="data")
    def data_display(self, row: Event) -> SafeString:
        return code_block(row.data)

    def search(self, request: HttpRequest, queryset: QuerySet[Any], term: str) -> QuerySet[Any]:
        """Find by id, dedup id, type, or text in payloads."""
        row_id = parse_id(term)
        if row_id and Event.objects.filter(pk=row_id).exists():
            return queryset.filter(pk=row_id)
        if len(term) > 255:
            return queryset.none()
        scope = search.Scope.of(request)
        named = self._named(request, term)
        if len(named) >= LIST_BOUND and scope.organization and not Event.objects.filter(dedup_id=term).exists():
            return queryset.filter(type=term)  # an index has all of them in order, not only the newest
        if named:
            return search.with_ids(queryset, named)
        found = search.events_with_payload(term, scope)
        request.search_note = found.note  # type: ignore[attr-defined]
        return search.with_ids(queryset, found.ids)

    def _named(self, request: HttpRequest, term: str) -> list[uuid.UUID]:
        """Return the events that a term names, found once for a request."""
        known: dict[str, list[uuid.UUID]] = request.__dict__.setdefault("named_events", {})
        if term not in known:
            known[term] = search.events_named(term, search.Scope.of(request))
        return known[term]

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> Any:
        """Turn a search that names an organization into a filter by it."""
        term = request.GET.get("q", "").strip()
        may_look = request.method == "GET" and "\x00" not in term and self.has_view_permission(request)
        if term and may_look and not self._named(request, term):
            found = search.filter_for(term, events=True)
            name, row_id = found or ("", None)
            if name and name not in request.GET:
                query = request.GET.copy()
                del query["q"]
                query[name] = str(row_id)
                return HttpResponseRedirect(f"{request.path}?{query.urlencode()}")
        return super().changelist_view(request, extra_context)

    def has_reprocess_permission(self, request: HttpRequest) -> bool:
        """Whether the user may reprocess events, for `permissions=["reprocess"]`."""
        return request.user.has_perm("events.reprocess_event")

    @admin.action(description="Reprocess", permissions=["reprocess"])
    def reprocess(self, request: HttpRequest, queryset: QuerySet[Event]) -> None:
        """Fan out again the events that are in error."""
        try:
            chosen = selected_ids(queryset)
        except TooMany:
            refuse_too_many(self, request, "Filter by status “error” and an organization or a time span.")
            return
        changed = 0
        skipped: dict[str, int] = defaultdict(int)
        rows = Event.objects.filter(pk__in=chosen).order_by("pk").only("organization_id", "status")
        by_organization: dict[Any, list[str]] = defaultdict(list)
        for row in rows:
            if row.status == EventStatus.ERROR:
                by_organization[row.organization_id].append(str(row.pk))
            else:
                skipped[f"{row.status}, not in error"] += 1
        in_error = [event_id for ids in by_organization.values() for event_id in ids]
        for number, part in enumerate(chunks(in_error)):
            with transaction.atomic():
                changed += reprocessing.reprocess(Event.objects.filter(pk__in=part))
                if number == 0:  # one entry for the act
                    for organization_id, ids in by_organization.items():
                        audit.record_for_user(
                            request, "event.reprocess", organization_id, ids[0] if len(ids) == 1 else "",
                            {"count": len(ids), "filters": dict(request.GET.items())}, targets=ids,
                            name=f"{len(ids)} {'event' if len(ids) == 1 else 'events'}",
                        )  # fmt: skip
        if changed:
            wake(EVENTS)  # once more, because `reprocess` wakes before the commit
        report(self, request, "queued for reprocessing", changed, skipped)

    @admin.display(description="deliveries")
    def deliveries_display(self, row: Event) -> SafeString:
        of_event = Delivery.objects.filter(event_id=row.pk).only("id", "created_at")
        oldest = newest(of_event, SHOWN_DELIVERIES, OLDEST_FIRST)
        found = list(
            Delivery.objects.filter(pk__in=[delivery.pk for delivery in oldest])
            .select_related("subscription").defer(*(f"subscription__{name}" for name in ENCRYPTED))
            .order_by(*OLDEST_FIRST)
        )  # fmt: skip
        shown = delivery_table(found)
        if len(found) == SHOWN_DELIVERIES:
            shown += list_link("webhooks_delivery", "all deliveries", event=row.pk)
        return shown

    def has_replay_permission(self, request: HttpRequest) -> bool:
        """Whether the user may replay deliveries, for `permissions=["replay"]`."""
        return request.user.has_perm("webhooks.manage_delivery")

    @admin.action(description="Replay deliveries", permissions=["replay"])
    def replay(self, request: HttpRequest, queryset: QuerySet[Event]) -> HttpResponse | None:
        """Send the failed and retrying deliveries of the selected events again and, if asked to, the others."""
        try:
            events = sorted(str(pk) for pk in selected_ids(queryset))
        except TooMany:
            refuse_too_many(self, request, USE_COMMAND)
            return None
        return ask_and_run(self, request, BulkRun.Kind.REPLAY, {"events": events})
