"""The admin's pages for subscriptions."""

from __future__ import annotations

import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from django.conf import settings
from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.utils.html import format_html_join
from django.utils.safestring import SafeString

from console.actions import ACTION_BOUND, TooMany, refuse_too_many, report, selected_ids
from console.confirmation import Question, ReasonForm, answer, question_page, reason_of
from console.filters import OrganizationFilter
from console.formatting import cause_of, error_words, format_time, lines, list_link, short, state_badge, table
from console.host_actions import stop_or_enable
from console.model_admin import BoundedAdmin, new_secret_page
from console.recoveries import ask_and_recover
from console.runs import ask_and_run
from console.subscription_forms import SubscriptionForm
from core.ids import parse_id
from webhooks import subscriptions
from webhooks.models import BulkRun, Subscription, SubscriptionQueue
from webhooks.states import DELETED, SubscriptionState, in_state, with_state

SHOWN_ROWS = 20
# A transaction disables or enables as many: an organization has at most MAX_SUBSCRIPTIONS, by default as many.
MOST_AT_ONCE = 1000


class SubscriptionStateFilter(admin.SimpleListFilter):
    """Subscriptions in one state."""

    title = "state"
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [(state, state) for state in (*SubscriptionState.values, DELETED)]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """Keep those in the state; without one, all, so that a search finds deleted ones, too."""
        value = self.value()
        if value is None:
            return queryset
        offered = {*SubscriptionState.values, DELETED}
        return queryset.filter(in_state(value)) if value in offered else queryset.none()


