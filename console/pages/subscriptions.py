"""The admin's pages for subscriptions."""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

from django.contrib import admin, messages
from django.contrib.admin.utils import unquote
from django.db import transaction
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.utils.safestring import SafeString

from console import search
from console.actions import TooMany, refuse_too_many, report, selected_ids
from console.endpoint import endpoint_context
from console.filters import OrganizationFilter
from console.formatting import badge, format_time, lines, short, short_id
from console.model_admin import BoundedAdmin, new_secret_page
from console.subscription_forms import SubscriptionActionForm, SubscriptionForm
from core.ids import parse_id
from core.query import ParameterError, moment
from webhooks import endpoint_test, subscriptions
from webhooks.models import Subscription, SubscriptionQueue
from webhooks.upkeep import recovery


class SubscriptionStateFilter(admin.SimpleListFilter):
    """Subscriptions with one status."""

    title = "status"
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("active", "active"), ("disabled", "disabled"), ("failing", "failing"), ("deleted", "deleted")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """Keep those with the status; without one, all, so that a search finds deleted ones, too."""
        value = self.value()
        if value == "deleted":
            return queryset.filter(deleted_at__isnull=False)
        not_deleted = queryset.filter(deleted_at=None)
        if value == "active":
            return not_deleted.filter(is_active=True)
        if value == "disabled":
            return not_deleted.filter(is_active=False)
        if value == "failing":
            return not_deleted.filter(queue__failing_since__isnull=False)
        return queryset.none() if value is not None else queryset


