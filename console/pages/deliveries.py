"""The admin's pages for deliveries."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from typing import Any, ClassVar

from django.contrib import admin, messages
from django.contrib.admin.views.main import ChangeList
from django.db import connection
from django.db.models import Case, QuerySet, When
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import reverse
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString

from console import search
from console.actions import ACTION_BOUND
from console.delivery_actions import NOT_BY_FILTER, act, list_filters
from console.filters import EventFilter, OrganizationFilter, OutcomeOfLastFilter, SpanFilter, SubscriptionFilter
from console.first_rows import first_rows
from console.formatting import list_link, object_link
from console.host_actions import stop_or_enable
from console.lists import LIST_BOUND
from console.model_admin import ReadOnlyAdmin
from console.runs import ask_and_run
from console.time_ranges import FAILED_SINCE
from core.ids import parse_id
from webhooks.delivery_actions import DeliveryAction
from webhooks.delivery_filters import is_outcome, split_outcome
from webhooks.display.causes import error_words
from webhooks.display.exchange import exchange_blocks
from webhooks.display.formatting import (
    code_block,
    delivery_badge,
    format_duration,
    format_time,
    host_of_url,
    last_result,
    next_attempt,
    outcome_badge,
    short,
    short_id,
    table,
)
from webhooks.display.standing import MOST_HELD_UP, count_held_up
from webhooks.inboxes import is_inbox
from webhooks.models import ENCRYPTED, BulkRun, Delivery, DeliveryStatus, SubscriptionQueue
from webhooks.ordering_keys import PARKED_FROM, waits_for
from webhooks.states import NOT_LEASED, DeliveryState, in_delivery_state, is_leased, state_of

SHOWN_ATTEMPTS = 100
OPENED_ATTEMPTS = 20


# Deliveries that wait for an attempt: the oldest of each organization.  SQL, because of the LATERAL join: there is no
# index of all that waits over all organizations, which would cost every delivery two more index entries.
_WANTED = """status = 'pending' AND {condition}
      AND (%(subscription)s::uuid IS NULL OR subscription_id = %(subscription)s)
      AND (%(error)s::text IS NULL
           OR last_error = %(error)s AND last_status_code IS NOT DISTINCT FROM %(status_code)s::int)"""
# The states whose lists are in the order of the next attempts, and their conditions, as in the indexes.
_WAITING = {
    DeliveryState.PENDING.value: f"last_error = '' AND {NOT_LEASED}",
    DeliveryState.RETRYING.value: f"NOT last_error = '' AND {NOT_LEASED}",
}


def _waiting_ids(request: HttpRequest, state: str) -> list[uuid.UUID]:
    """Return the ids of the oldest deliveries in a state of _WAITING, within the request's other filters."""
    chosen: dict[str, Any] = {
        name: parse_id(request.GET[name]) if name in request.GET else None for name in ("organization", "subscription")
    }
    outcome = request.GET.get(OutcomeOfLastFilter.parameter_name, "")
    chosen["error"], chosen["status_code"] = split_outcome(outcome) if is_outcome(outcome) else (None, None)
    found = first_rows("webhooks_delivery", _WANTED.format(condition=_WAITING[state]), newest=False)
    statement = f"{found} SELECT id FROM found ORDER BY created_at, id LIMIT %(most)s"  # noqa: S608 - ours
    with connection.cursor() as cursor:
        cursor.execute(statement, {**chosen, "most": LIST_BOUND})
        return [found for (found,) in cursor.fetchall()]


