"""The admin's pages for subscriptions."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

from django.contrib import admin
from django.contrib.admin.utils import unquote
from django.db.models import Q, QuerySet
from django.http import HttpRequest, HttpResponse

from console import credential_forms, search, secret_actions
from console.endpoint import endpoint_context
from console.filters import OrganizationFilter
from console.handshakes import shake_hands
from console.subscription_actions import SubscriptionActions
from console.subscription_columns import SubscriptionColumns
from console.subscription_forms import ONLY_OF_ENDPOINTS, SubscriptionForm
from core.ids import parse_id
from webhooks import subscriptions
from webhooks.display.formatting import short
from webhooks.inboxes import is_inbox
from webhooks.models import ENCRYPTED, DisabledCause, Subscription
from webhooks.states import DELETED, SubscriptionState, in_state, with_state


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


class DisabledCauseFilter(admin.SimpleListFilter):
    """Subscriptions that are disabled for one cause."""

    title = "disabled"
    parameter_name = "disabled"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [(cause.value, cause.label) for cause in DisabledCause]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        value = self.value()
        return queryset if value is None else queryset.filter(is_active=False, deleted_at=None, disabled_cause=value)


@admin.register(Subscription)
class SubscriptionAdmin(SubscriptionColumns, SubscriptionActions):
    """Subscriptions: their health, their settings, and the actions on them."""

    audit_noun = "subscription"
    form = SubscriptionForm
    list_display = (
        "url_display", "organization_link", "state_since_display", "cause_display", "next_attempt_display",
        "in_flight_display", "first_types_display", "created_display", "id_display",
    )  # fmt: skip
    sortable_by: ClassVar = ("created_display",)
    export_columns: ClassVar = {
        "id": "id", "created_at": "created_at", "organization": "organization__name", "url": "url",
        "event_types": "event_types", "operational": "is_operational",
        "channels": "channels", "filter": "filter", "description": "description", "uid": "uid", "metadata": "metadata",
        "is_active": "is_active",
        "disabled_at": "disabled_at", "disabled_cause": "disabled_cause", "disabled_reason": "disabled_reason",
        "failing_since": "queue__failing_since",
        "last_success_at": "queue__last_success_at", "deleted_at": "deleted_at",
    }  # fmt: skip
    list_select_related = ("organization", "queue")
    list_filter = (SubscriptionStateFilter, DisabledCauseFilter, OrganizationFilter)
    search_fields = ("id",)
    search_help_text = "An id, a uid, part of a URL, or part of an organization's name."
    autocomplete_fields = ("organization",)
    ordering = ("-id",)
    change_form_template = "console/endpoint.html"
    delete_confirmation_template = "console/delete_subscription.html"
    _form_fields = (
        "organization", "url", "event_types_text", "channels_text", "filter_text",
        "description", "format", "transform", "ordered", "ordered_attempts", "ordered_on_failure", "max_in_flight",
        "deliveries_per_second", "headers_text", "remove_headers", "handshake",
    )  # fmt: skip
    _status_fields = (
        "id", "uid_display", "metadata_display", "operational_display", "disabled_reason_display", "disabled_at",
        "header_names_display", "secrets_display", "auth_type_display", "certificate_display", "created_at",
        "updated_at", "deleted_at",
    )  # fmt: skip

    def get_queryset(self, request: HttpRequest) -> QuerySet[Subscription]:
        """Return subscriptions with their states and queues, without their secrets."""
        return with_state(
            super().get_queryset(request).select_related("organization", "queue")
            .defer(*ENCRYPTED)
        )  # fmt: skip

    def get_fieldsets(self, request: HttpRequest, obj: Subscription | None = None) -> Any:
        """Return the form and, for an existing subscription, its health and status."""
        if obj is None:
            asked = [name for name in credential_forms.FIELDS if name != "remove_certificate"]
            form_fields = [name for name in self._form_fields if name != "remove_headers"]
            return [
                (None, {"fields": ["organization", "url", "inbox_name", *form_fields[2:], "is_operational"]}),
                ("Credentials", {"fields": asked, "classes": ["collapse"]}),
            ]
        may_change = self.has_change_permission(request, obj)
        if is_inbox(obj):
            fields = [name for name in self._form_fields if name not in ONLY_OF_ENDPOINTS]
            status = [name for name in self._status_fields if name not in self._endpoint_status_fields]
            shown = ["url_full", *fields] if may_change else self._plain_inbox_fields
            return [("Inbox", {"fields": shown}), ("Status", {"fields": status})]
        editable = self._form_fields if may_change else self._plain_fields
        asked = [name for name in credential_forms.FIELDS if name not in credential_forms.ONLY_FOR_NEW]
        return [
            ("Endpoint", {"fields": editable}),
            *([("Credentials", {"fields": asked, "classes": ["collapse"]})] if may_change else []),
            ("Status", {"fields": self._status_fields}),
        ]

    # For those who may not change the subscription.
    _plain_fields = (
        "organization_link", "url_full", "event_types_display", "channels_display", "filter_display",
        "description_full", "format", "transform_full", "ordered", "ordered_attempts", "ordered_on_failure",
        "max_in_flight", "deliveries_per_second", "signature_header_full",
    )  # fmt: skip
    _plain_inbox_fields = (
        "organization_link", "url_full", "event_types_display", "channels_display", "filter_display",
        "description_full",
    )  # fmt: skip
    _endpoint_status_fields = (
        "header_names_display", "secrets_display", "auth_type_display", "certificate_display",
    )  # fmt: skip

    def get_readonly_fields(self, request: HttpRequest, obj: Subscription | None = None) -> Any:
        """Don't let users move a subscription to another organization, or change what was recorded about it."""
        if obj is None:
            return ()
        facts = (*self._status_fields, "organization", *(["url_full"] if is_inbox(obj) else []))
        return facts if self.has_change_permission(request, obj) else (*facts, *self._plain_fields)

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Don't let users change a deleted subscription."""
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

    def search(self, request: HttpRequest, queryset: QuerySet[Any], term: str) -> QuerySet[Any]:
        """Find by id, uid, part of the URL, or part of the organization's name."""
        row_id = parse_id(term)
        if row_id:
            return queryset.filter(Q(pk=row_id) | Q(uid=term))
        return queryset.filter(pk__in=search.subscriptions_named(term, search.Scope.of(request)))

    # --- creating, changing, deleting ---------------------------------------------------------------

    def changeform_view(
        self,
        request: HttpRequest,
        object_id: str | None = None,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        """Make the handshake that the form asks for before Django opens the transaction that saves it."""
        if request.method == "POST" and "handshake" in request.POST:
            request.handshaken = shake_hands(self, request, object_id)  # type: ignore[attr-defined]
        return super().changeform_view(request, object_id, form_url, extra_context)

    def get_form(
        self, request: HttpRequest, obj: Subscription | None = None, change: bool = False, **kwargs: Any
    ) -> Any:
        """Return the form's class, made for this request, with what came of its handshake."""
        form: Any = super().get_form(request, obj, change, **kwargs)
        form.handshaken = getattr(request, "handshaken", None)
        return form

    def audit_detail(self, request: HttpRequest) -> dict[str, Any]:
        """Note that the endpoint has confirmed."""
        return {"handshake": True} if getattr(request, "handshaken", None) else {}

    def save_model(self, request: HttpRequest, obj: Subscription, form: Any, change: bool) -> None:
        """Create or change the subscription as the API does."""
        values = form.values
        if change:
            subscriptions.change(obj, values)
            return
        made, secret = subscriptions.create(obj.organization_id, **values)
        obj.__dict__.update(made.__dict__)
        obj.new_secret, obj.is_own_secret = secret, "secret" in values  # type: ignore[attr-defined]

    def response_add(
        self, request: HttpRequest, obj: Subscription, post_url_continue: str | None = None
    ) -> HttpResponse:
        """Show the new signing secret, which can't be read again."""
        secret, own = obj.new_secret, obj.is_own_secret  # type: ignore[attr-defined]
        if secret:
            page = secret_actions.show_new(self, request, obj, "subscription", secret, own=own)
            if page is not None:
                return page
        return super().response_add(request, obj, post_url_continue)

    def delete_model(self, request: HttpRequest, obj: Subscription) -> None:
        """Delete the subscription as the API does."""
        subscriptions.delete(obj, audit=partial(self.audit, request, "subscription.delete", obj, {}))

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
            context["endpoint"] = {**endpoint_context(request, row), "state": self.state_display(row)}
        return super().change_view(request, object_id, form_url, context)