@admin.register(Subscription)
class SubscriptionAdmin(BoundedAdmin):
    """Subscriptions: their health, their settings, and the actions on them."""

    audit_noun = "subscription"
    form = SubscriptionForm
    action_form = SubscriptionActionForm
    list_display = (
        "url_display", "organization_link", "status_display", "failing_since", "event_types_display", "in_flight",
        "description_display", "created_display", "id_display",
    )  # fmt: skip
    sortable_by: ClassVar = ("created_display",)
    export_columns: ClassVar = {
        "id": "id", "created_at": "created_at", "organization": "organization__name", "url": "url",
        "event_types": "event_types", "description": "description", "is_active": "is_active",
        "disabled_at": "disabled_at", "disabled_reason": "disabled_reason", "failing_since": "queue__failing_since",
        "last_success_at": "queue__last_success_at", "deleted_at": "deleted_at",
    }  # fmt: skip
    list_select_related = ("organization", "queue")
    list_filter = (SubscriptionStateFilter, OrganizationFilter)
    search_fields = ("id",)
    search_help_text = "An id, part of a URL, or part of an organization's name."
    autocomplete_fields = ("organization",)
    ordering = ("-id",)
    actions = ("disable", "enable", "recover", "send_test", "rotate_secret")
    object_actions = ("send_test", "disable", "enable", "rotate_secret", "recover")
    action_of_field: ClassVar = {"reason": "disable", "since": "recover", "overlap": "rotate_secret"}
    change_form_template = "console/endpoint.html"
    delete_confirmation_template = "console/delete_subscription.html"
    _form_fields = (
        "organization", "url", "event_types_text", "description", "max_in_flight", "deliveries_per_second",
        "headers_text", "remove_headers",
    )  # fmt: skip
    _status_fields = (
        "id", "status_display", "disabled_reason_display", "disabled_at", "header_names_display",
        "previous_secrets_display", "created_at", "updated_at", "deleted_at",
    )  # fmt: skip

    def get_queryset(self, request: HttpRequest) -> QuerySet[Subscription]:
        """Return subscriptions with their queues, without their secrets."""
        return (
            super().get_queryset(request).select_related("organization", "queue")
            .defer("encrypted_headers", "encrypted_secret", "encrypted_previous_secrets")
        )  # fmt: skip

    def get_fieldsets(self, request: HttpRequest, obj: Subscription | None = None) -> Any:
        """Return the form and, for an existing subscription, its health and status."""
        if obj is None:
            return [(None, {"fields": [name for name in self._form_fields if name != "remove_headers"]})]
        editable = self._form_fields if self.has_change_permission(request, obj) else self._plain_fields
        return [
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
        facts = (*self._status_fields, "organization")
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

    @admin.display(description="status")
    def status_display(self, row: Subscription) -> SafeString:
        if row.deleted_at is not None:
            return badge("cancelled", "deleted")
        if not row.is_active:
            return badge("held", "disabled")
        queue = _queue(row)
        if queue is not None and queue.failing_since is not None:
            return badge("failed", "failing")
        return badge("active")

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

    @admin.display(description="failing since")
    def failing_since(self, row: Subscription) -> str:
        queue = _queue(row)
        return format_time(queue.failing_since if queue else None)

    def search(self, request: HttpRequest, queryset: QuerySet[Any], term: str) -> QuerySet[Any]:
        """Find by id, part of the URL, or part of the organization's name."""
        row_id = parse_id(term)
        if row_id:
            return queryset.filter(pk=row_id)
        return queryset.filter(pk__in=search.subscriptions_named(term, search.Scope.of(request)))

    @admin.display(description="created", ordering="id")
    def created_display(self, row: Subscription) -> str:
        return format_time(row.created_at)

    @admin.display(description="id")
    def id_display(self, row: Subscription) -> SafeString:
        return short_id(row.pk)

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

    def change_view(
        self, request: HttpRequest, object_id: str, form_url: str = "", extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """Show the subscription with the figures of its endpoint."""
        row = self.get_object(request, unquote(object_id)) if request.method == "GET" else None
        context = dict(extra_context or {})
        if row is not None:
            context["endpoint"] = {**endpoint_context(request, row), "state": self.status_display(row)}
        return super().change_view(request, object_id, form_url, context)

    # --- actions ------------------------------------------------------------------------------------

    def fits(self, action: str, row: Any) -> bool:
        """Offer nothing for a deleted subscription, and for others what changes something."""
        if row.deleted_at is not None:
            return False
        queue = _queue(row)
        failing = queue is not None and queue.failing_since is not None
        # Enabling one that fails closes its circuit breaker.
        return bool({"disable": row.is_active, "enable": not row.is_active or failing}.get(action, True))

    def has_rotate_permission(self, request: HttpRequest) -> bool:
        """Whether the user may give a subscription a new secret, for `permissions=["rotate"]`."""
        return request.user.has_perm("webhooks.change_subscription")

    def has_switch_permission(self, request: HttpRequest) -> bool:
        """Whether the user may disable, enable and recover subscriptions, for `permissions=["switch"]`."""
        return request.user.has_perm("webhooks.switch_subscription")

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
        return list(Subscription.objects.filter(pk__in=ids).order_by("pk"))

    @admin.action(description="Disable", permissions=["switch"])
    def disable(self, request: HttpRequest, queryset: QuerySet[Subscription]) -> None:
        """Stop sending to the selected subscriptions; their deliveries are held."""
        rows = self._selected(request, queryset)
        if rows is None:
            return
        given = " ".join(request.POST.get("reason", "").split())[:300]
        reason = f"Disabled by {request.user.get_username()}" + (f": {given}" if given else ".")
        skipped: Counter[str] = Counter()
        for row in rows:
            if row.deleted_at is not None:
                skipped["deleted"] += 1
            elif not row.is_active:
                skipped["already disabled"] += 1
            else:
                entry = self._auditor(request, "subscription.disable", row, {"reason": reason})
                subscriptions.disable(row, reason, audit=entry)
        report(self, request, "disabled", len(rows) - sum(skipped.values()), dict(skipped))

    @admin.action(description="Enable", permissions=["switch"])
    def enable(self, request: HttpRequest, queryset: QuerySet[Subscription]) -> None:
        """Send to the selected subscriptions again, what was held first."""
        rows = self._selected(request, queryset)
        if rows is None:
            return
        skipped: Counter[str] = Counter()
        for row in rows:
            if row.deleted_at is not None:
                skipped["deleted"] += 1
            elif row.is_active:
                skipped["already enabled"] += 1
            else:
                subscriptions.enable(row, audit=self._auditor(request, "subscription.enable", row))
        report(self, request, "enabled", len(rows) - sum(skipped.values()), dict(skipped))

    @admin.action(description="Recover missed events", permissions=["switch"])
    def recover(self, request: HttpRequest, queryset: QuerySet[Subscription]) -> None:
        """Queue every event since a time that matches the selected subscriptions and wasn't delivered to them."""
        try:
            since = moment(request.POST.get("since", "").strip())
        except ParameterError:
            self.message_user(
                request,
                "Enter a time to recover events since, such as 2026-01-31T12:00:00Z. Nothing was changed.",
                messages.ERROR,
            )
            return
        rows = self._selected(request, queryset)
        if rows is None:
            return
        recoverable = [row for row in rows if row.deleted_at is None]
        for row in recoverable:
            with transaction.atomic():
                run = recovery.start(row, since)
                self.audit(request, "subscription.recover", row, {"since": since.isoformat(), "run": str(run.pk)})
        report(
            self, request, "being recovered (see the bulk runs for progress)", len(recoverable),
            {"deleted": len(rows) - len(recoverable)},
        )  # fmt: skip

    def _only_one(self, request: HttpRequest, queryset: QuerySet[Subscription]) -> Subscription | None:
        """Return the selected subscription; tell the user if it isn't one that exists."""
        rows = list(queryset[:2])
        if len(rows) != 1 or rows[0].deleted_at is not None:
            self.message_user(request, "Select one subscription that isn't deleted.", messages.ERROR)
            return None
        return Subscription.objects.get(pk=rows[0].pk)

    @admin.action(description="Send a test event", permissions=["switch"])
    def send_test(self, request: HttpRequest, queryset: QuerySet[Subscription]) -> None:
        """Send a test event to the endpoint and show what came back."""
        row = self._only_one(request, queryset)
        if row is None:
            return
        try:
            result = endpoint_test.send_test_event(row)
        except endpoint_test.TooManyTests as error:
            wait = f"{error.sentence} Wait {error.retry_after} seconds."
            self.message_user(request, wait, messages.ERROR)
            return
        self.audit(request, "subscription.test", row, result.for_audit())
        body = short(result.outcome.body, 200)
        said = f"Test event {result.event_id}: {result.summary}" + (f" Response: {body}" if body else "")
        self.message_user(request, said, messages.SUCCESS if result.outcome.succeeded else messages.WARNING)

    @admin.action(description="Rotate the secret", permissions=["rotate"])
    def rotate_secret(self, request: HttpRequest, queryset: QuerySet[Subscription]) -> HttpResponse | None:
        """Replace the signing secret and show the new one, which can't be read again."""
        row = self._only_one(request, queryset)
        given = request.POST.get("overlap", "")
        if row is None:
            return None
        if given not in dict(SubscriptionActionForm.base_fields["overlap"].choices):  # type: ignore[attr-defined]
            self.message_user(request, "Say how long the old secret signs. Nothing was changed.", messages.ERROR)
            return None
        overlap = datetime.timedelta(seconds=int(given))
        try:
            with transaction.atomic():
                secret = subscriptions.rotate_secret(row, overlap)
                self.audit(request, "subscription.rotate_secret", row, {"overlap_seconds": int(given)})
        except subscriptions.TooManySecrets as error:
            self.message_user(
                request,
                f"{subscriptions.MAX_PREVIOUS_SECRETS} earlier secrets still sign, the first of them until "
                f"{format_time(error.ends_at)}. Nothing was changed.",
                messages.ERROR,
            )
            return None
        return new_secret_page(self, request, row, "signing secret", secret)


def _queue(row: Subscription) -> SubscriptionQueue | None:
    return getattr(row, "queue", None)
