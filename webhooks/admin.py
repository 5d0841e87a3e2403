"""The admin's pages for subscriptions, deliveries, attempts and bulk runs."""

from __future__ import annotations

import datetime
import json
import uuid
from collections import Counter, defaultdict
from typing import Any, ClassVar

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.helpers import ActionForm
from django.db import transaction
from django.db.models import Max, QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.utils import timezone
from django.utils.html import format_html_join
from django.utils.safestring import SafeString

from core.admin_tools import (
    ChoiceFilter,
    ExactFilter,
    SpanFilter,
    TooMany,
    badge,
    chunks,
    code_block,
    lines,
    list_link,
    object_link,
    refuse_too_many,
    report,
    selected_ids,
    short,
    shown_once,
    table,
)
from core.ids import parse_id
from core.query import ParameterError, moment
from core.wakeups import WEBHOOKS, wake
from events.admin import EventAdmin
from events.models import Event
from orgs import audit
from orgs.admin_tools import OrganizationFilter, TenantAdmin, TenantReadOnlyAdmin
from webhooks import bulk, repair, subscriptions
from webhooks.admin_forms import SubscriptionForm
from webhooks.models import BulkRun, Delivery, DeliveryAttempt, DeliveryStatus, Lane, Subscription
from webhooks.repair import Repair

SHOWN_DELIVERIES = 100
SHOWN_ATTEMPTS = 100
USE_COMMAND = (
    "Use `manage.py replay_deliveries` for so many (it is paced, resumable and takes --org, --subscription, --event, "
    "--status, --since), or narrow the list."
)


def delivery_result(row: Delivery) -> str:
    """Return what the last attempt brought, in a word or two."""
    return " ".join(str(part) for part in (row.last_status_code, row.last_error) if part) or "-"


def delivery_table(deliveries: Any) -> SafeString:
    """Return deliveries as a table with links to each and its subscription."""
    return table(
        ("delivery", "subscription", "status", "attempts", "last result", "next attempt", "done"),
        (
            (
                object_link(row, str(row.pk)),
                object_link(row.subscription),
                badge(row.status),
                row.attempt_count,
                delivery_result(row),
                _time(row.next_attempt_at if row.status == DeliveryStatus.PENDING else None),
                _time(row.completed_at),
            )
            for row in deliveries
        ),
    )


def _time(moment_shown: Any) -> str:
    return moment_shown.strftime("%Y-%m-%d %H:%M:%S") if moment_shown else "-"


def repair_deliveries(request: HttpRequest, what: Repair, chosen: list[uuid.UUID]) -> tuple[int, dict[str, int]]:
    """Do `what` to the deliveries, in chunks, each with its audit entries in one transaction.

    Returns how many changed, and for the others how many for which reason.
    """
    changed = 0
    left: Counter[str] = Counter()
    for part in chunks(chosen):
        with transaction.atomic():
            before = {
                row[0]: row[1:]
                for row in Delivery.objects.filter(pk__in=part).values_list(
                    "pk", "organization_id", "status", "subscription__is_active", "subscription__deleted_at"
                )
            }
            able: dict[uuid.UUID, list[str]] = defaultdict(list)
            reasons: Counter[str] = Counter()
            for delivery_id, (organization_id, status, is_active, deleted_at) in before.items():
                reason = _why_not(what, status, is_active, deleted_at is not None)
                if reason is None:
                    able[organization_id].append(str(delivery_id))
                else:
                    reasons[reason] += 1
            done = repair.apply(what, part, announce=False)
            # A worker may have taken or settled one between the look and the change.
            reasons["changed state meanwhile"] += len(before) - sum(reasons.values()) - done
            for organization_id, ids in able.items():
                target = ids[0] if len(ids) == 1 else f"{len(ids)} deliveries"
                audit.record_for_user(
                    request,
                    f"delivery.{what.word}",
                    organization_id,
                    target,
                    {"deliveries": ids, "changed_in_all": done},
                )
        if done:
            wake(WEBHOOKS)
        changed += done
        left += reasons
    left["no longer exist"] += len(chosen) - changed - sum(left.values())
    return changed, dict(left)


def _why_not(what: Repair, status: str, is_active: bool, deleted: bool) -> str | None:
    """Return why a delivery would be left alone, or None."""
    if status not in what.states:
        return {
            "delivering": "being sent right now",
            "held": "held (resume them instead)",
            "cancelled": "cancelled with their subscription",
        }.get(status, f"{status}, which {what.word} doesn't apply to")
    if deleted:
        return "of a deleted subscription"
    if not is_active and what is not Repair.HOLD:
        return "of a disabled subscription (enable it first)"
    return None


