"""The admin's pages for subscriptions."""

from __future__ import annotations

from collections import Counter
from typing import Any

from django.contrib import admin, messages
from django.db import transaction
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.utils.html import format_html_join
from django.utils.safestring import SafeString

from console.actions import TooMany, refuse_too_many, report, selected_ids
from console.formatting import badge, lines, list_link, short
from console.model_admin import shown_once
from console.pages.delivery_formatting import time_shown
from console.pages.subscription_forms import SubscriptionActionForm, SubscriptionForm
from console.tenant_admin import OrganizationFilter, TenantAdmin
from core.ids import parse_id
from core.query import ParameterError, moment
from webhooks import subscriptions
from webhooks.models import Subscription, SubscriptionQueue
from webhooks.upkeep import recovery


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
            return live.filter(queue__failing_since__isnull=False)
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
    list_select_related = ("organization", "queue")
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
    _queue_fields = (
        "in_flight", "window", "busy", "paused_until", "failing_since", "consecutive_failures", "last_success_at",
        "next_due_at",
    )  # fmt: skip

    def get_queryset(self, request: HttpRequest) -> QuerySet[Subscription]:
        """Return subscriptions with their queues and without what is secret."""
        return (
            super().get_queryset(request).select_related("organization", "queue")
            .defer("encrypted_headers", "encrypted_secret", "encrypted_previous_secret")
        )  # fmt: skip

    def get_fieldsets(self, request: HttpRequest, obj: Subscription | None = None) -> Any:
        """Return the form, and of a subscription that exists how it does."""
        if obj is None:
            return [(None, {"fields": [name for name in self._form_fields if name != "remove_headers"]})]
        editable = self._form_fields if self.has_change_permission(request, obj) else self._plain_fields
        return [
            ("How it does", {"fields": (*self._queue_fields, "deliveries_shown")}),
            ("Receiver", {"fields": editable}),
            ("State", {"fields": self._state_fields}),
        ]

    _plain_fields = (
        "organization_link", "url_full", "event_types_shown", "description_full", "max_in_flight",
        "deliveries_per_second",
    )  # fmt: skip

    def get_readonly_fields(self, request: HttpRequest, obj: Subscription | None = None) -> Any:
        """A subscription stays with its organization; what happened to it is a fact."""
        if obj is None:
            return ()
        facts = (*self._queue_fields, "deliveries_shown", *self._state_fields, "organization")
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
        queue = _queue(row)
        if queue is not None and queue.failing_since is not None:
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
        queue = _queue(row)
        return queue.in_flight if queue else "-"

    @admin.display(description="window (most at a time now)")
    def window(self, row: Subscription) -> object:
        """Return the window."""
        queue = _queue(row)
        return queue.concurrency_window if queue else "-"

    @admin.display(description="busy (more may be due than one claim takes)", boolean=True)
    def busy(self, row: Subscription) -> bool:
        """Return whether a worker's second process sends for it."""
        queue = _queue(row)
        return bool(queue and queue.has_backlog)

    @admin.display(description="paused until")
    def paused_until(self, row: Subscription) -> str:
        """Return the end of an open circuit's or Retry-After's pause."""
        queue = _queue(row)
        return time_shown(queue.paused_until if queue else None)

    @admin.display(description="failing since")
    def failing_since(self, row: Subscription) -> str:
        """Return since when nothing has succeeded."""
        queue = _queue(row)
        return time_shown(queue.failing_since if queue else None)

    @admin.display(description="failures in a row")
    def consecutive_failures(self, row: Subscription) -> object:
        """Return how many."""
        queue = _queue(row)
        return queue.consecutive_failures if queue else "-"

    @admin.display(description="last success")
    def last_success_at(self, row: Subscription) -> str:
        """Return when."""
        queue = _queue(row)
        return time_shown(queue.last_success_at if queue else None)

    @admin.display(description="next due")
    def next_due_at(self, row: Subscription) -> str:
        """Return when its earliest delivery may be due."""
        queue = _queue(row)
        return time_shown(queue.next_due_at if queue else None)

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
            refuse_too_many(self, request, "Choose an organization.")
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
                run = recovery.start(row, since)
                self.audit(request, "subscription.recover", row, {"since": since.isoformat(), "run": str(run.pk)})
        report(
            self, request, "being recovered; the bulk runs show how far they are", len(live),
            {"deleted": len(rows) - len(live)},
        )  # fmt: skip


def _queue(row: Subscription) -> SubscriptionQueue | None:
    return getattr(row, "queue", None)