@admin.register(Subscription)
class SubscriptionAdmin(BoundedAdmin):
    """Subscriptions: their health, their settings, and the actions on them."""

    audit_noun = "subscription"
    form = SubscriptionForm
    list_display = (
        "url_display", "state_display", "state_since_display", "cause_display", "next_attempt_display",
        "organization_link", "event_types_display", "description_display",
    )  # fmt: skip
    list_select_related = ("organization", "queue")
    list_filter = (SubscriptionStateFilter, OrganizationFilter)
    search_fields = ("id",)
    search_help_text = "Search by a subscription's exact id or URL."
    autocomplete_fields = ("organization",)
    ordering = ("-id",)
    actions = ("retry_failed", "disable", "enable", "recover", "stop_host", "enable_host")
    object_actions = actions
    delete_confirmation_template = "console/delete_subscription.html"
    _form_fields = (
        "organization", "url", "event_types_text", "description", "max_in_flight", "deliveries_per_second",
        "headers_text", "remove_headers",
    )  # fmt: skip
    _status_fields = (
        "id", "disabled_reason_display", "disabled_at", "header_names_display",
        "previous_secrets_display", "created_at", "updated_at", "deleted_at",
    )  # fmt: skip
    _queue_fields = (
        "state_display", "state_since_display", "cause_display", "last_success_at", "last_failure_at",
        "last_error_display", "next_attempt_display", "breaker_display", "paused_until", "consecutive_failures",
        "in_flight", "concurrency_window", "has_backlog",
    )  # fmt: skip

    def get_queryset(self, request: HttpRequest) -> QuerySet[Subscription]:
        """Return subscriptions with their states and queues, without their secrets."""
        return with_state(
            super().get_queryset(request).select_related("organization", "queue")
            .defer("encrypted_headers", "encrypted_secret", "encrypted_previous_secrets")
        )  # fmt: skip

    def get_fieldsets(self, request: HttpRequest, obj: Subscription | None = None) -> Any:
        """Return the form and, for an existing subscription, its health and status."""
        if obj is None:
            return [(None, {"fields": [name for name in self._form_fields if name != "remove_headers"]})]
        editable = self._form_fields if self.has_change_permission(request, obj) else self._plain_fields
        return [
            ("Health", {"fields": (*self._queue_fields, "deliveries_display")}),
            ("Endpoint", {"fields": editable}),
            ("Status", {"fields": self._status_fields}),
        ]

    # For those who may not change the subscription.
    _plain_fields = (
        "organization_link", "url_full", "event_types_display", "description_full", "max_in_flight",
        "deliveries_per_second",
    )  # fmt: skip

    def get_readonly_fields(self, request: HttpRequest, obj: Subscription | None = None) -> Any:
        """Let nobody move a subscription to another organization, or change what was recorded about it."""
        if obj is None:
            return ()
        facts = (*self._queue_fields, "deliveries_display", *self._status_fields, "organization")
        return facts if self.has_change_permission(request, obj) else (*facts, *self._plain_fields)

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Let nobody change a deleted subscription."""
        return super().has_change_permission(request, obj) and (obj is None or obj.deleted_at is None)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Allow deletion, which keeps the row and marks it as deleted."""
        codename = f"{self.opts.app_label}.delete_{self.opts.model_name}"
        return request.user.has_perm(codename) and (obj is None or obj.deleted_at is None)

    def get_actions(self, request: HttpRequest) -> dict[str, Any]:
        """Leave out Django's own deletion, which would remove rows."""
        found = super().get_actions(request)
        found.pop("delete_selected", None)
        return found

    # --- what is shown ------------------------------------------------------------------------------

    @admin.display(description="URL")
    def url_display(self, row: Subscription) -> str:
        return short(row.url)

    @admin.display(description="URL")
    def url_full(self, row: Subscription) -> str:
        return short(row.url, 2048)

    @admin.display(description="description")
    def description_display(self, row: Subscription) -> str:
        return short(row.description, 60)

    @admin.display(description="description")
    def description_full(self, row: Subscription) -> str:
        return short(row.description, 500)

    @admin.display(description="event types")
    def event_types_display(self, row: Subscription) -> SafeString:
        some = [short(pattern) for pattern in row.event_types[:10]]
        return lines(some + (["…"] if len(row.event_types) > 10 else []))

    @admin.display(description="state")
    def state_display(self, row: Any) -> SafeString:
        return state_badge(row.state)

    @admin.display(description="since")
    def state_since_display(self, row: Any) -> str:
        return format_time(row.state_since)

    @admin.display(description="cause")
    def cause_display(self, row: Any) -> str:
        return cause_of(row) or "-"

    @admin.display(description="circuit breaker")
    def breaker_display(self, row: Any) -> str:
        return str(row.breaker)

    @admin.display(description="last error")
    def last_error_display(self, row: Any) -> str:
        return error_words(row.last_error, row.last_status_code) or "-"

    @admin.display(description="last failure")
    def last_failure_at(self, row: Any) -> str:
        return format_time(row.last_failure_at)

    @admin.display(description="next attempt")
    def next_attempt_display(self, row: Any) -> str:
        return format_time(row.next_attempt_at)

    @admin.display(description="disabled reason")
    def disabled_reason_display(self, row: Subscription) -> str:
        return short(row.disabled_reason, 500) or "-"

    @admin.display(description="custom headers")
    def header_names_display(self, row: Subscription) -> SafeString | str:
        return lines([short(name) for name in row.header_names]) or "-"

    @admin.display(description="earlier secrets sign until")
    def previous_secrets_display(self, row: Subscription) -> SafeString | str:
        return lines([format_time(end) for end in subscriptions.ends_of_previous_secrets(row)]) or "-"

    @admin.display(description="in flight")
    def in_flight(self, row: Subscription) -> object:
        queue = _queue(row)
        return queue.in_flight if queue else "-"

    @admin.display(description="concurrency window")
    def concurrency_window(self, row: Subscription) -> object:
        queue = _queue(row)
        return queue.concurrency_window if queue else "-"

    @admin.display(description="has backlog", boolean=True)
    def has_backlog(self, row: Subscription) -> bool:
        queue = _queue(row)
        return bool(queue and queue.has_backlog)

    @admin.display(description="paused until")
    def paused_until(self, row: Any) -> str:
        return format_time(row.paused_until)

    @admin.display(description="consecutive failures")
    def consecutive_failures(self, row: Subscription) -> object:
        queue = _queue(row)
        return queue.consecutive_failures if queue else "-"

    @admin.display(description="last success")
    def last_success_at(self, row: Subscription) -> str:
        queue = _queue(row)
        return format_time(queue.last_success_at if queue else None)

    @admin.display(description="deliveries")
    def deliveries_display(self, row: Subscription) -> SafeString:
        statuses = ("", "pending", "retrying", "failed", "held", "delivered")
        return format_html_join(
            " · ",
            "{}",
            (
                (
                    list_link(
                        "webhooks_delivery",
                        status or "all",
                        subscription=row.pk,
                        **({"status": status} if status else {}),
                    ),
                )
                for status in statuses
            ),
        )

    def search(self, request: HttpRequest, queryset: QuerySet[Any], term: str) -> QuerySet[Any]:
        """Find by id or URL."""
        row_id = parse_id(term)
        return queryset.filter(pk=row_id) if row_id else queryset.filter(url=term)

    # --- creating, changing, deleting ---------------------------------------------------------------

    def save_model(self, request: HttpRequest, obj: Subscription, form: Any, change: bool) -> None:
        """Create or change the subscription as the API does."""
        values = form.values
        if change:
            subscriptions.change(obj, values)
            return
        made, secret = subscriptions.create(obj.organization_id, **values)
        obj.__dict__.update(made.__dict__)
        obj.new_secret = secret  # type: ignore[attr-defined]

    def response_add(
        self, request: HttpRequest, obj: Subscription, post_url_continue: str | None = None
    ) -> HttpResponse:
        """Show the new signing secret, which can't be read again."""
        return new_secret_page(self, request, obj, "subscription", obj.new_secret)  # type: ignore[attr-defined]

    def delete_model(self, request: HttpRequest, obj: Subscription) -> None:
        """Delete the subscription as the API does."""
        subscriptions.delete(obj, audit=self._auditor(request, "subscription.delete", obj))

    def get_deleted_objects(self, objs: Any, request: HttpRequest) -> Any:
        """Return only the subscription itself: nothing else is removed with it."""
        return [short(str(row)) for row in objs], {}, set(), []

    # --- actions ------------------------------------------------------------------------------------

    def has_switch_permission(self, request: HttpRequest) -> bool:
        """Whether the user may disable, enable and recover subscriptions, for `permissions=["switch"]`."""
        return request.user.has_perm("webhooks.switch_subscription")

    def has_manage_permission(self, request: HttpRequest) -> bool:
        """Whether the user may retry deliveries, for `permissions=["manage"]`."""
        return request.user.has_perm("webhooks.manage_delivery")

    def _auditor(
        self, request: HttpRequest, action: str, row: Subscription, detail: dict[str, Any] | None = None
    ) -> Callable[[], None]:
        """Return a function that writes the audit entry for `action`, for the transaction that makes the change."""
        return partial(self.audit, request, action, row, detail or {})

    def _selected(self, request: HttpRequest, queryset: QuerySet[Subscription]) -> list[Subscription] | None:
        try:
            ids = selected_ids(queryset)
        except TooMany:
            refuse_too_many(self, request, "Filter by organization.")
            return None
        return list(Subscription.objects.filter(pk__in=ids).select_related("organization").order_by("pk"))

    @admin.action(description="Retry failed deliveries", permissions=["manage"])
    def retry_failed(self, request: HttpRequest, queryset: QuerySet[Subscription]) -> HttpResponse | None:
        """Make one more attempt of each delivery to the selected subscription that failed or is retrying."""
        ids = list(queryset.values_list("pk", flat=True)[:2])
        if len(ids) != 1:
            self.message_user(request, "Select one subscription at a time. Nothing was changed.", messages.ERROR)
            return None
        return ask_and_run(self, request, BulkRun.Kind.RETRY, {"subscription": ids[0]})

    @admin.action(description="Disable", permissions=["switch"])
    def disable(self, request: HttpRequest, queryset: QuerySet[Subscription]) -> HttpResponse | None:
        """Stop sending to the selected subscriptions, for a reason; their deliveries are held."""
        rows = self._selected(request, queryset)
        if rows is None:
            return None
        skipped = _count_skipped(rows, "already disabled", lambda row: row.is_active)
        able = len(rows) - sum(skipped.values())
        form = answer(request, ReasonForm)
        if able and not form.is_valid():
            what = f"{able:,} subscription{'' if able == 1 else 's'}"
            texts = [f"Nothing more is sent to {what}; what waits for {'it' if able == 1 else 'them'} is held until "
                     f"{'it is' if able == 1 else 'they are'} enabled again."]  # fmt: skip
            if settings.HELD_RETENTION_DAYS:
                texts.append(f"What is held for more than {settings.HELD_RETENTION_DAYS} days is cancelled.")
            shown = table(("organization", "endpoint"), [
                (short(row.organization.name, 60), short(row.url, 100)) for row in rows[:SHOWN_ROWS] if row.is_active
            ])  # fmt: skip
            question = Question(f"Disable {what}?", f"Disable {what}", texts, [("Subscriptions", shown)])
            return question_page(self, request, form, question)
        done = 0
        if able:
            reason = reason_of(form)
            by = f"Disabled by {request.user.get_username()}: {reason}"
            write = partial(self.audit_many, request, "subscription.disable", detail={}, reason=reason)
            for ids in _by_organization(rows):
                done += len(subscriptions.disable_many(ids, by, audit=lambda changed: write(rows=changed)))
        report(self, request, "disabled", done, dict(skipped))
        return None

    @admin.action(description="Enable", permissions=["switch"])
    def enable(self, request: HttpRequest, queryset: QuerySet[Subscription]) -> None:
        """Send to the selected subscriptions again, what was held first."""
        rows = self._selected(request, queryset)
        if rows is None:
            return
        skipped = _count_skipped(rows, "already enabled", lambda row: not row.is_active)
        write = partial(self.audit_many, request, "subscription.enable", detail={})
        done = 0
        for ids in _by_organization(rows):
            done += len(subscriptions.enable_many(ids, audit=lambda changed: write(rows=changed)))
        report(self, request, "enabled", done, dict(skipped))

    @admin.action(description="Recover missed events…", permissions=["switch"])
    def recover(self, request: HttpRequest, queryset: QuerySet[Subscription]) -> HttpResponse | None:
        """Queue every event since a time that matches the selected subscription and wasn't delivered to it."""
        rows = self._selected(request, queryset)
        if rows is None:
            return None
        if len(rows) != 1 or rows[0].deleted_at is not None:
            text = "Select one subscription at a time that isn't deleted. Nothing was changed."
            self.message_user(request, text, messages.ERROR)
            return None
        return ask_and_recover(self, request, rows[0])

    @admin.action(description="Stop this host…", permissions=["switch"])
    def stop_host(self, request: HttpRequest, queryset: QuerySet[Subscription]) -> HttpResponse | None:
        """Disable every subscription that leads to the hosts of the selected ones."""
        chosen = queryset.values_list("host", "organization_id")[:ACTION_BOUND]
        return stop_or_enable(self, request, chosen, stop=True)

    @admin.action(description="Enable this host…", permissions=["switch"])
    def enable_host(self, request: HttpRequest, queryset: QuerySet[Subscription]) -> HttpResponse | None:
        """Enable again what was stopped with the hosts of the selected subscriptions."""
        chosen = queryset.values_list("host", "organization_id")[:ACTION_BOUND]
        return stop_or_enable(self, request, chosen, stop=False)


def _count_skipped(rows: list[Subscription], why: str, fits: Callable[[Subscription], bool]) -> Counter[str]:
    skipped: Counter[str] = Counter()
    for row in rows:
        if row.deleted_at is not None:
            skipped["deleted"] += 1
        elif not fits(row):
            skipped[why] += 1
    return skipped


def _by_organization(rows: list[Subscription]) -> Iterator[list[uuid.UUID]]:
    """Yield the ids of each organization's subscriptions, a thousand at the most: each part is one transaction."""
    owned: dict[uuid.UUID, list[uuid.UUID]] = defaultdict(list)
    for row in rows:
        owned[row.organization_id].append(row.pk)
    for ids in owned.values():
        for start in range(0, len(ids), MOST_AT_ONCE):
            yield ids[start : start + MOST_AT_ONCE]


def _queue(row: Subscription) -> SubscriptionQueue | None:
    return getattr(row, "queue", None)