class EventFilter(ExactFilter):
    """Deliveries of one event."""

    title = "event"
    parameter_name = "event"
    column = "event_id"
    model = Event


class SubscriptionFilter(ExactFilter):
    """Rows of one subscription."""

    title = "subscription"
    parameter_name = "subscription"
    column = "subscription_id"
    model = Subscription


class DeliveryFilter(ExactFilter):
    """Attempts of one delivery."""

    title = "delivery"
    parameter_name = "delivery"
    column = "delivery_id"
    model = Delivery


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
        "tries_used", "cause", "next_attempt_at", "lease_expires_at", "created_at", "completed_at", "attempts_shown",
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
        """Newest first, as the index that serves the filters has it; ids are in time order."""
        narrowed = {"organization", "subscription", "event"} & set(request.GET)
        return ("-created_at", "-id") if narrowed else ("-id",)

    @admin.display(description="delivery")
    def id_shown(self, row: Delivery) -> str:
        """Return the id, whole, so that it can be copied."""
        return str(row.id)

    @admin.display(description="status")
    def status_shown(self, row: Delivery) -> SafeString:
        """Return the status in its colour."""
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
        return _time(row.next_attempt_at if row.status == DeliveryStatus.PENDING else None)

    @admin.display(description="attempts")
    def attempts_shown(self, row: Delivery) -> SafeString:
        """Return the newest attempts, with why each failed."""
        attempts = list(row.attempts.order_by("-number", "-id")[:SHOWN_ATTEMPTS])
        shown = table(
            ("attempt", "started", "took", "cause", "answer", "why", "response"),
            (
                (
                    object_link(attempt, f"#{attempt.number}"),
                    _time(attempt.started_at),
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
        return request.user.has_perm("webhooks.repair_delivery")

    def _repair(self, request: HttpRequest, queryset: QuerySet[Delivery], what: Repair, said: str) -> None:
        try:
            chosen = selected_ids(queryset)
        except TooMany:
            refuse_too_many(self, request, USE_COMMAND)
            return
        changed, left = repair_deliveries(request, what, chosen)
        report(self, request, said, changed, left)

    @admin.action(description="Retry now (one more try)", permissions=["repair"])
    def retry(self, request: HttpRequest, queryset: QuerySet[Delivery]) -> None:
        """Make one more try of each, now, whatever the circuit says."""
        self._repair(request, queryset, Repair.RETRY, "to be tried now")

    @admin.action(description="Replay (whole schedule anew)", permissions=["repair"])
    def replay(self, request: HttpRequest, queryset: QuerySet[Delivery]) -> None:
        """Send each again, with a fresh schedule."""
        self._repair(request, queryset, Repair.REPLAY, "to be sent again")

    @admin.action(description="Hold (send nothing until resumed)", permissions=["repair"])
    def hold(self, request: HttpRequest, queryset: QuerySet[Delivery]) -> None:
        """Keep each from being sent."""
        self._repair(request, queryset, Repair.HOLD, "held")

    @admin.action(description="Resume (held deliveries)", permissions=["repair"])
    def resume(self, request: HttpRequest, queryset: QuerySet[Delivery]) -> None:
        """Let each that is held go on."""
        self._repair(request, queryset, Repair.RESUME, "resumed")


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


class OutcomeFilter(admin.SimpleListFilter):
    """Failed attempts among the newest: attempts have no index by outcome, so no more are looked at."""

    title = "outcome"
    parameter_name = "outcome"
    _newest = 100_000

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        """Return the choice."""
        return [("failed", f"failed, of the newest {self._newest:,}")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """Keep the newest that failed."""
        if self.value() is None:
            return queryset
        newest = DeliveryAttempt.objects.aggregate(newest=Max("id"))["newest"] or 0
        return queryset.filter(id__gt=newest - self._newest).exclude(error="")


@admin.register(DeliveryAttempt)
class DeliveryAttemptAdmin(TenantReadOnlyAdmin):
    """One try: when, how long, and what came back."""

    list_display = (
        "number_shown", "delivery_link", "started_at", "took", "cause", "status_code", "error", "detail_shown",
    )  # fmt: skip
    list_select_related = ("delivery",)
    list_filter = (OutcomeFilter, DeliveryFilter)
    search_fields = ("id",)
    search_help_text = "Exact: the id of an attempt or of a delivery."
    ordering = ("-id",)
    fields: ClassVar = (
        "number", "delivery_link", "event_link", "subscription_link", "started_at", "took", "cause", "status_code",
        "error", "detail_full", "response_shown", "id",
    )  # fmt: skip

    @admin.display(description="attempt")
    def number_shown(self, row: DeliveryAttempt) -> str:
        """Return which try it was."""
        return f"#{row.number}"

    @admin.display(description="delivery")
    def delivery_link(self, row: DeliveryAttempt) -> SafeString | str:
        """Return a link to the delivery."""
        return object_link(row.delivery, str(row.delivery_id))

    @admin.display(description="event")
    def event_link(self, row: DeliveryAttempt) -> SafeString | str:
        """Return a link to the event."""
        return object_link(row.delivery.event)

    @admin.display(description="subscription")
    def subscription_link(self, row: DeliveryAttempt) -> SafeString | str:
        """Return a link to the subscription."""
        return object_link(row.delivery.subscription)

    @admin.display(description="took")
    def took(self, row: DeliveryAttempt) -> str:
        """Return how long it took."""
        return f"{row.duration_ms:.1f} ms"

    @admin.display(description="detail")
    def detail_shown(self, row: DeliveryAttempt) -> str:
        """Return the beginning of the explanation."""
        return short(row.error_detail, 80)

    @admin.display(description="detail")
    def detail_full(self, row: DeliveryAttempt) -> str:
        """Return the explanation."""
        return short(row.error_detail, 600) or "-"

    @admin.display(description="response body (its beginning)")
    def response_shown(self, row: DeliveryAttempt) -> SafeString:
        """Return what the receiver said, escaped."""
        return code_block(row.response_body)

    def search(self, request: HttpRequest, queryset: QuerySet[Any], term: str) -> QuerySet[Any]:
        """Find by an attempt's number in the table, or a delivery's id."""
        delivery_id = parse_id(term)
        if delivery_id:
            return queryset.filter(delivery_id=delivery_id)
        if term.isascii() and term.isdigit() and len(term) <= 18:
            return queryset.filter(pk=int(term))
        return queryset.none()


class KindFilter(ChoiceFilter):
    """Replays or recoveries."""

    title = "kind"
    parameter_name = "kind"
    column = "kind"
    words = BulkRun.Kind.values


class RunStateFilter(ChoiceFilter):
    """Running or done."""

    title = "state"
    parameter_name = "state"
    column = "state"
    words = BulkRun.State.values


@admin.register(BulkRun)
class BulkRunAdmin(TenantReadOnlyAdmin):
    """Replays and recoveries of many deliveries, and how far they are."""

    list_display = ("id_shown", "kind", "state_shown", "queued", "subscription_link", "created_at", "finished_at")
    list_select_related = ("subscription",)
    list_filter = (KindFilter, RunStateFilter, OrganizationFilter)
    search_fields = ("id",)
    search_help_text = "A run's id."
    ordering = ("-id",)
    fields: ClassVar = (
        "id", "kind", "state_shown", "queued", "subscription_link", "organization_id", "filters_shown", "before",
        "cursor_at", "created_at", "finished_at",
    )  # fmt: skip

    @admin.display(description="run")
    def id_shown(self, row: BulkRun) -> str:
        """Return the id."""
        return str(row.id)

    @admin.display(description="state")
    def state_shown(self, row: BulkRun) -> SafeString:
        """Return the state in its colour."""
        return badge(row.state)

    @admin.display(description="subscription")
    def subscription_link(self, row: BulkRun) -> SafeString | str:
        """Return a link to the subscription of a recovery."""
        return object_link(row.subscription)

    @admin.display(description="filters")
    def filters_shown(self, row: BulkRun) -> SafeString:
        """Return what the run takes."""
        return code_block(json.dumps(row.filters, ensure_ascii=False))


class SubscriptionActionForm(ActionForm):
    """The action's own words: why a subscription is disabled, or since when it is recovered."""

    reason = forms.CharField(
        required=False, max_length=300, label="Reason (disable):", widget=forms.TextInput(attrs={"size": 24})
    )
    since = forms.CharField(
        required=False, max_length=40, label="Since (recover):",
        widget=forms.TextInput(attrs={"size": 20, "placeholder": "2026-01-31T12:00:00Z"}),
    )  # fmt: skip


class SubscriptionStateFilter(admin.SimpleListFilter):
    """Subscriptions that take deliveries, that don't, or that are gone."""

    title = "state"
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        """Return the states."""
        return [("active", "active"), ("disabled", "disabled"), ("failing", "failing"), ("deleted", "deleted")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """Keep those in the state; deleted ones are shown only when asked for, or by their id."""
        value = self.value()
        if value == "deleted":
            return queryset.filter(deleted_at__isnull=False)
        live = queryset.filter(deleted_at=None)
        if value == "active":
            return live.filter(is_active=True)
        if value == "disabled":
            return live.filter(is_active=False)
        if value == "failing":
            return live.filter(lane__failing_since__isnull=False)
        return queryset.none() if value is not None else queryset


@admin.register(Subscription)
class SubscriptionAdmin(TenantAdmin):
    """Who receives which events, how that goes, and switching it off and on."""

    audit_word = "subscription"
    form = SubscriptionForm
    action_form = SubscriptionActionForm
    list_display = (
        "url_shown", "state_shown", "organization_link", "event_types_shown", "in_flight", "failing_since",
        "description_shown", "created_at",
    )  # fmt: skip
    list_select_related = ("organization", "lane")
    list_filter = (SubscriptionStateFilter, OrganizationFilter)
    search_fields = ("id",)
    search_help_text = "Exact: a subscription's id or URL."
    autocomplete_fields = ("organization",)
    ordering = ("-id",)
    actions = ("disable", "enable", "recover")
    object_actions = ("disable", "enable", "recover")
    delete_confirmation_template = "admin/delete_subscription.html"
    _form_fields = (
        "organization", "url", "event_types_text", "description", "max_in_flight", "deliveries_per_second",
        "headers_text", "remove_headers",
    )  # fmt: skip
    _state_fields = (
        "id", "state_shown", "disabled_reason_shown", "disabled_at", "header_names_shown",
        "previous_secret_expires_at", "created_at", "updated_at", "deleted_at",
    )  # fmt: skip
    _lane_fields = (
        "in_flight", "window", "paused_until", "failing_since", "failures_in_row", "last_success_at", "next_due_at",
    )  # fmt: skip

    def get_queryset(self, request: HttpRequest) -> QuerySet[Subscription]:
        """Return subscriptions with their lanes and without what is secret."""
        return (
            super().get_queryset(request).select_related("organization", "lane")
            .defer("encrypted_headers", "encrypted_secret", "encrypted_previous_secret")
        )  # fmt: skip

    def get_fieldsets(self, request: HttpRequest, obj: Subscription | None = None) -> Any:
        """Return the form, and of a subscription that exists how it does."""
        if obj is None:
            return [(None, {"fields": [name for name in self._form_fields if name != "remove_headers"]})]
        editable = self._form_fields if self.has_change_permission(request, obj) else self._plain_fields
        return [
            ("How it does", {"fields": (*self._lane_fields, "deliveries_shown")}),
            ("Receiver", {"fields": editable}),
            ("State", {"fields": self._state_fields}),
        ]

    _plain_fields = (
        "organization_link", "url_full", "event_types_shown", "description_full", "max_in_flight",
        "deliveries_per_second",
    )  # fmt: skip

    def get_readonly_fields(self, request: HttpRequest, obj: Subscription | None = None) -> Any:
        """A subscription stays with its organisation; what happened to it is a fact."""
        if obj is None:
            return ()
        facts = (*self._lane_fields, "deliveries_shown", *self._state_fields, "organization")
        return facts if self.has_change_permission(request, obj) else (*facts, *self._plain_fields)

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """A deleted subscription is only looked at."""
        return super().has_change_permission(request, obj) and (obj is None or obj.deleted_at is None)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Those with the permission may delete one; the row stays, marked."""
        codename = f"{self.opts.app_label}.delete_{self.opts.model_name}"
        return request.user.has_perm(codename) and (obj is None or obj.deleted_at is None)

    def get_actions(self, request: HttpRequest) -> dict[str, Any]:
        """Return the actions without Django's own deletion, which would remove rows."""
        found = super().get_actions(request)
        found.pop("delete_selected", None)
        return found

    # --- what is shown ------------------------------------------------------------------------------

    @admin.display(description="URL")
    def url_shown(self, row: Subscription) -> str:
        """Return the URL as text."""
        return short(row.url)

    @admin.display(description="URL")
    def url_full(self, row: Subscription) -> str:
        """Return the whole URL as text."""
        return short(row.url, 2048)

    @admin.display(description="description")
    def description_shown(self, row: Subscription) -> str:
        """Return the beginning of the description."""
        return short(row.description, 60)

    @admin.display(description="description")
    def description_full(self, row: Subscription) -> str:
        """Return the description."""
        return short(row.description, 500)

    @admin.display(description="event types")
    def event_types_shown(self, row: Subscription) -> SafeString:
        """Return the patterns below each other."""
        some = [short(pattern) for pattern in row.event_types[:10]]
        return lines(some + (["…"] if len(row.event_types) > 10 else []))

    @admin.display(description="state")
    def state_shown(self, row: Subscription) -> SafeString:
        """Return whether it takes deliveries."""
        if row.deleted_at is not None:
            return badge("cancelled", "deleted")
        if not row.is_active:
            return badge("held", "disabled")
        lane = _lane(row)
        if lane is not None and lane.failing_since is not None:
            return badge("failed", "failing")
        return badge("active")

    @admin.display(description="disabled because")
    def disabled_reason_shown(self, row: Subscription) -> str:
        """Return the reason."""
        return short(row.disabled_reason, 500) or "-"

    @admin.display(description="custom headers (names)")
    def header_names_shown(self, row: Subscription) -> SafeString | str:
        """Return the names; the values are secret."""
        return lines([short(name) for name in row.header_names]) or "-"

    @admin.display(description="in flight")
    def in_flight(self, row: Subscription) -> object:
        """Return how many deliveries workers hold."""
        lane = _lane(row)
        return lane.in_flight if lane else "-"

    @admin.display(description="window (most at a time now)")
    def window(self, row: Subscription) -> object:
        """Return the window."""
        lane = _lane(row)
        return lane.window_size if lane else "-"

    @admin.display(description="paused until")
    def paused_until(self, row: Subscription) -> object:
        """Return the end of an open circuit's or Retry-After's pause."""
        lane = _lane(row)
        return lane.paused_until if lane else None

    @admin.display(description="failing since")
    def failing_since(self, row: Subscription) -> object:
        """Return since when nothing has succeeded."""
        lane = _lane(row)
        return lane.failing_since if lane else None

    @admin.display(description="failures in a row")
    def failures_in_row(self, row: Subscription) -> object:
        """Return how many."""
        lane = _lane(row)
        return lane.failures_in_row if lane else "-"

    @admin.display(description="last success")
    def last_success_at(self, row: Subscription) -> object:
        """Return when."""
        lane = _lane(row)
        return lane.last_success_at if lane else None

    @admin.display(description="next due")
    def next_due_at(self, row: Subscription) -> object:
        """Return when its earliest delivery may be due."""
        lane = _lane(row)
        return lane.next_due_at if lane else None

    @admin.display(description="deliveries")
    def deliveries_shown(self, row: Subscription) -> SafeString:
        """Return links to its deliveries."""
        words = ("", "pending", "failed", "held", "delivered")
        return format_html_join(
            " · ",
            "{}",
            (
                (
                    list_link(
                        "webhooks_delivery", word or "all", subscription=row.pk, **({"status": word} if word else {})
                    ),
                )
                for word in words
            ),
        )

    def search(self, request: HttpRequest, queryset: QuerySet[Any], term: str) -> QuerySet[Any]:
        """Find by id or URL."""
        row_id = parse_id(term)
        return queryset.filter(pk=row_id) if row_id else queryset.filter(url=term)

    # --- making, changing, deleting -------------------------------------------------------------------

    def save_model(self, request: HttpRequest, obj: Subscription, form: Any, change: bool) -> None:
        """Make or change it as the API does."""
        values = form.values
        if change:
            subscriptions.change(obj, values)
            return
        made, secret = subscriptions.create(obj.organization_id, **values)
        obj.__dict__.update(made.__dict__)
        obj.shown_once = secret  # type: ignore[attr-defined]

    def response_add(
        self, request: HttpRequest, obj: Subscription, post_url_continue: str | None = None
    ) -> HttpResponse:
        """Show the signing secret in this answer: it can't be read again."""
        return shown_once(self, request, obj, "subscription", obj.shown_once)  # type: ignore[attr-defined]

    def delete_model(self, request: HttpRequest, obj: Subscription) -> None:
        """Send nothing more, cancel what waits, keep the row."""
        self.audit(request, "subscription.delete", obj, {})
        subscriptions.delete(obj)

    def get_deleted_objects(self, objs: Any, request: HttpRequest) -> Any:
        """Nothing else is removed with it, so nothing needs to be listed or permitted."""
        return [short(str(row)) for row in objs], {}, set(), []

    # --- actions ------------------------------------------------------------------------------------

    def has_switch_permission(self, request: HttpRequest) -> bool:
        """Tell whether the member of staff may disable, enable and recover subscriptions."""
        return request.user.has_perm("webhooks.switch_subscription")

    def _chosen(self, request: HttpRequest, queryset: QuerySet[Subscription]) -> list[Subscription] | None:
        try:
            ids = selected_ids(queryset)
        except TooMany:
            refuse_too_many(self, request, "Choose an organisation.")
            return None
        return list(Subscription.objects.filter(pk__in=ids).order_by("pk"))

    @admin.action(description="Disable (hold what waits)", permissions=["switch"])
    def disable(self, request: HttpRequest, queryset: QuerySet[Subscription]) -> None:
        """Send nothing to the chosen ones; what waits is held and nothing is lost."""
        rows = self._chosen(request, queryset)
        if rows is None:
            return
        given = " ".join(request.POST.get("reason", "").split())[:300]
        reason = f"Disabled by {request.user.get_username()}" + (f": {given}" if given else ".")
        left: Counter[str] = Counter()
        for row in rows:
            if row.deleted_at is not None:
                left["deleted"] += 1
            elif not row.is_active:
                left["already disabled"] += 1
            else:
                self.audit(request, "subscription.disable", row, {"reason": reason})
                subscriptions.disable(row, reason)
        report(self, request, "disabled", len(rows) - sum(left.values()), dict(left))

    @admin.action(description="Enable (send what was held)", permissions=["switch"])
    def enable(self, request: HttpRequest, queryset: QuerySet[Subscription]) -> None:
        """Send to the chosen ones again, with a clean record."""
        rows = self._chosen(request, queryset)
        if rows is None:
            return
        left: Counter[str] = Counter()
        for row in rows:
            if row.deleted_at is not None:
                left["deleted"] += 1
            elif row.is_active:
                left["already enabled"] += 1
            else:
                self.audit(request, "subscription.enable", row, {})
                subscriptions.enable(row)
        report(self, request, "enabled", len(rows) - sum(left.values()), dict(left))

    @admin.action(description="Recover since… (queue what was missed)", permissions=["switch"])
    def recover(self, request: HttpRequest, queryset: QuerySet[Subscription]) -> None:
        """Queue for the chosen ones every event since a time that they want and haven't received."""
        try:
            since = moment(request.POST.get("since", "").strip())
        except ParameterError:
            self.message_user(
                request,
                "Recover needs a time in “Since”, such as 2026-01-31T12:00:00Z. Nothing was changed.",
                messages.ERROR,
            )
            return
        rows = self._chosen(request, queryset)
        if rows is None:
            return
        live = [row for row in rows if row.deleted_at is None]
        for row in live:
            with transaction.atomic():
                run = bulk.start_recovery(row, since)
                self.audit(request, "subscription.recover", row, {"since": since.isoformat(), "run": str(run.pk)})
        report(
            self, request, "being recovered; the bulk runs show how far they are", len(live),
            {"deleted": len(rows) - len(live)},
        )  # fmt: skip


def _lane(row: Subscription) -> Lane | None:
    return getattr(row, "lane", None)


# Events stand below deliveries, so what their page shows and does with these is added here.
admin.site.unregister(Event)


@admin.register(Event)
class EventWithDeliveriesAdmin(EventAdmin):
    """An event, its deliveries, and sending them again."""

    fields: ClassVar[tuple[str, ...]] = (*EventAdmin.fields[:-1], "deliveries_shown", EventAdmin.fields[-1])
    actions = ("reprocess", "replay")
    object_actions = ("reprocess", "replay")

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
        return request.user.has_perm("webhooks.repair_delivery")

    @admin.action(description="Replay all deliveries", permissions=["replay"])
    def replay(self, request: HttpRequest, queryset: QuerySet[Event]) -> None:
        """Send every settled delivery of the chosen events again."""
        try:
            deliveries = selected_ids(Delivery.objects.filter(event_id__in=selected_ids(queryset)).order_by("id"))
        except TooMany:
            refuse_too_many(self, request, USE_COMMAND)
            return
        changed, left = repair_deliveries(request, Repair.REPLAY, deliveries)
        report(self, request, "deliveries to be sent again", changed, left)