class DeliveryStatusFilter(admin.SimpleListFilter):
    """Deliveries with one status, or that failed for good in a span of time."""

    title = "status"
    parameter_name = "status"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        offered = [(state, state) for state in DeliveryState.values]
        offered[5:5] = [(name, since.label) for name, since in FAILED_SINCE.items()]
        return offered

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        value = self.value()
        if value is None:
            return queryset
        if (
            value in _WAITING
            and request.method == "GET"
            and not getattr(request, "is_export", False)
            and EventFilter.parameter_name not in request.GET
        ):
            return search.with_ids(queryset, _waiting_ids(request, value))
        if value in FAILED_SINCE:
            since = timezone.now() - FAILED_SINCE[value].age
            return queryset.filter(status=DeliveryStatus.FAILED, completed_at__gte=since)
        return queryset.filter(in_delivery_state(value)) if value in DeliveryState.values else queryset.none()


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
        "last_status_code": "last_status_code", "attempts": "attempt_count", "next_attempt_at": "planned_at",
        "completed_at": "completed_at",
    }  # fmt: skip
    list_select_related = ("organization", "subscription", "event")
    list_filter = (
        DeliveryStatusFilter, OutcomeOfLastFilter, SpanFilter, EventFilter, SubscriptionFilter, OrganizationFilter
    )  # fmt: skip
    search_fields = ("id",)
    search_help_text = (
        "An id, a dedup_id, an event type, part of an endpoint's URL or of an organization's name; with a creation "
        "time chosen, also text in payloads."
    )
    fields: ClassVar = (
        "id", "status_display", "result_display", "event_link", "subscription_link", "organization_link",
        "attempt_count", "attempts_used", "trigger_display", "next_attempt_display", "ordering_key_display",
        "lease_display", "created_at", "completed_at", "attempts_display", "data_display",
    )  # fmt: skip
    actions = ("retry", "replay", "hold", "resume", "skip", "stop_host", "enable_host")
    object_actions = ("retry", "replay", "hold", "resume", "skip", "stop_host")
    dangerous_actions = ("stop_host",)

    def fits(self, action: str, row: Delivery) -> bool:
        """Leave out actions that wouldn't change the delivery, and those on hosts if it has none."""
        if action == "stop_host" and is_inbox(row.subscription):
            return False
        if action == "skip" and row.ordering_key is None:
            return False
        what = DeliveryAction.__members__.get(action.upper())
        return what is None or state_of(row) in what.states

    def get_queryset(self, request: HttpRequest) -> QuerySet[Delivery]:
        """Return deliveries with what the list shows of their event and subscription."""
        rows: QuerySet[Delivery] = (
            super().get_queryset(request).defer("event__data", *(f"subscription__{name}" for name in ENCRYPTED))
            .select_related("organization", "subscription", "event")
            .annotate(planned_at=Case(When(next_attempt_at__lt=PARKED_FROM, then="next_attempt_at")))
        )  # fmt: skip
        return rows

    def get_ordering(self, request: HttpRequest) -> tuple[str, ...]:
        """Newest first, in the order of the index that serves the filters; pending deliveries by due time."""
        is_export = getattr(request, "is_export", False)
        if request.method == "GET" and request.GET.get("status") in _WAITING and not is_export:
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
        return object_link(row.subscription, short(host_of_url(row.subscription.url) or row.subscription.url, 60))

    @admin.display(description="attempts")
    def attempts_column(self, row: Delivery) -> int:
        return row.attempt_count

    @admin.display(description="cause")
    def cause_display(self, row: Delivery) -> str:
        return error_words(row.last_error, row.last_status_code) or "-"

    @admin.display(description="status")
    def status_display(self, row: Delivery) -> SafeString:
        return delivery_badge(row)

    @admin.display(description="event")
    def event_link(self, row: Delivery) -> SafeString | str:
        return object_link(row.event, row.event.type)

    @admin.display(description="subscription")
    def subscription_link(self, row: Delivery) -> SafeString | str:
        return object_link(row.subscription, short(row.subscription.url, 60))

    @admin.display(description="last result")
    def result_display(self, row: Delivery) -> str:
        return last_result(row)

    @admin.display(description="ordering key")
    def ordering_key_display(self, row: Delivery) -> SafeString | str:
        if row.ordering_key is None:
            return "-"
        key = short(row.ordering_key, 255)
        blocker = waits_for(row)
        if blocker is not None:
            url = reverse("admin:webhooks_delivery_change", args=[blocker])
            return format_html('{}: waits for <a href="{}">an earlier delivery</a> of this key', key, url)
        waiting = count_held_up(row)
        more = "or more " if waiting == MOST_HELD_UP else ""
        return f"{key}: {waiting:,} {more}of this key wait for this delivery" if waiting else key

    @admin.display(description="next attempt")
    def next_attempt_display(self, row: Delivery) -> str:
        return next_attempt(row)

    @admin.display(description="lease expires at")
    def lease_display(self, row: Delivery) -> str:
        fetched = is_leased(row.status, row.lease_id, row.next_attempt_at)
        return format_time(row.next_attempt_at if fetched else row.lease_expires_at)

    @admin.display(description="triggered by")
    def trigger_display(self, row: Delivery) -> str:
        return row.cause

    @admin.display(description="attempts")
    def attempts_display(self, row: Delivery) -> SafeString:
        attempts = list(row.attempts.order_by("-number", "-id")[:SHOWN_ATTEMPTS])
        rows = (
            (
                object_link(attempt, f"#{attempt.number}"),
                format_time(attempt.started_at),
                format_duration(attempt.duration_ms),
                attempt.cause,
                outcome_badge(attempt),
                short(attempt.error_detail, 160) or "-",
                short(attempt.response_body, 80) or "-",
            )
            for attempt in attempts
        )
        # The newest can be opened here; the others have their own pages.
        shown = table(
            ("attempt", "started at", "duration", "triggered by", "outcome", "detail", "response"),
            rows,
            exchange_blocks(row, attempts[:OPENED_ATTEMPTS]),
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
        return search.with_ids(queryset, found.ids)

    def export_querysets(self, request: HttpRequest, rows: ChangeList) -> Iterable[tuple[QuerySet[Any], list[str]]]:
        """Read what waits for an attempt of each organization in turn: no index has that of all in an order."""
        narrowed = {"organization", "subscription", "event"} & set(request.GET)
        if request.GET.get("status") not in _WAITING or narrowed:
            yield from super().export_querysets(request, rows)
            return
        waiting = SubscriptionQueue.objects.filter(next_due_at__isnull=False)
        for organization_id in waiting.order_by("organization_id").values_list("organization_id", flat=True).distinct():
            yield rows.queryset.filter(organization_id=organization_id), ["created_at", "id"]

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> Any:
        """Turn a search that names an event, a subscription or an organization into a filter by it."""
        term = request.GET.get("q", "").strip()
        if request.method == "GET" and term and "\x00" not in term and self.has_view_permission(request):
            found = search.filter_for(term)
            if found is not None:
                query = request.GET.copy()
                del query["q"]
                name, row_id = found
                query[name] = str(row_id)
                return HttpResponseRedirect(f"{request.path}?{query.urlencode()}")
        return super().changelist_view(request, extra_context)

    # --- actions ------------------------------------------------------------------------------------

    def has_manage_permission(self, request: HttpRequest) -> bool:
        """Whether the user may use the actions, for `permissions=["manage"]`."""
        return request.user.has_perm("webhooks.manage_delivery")

    def _run(self, request: HttpRequest, queryset: QuerySet[Delivery], kind: BulkRun.Kind) -> HttpResponse | None:
        if request.POST.get("select_across") == "1":
            chosen = list_filters(request)
            if chosen is None:
                self.message_user(request, NOT_BY_FILTER, messages.ERROR)
                return None
            filters, asked = chosen
            return ask_and_run(self, request, kind, filters, asked)
        ids = sorted(str(pk) for pk in queryset.values_list("pk", flat=True)[:ACTION_BOUND])
        return ask_and_run(self, request, kind, {"deliveries": ids})

    @admin.action(description="Retry now (one attempt)", permissions=["manage"])
    def retry(self, request: HttpRequest, queryset: QuerySet[Delivery]) -> HttpResponse | None:
        """Make one more attempt of each now; those that were chosen one by one even while a circuit breaker is open."""
        return self._run(request, queryset, BulkRun.Kind.RETRY)

    @admin.action(description="Replay (full retry schedule)", permissions=["manage"])
    def replay(self, request: HttpRequest, queryset: QuerySet[Delivery]) -> HttpResponse | None:
        """Send each again, with a fresh retry schedule."""
        return self._run(request, queryset, BulkRun.Kind.REPLAY)

    @admin.action(description="Hold", permissions=["manage"])
    def hold(self, request: HttpRequest, queryset: QuerySet[Delivery]) -> HttpResponse | None:
        """Send none of them until they are resumed."""
        return act(self, request, queryset, DeliveryAction.HOLD)

    @admin.action(description="Resume", permissions=["manage"])
    def resume(self, request: HttpRequest, queryset: QuerySet[Delivery]) -> HttpResponse | None:
        """Send those that are held."""
        return act(self, request, queryset, DeliveryAction.RESUME)

    @admin.action(description="Skip for its ordering key", permissions=["manage"])
    def skip(self, request: HttpRequest, queryset: QuerySet[Delivery]) -> HttpResponse | None:
        """Give them up, so that what waits for them in the order of their key is sent."""
        return act(self, request, queryset, DeliveryAction.SKIP)

    def has_switch_permission(self, request: HttpRequest) -> bool:
        """Whether the user may disable subscriptions, for `permissions=["switch"]`."""
        return request.user.has_perm("webhooks.switch_subscription")

    @admin.action(description="Stop this host…", permissions=["switch"])
    def stop_host(self, request: HttpRequest, queryset: QuerySet[Delivery]) -> HttpResponse | None:
        """Disable every subscription that leads to the hosts of the selected deliveries."""
        return stop_or_enable(self, request, _hosts(queryset), stop=True)

    @admin.action(description="Enable this host…", permissions=["switch"])
    def enable_host(self, request: HttpRequest, queryset: QuerySet[Delivery]) -> HttpResponse | None:
        """Enable again what was stopped with the hosts of the selected deliveries."""
        return stop_or_enable(self, request, _hosts(queryset), stop=False)


def _hosts(queryset: QuerySet[Delivery]) -> set[tuple[str, uuid.UUID]]:
    rows = queryset.values_list("pk", flat=True)[:ACTION_BOUND]
    chosen = Delivery.objects.filter(pk__in=list(rows))
    return set(chosen.values_list("subscription__host", "organization_id"))
