"""The admin's pages for subscriptions."""

from __future__ import annotations

import datetime
import json
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, ClassVar

from django import forms
from django.conf import settings
from django.contrib import admin, messages
from django.contrib.admin.utils import flatten_fieldsets, unquote
from django.db import transaction
from django.db.models import Q, QuerySet
from django.http import HttpRequest, HttpResponse
from django.utils import timezone
from django.utils.safestring import SafeString

from console import credential_forms, search, secret_actions
from console.actions import ACTION_BOUND, TooMany, refuse_too_many, report, selected_ids
from console.confirmation import OptionalReasonForm, Question, ReasonForm, answer, question_page, reason_of
from console.endpoint import endpoint_context
from console.filters import OrganizationFilter
from console.host_actions import stop_or_enable
from console.model_admin import BoundedAdmin
from console.recoveries import ask_and_recover
from console.runs import ask_and_run
from console.subscription_forms import ONLY_OF_ENDPOINTS, Handshake, SubscriptionForm
from core.ids import parse_id
from webhooks import endpoint_test, handshake, probes, signing_secrets, subscriptions
from webhooks.display.formatting import badge, cause_of, format_time, lines, short, short_id, table, with_note
from webhooks.inboxes import is_inbox
from webhooks.models import ENCRYPTED, BulkRun, Subscription, SubscriptionQueue
from webhooks.states import DELETED, SubscriptionState, in_state, with_state

SHOWN_ROWS = 20
# A transaction disables or enables as many: an organization has at most MAX_SUBSCRIPTIONS, by default as many.
MOST_AT_ONCE = 1000


class RotationForm(OptionalReasonForm):
    """The confirmation of a new signing secret.  overlap: how long, in seconds, the old one signs, too."""

    overlap = forms.ChoiceField(
        label="The old secret signs for",
        choices=[("86400", "1 more day"), ("3600", "1 more hour"), ("604800", "7 more days"), ("0", "no longer")],
    )
    field_order = ("overlap", "reason", "seen_at")


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
        "url_display", "organization_link", "state_since_display", "cause_display", "next_attempt_display",
        "in_flight_display", "first_types_display", "created_display", "id_display",
    )  # fmt: skip
    sortable_by: ClassVar = ("created_display",)
    export_columns: ClassVar = {
        "id": "id", "created_at": "created_at", "organization": "organization__name", "url": "url",
        "event_types": "event_types", "operational": "is_operational",
        "channels": "channels", "filter": "filter", "description": "description", "uid": "uid", "metadata": "metadata",
        "is_active": "is_active",
        "disabled_at": "disabled_at", "disabled_reason": "disabled_reason", "failing_since": "queue__failing_since",
        "last_success_at": "queue__last_success_at", "deleted_at": "deleted_at",
    }  # fmt: skip
    list_select_related = ("organization", "queue")
    list_filter = (SubscriptionStateFilter, OrganizationFilter)
    search_fields = ("id",)
    search_help_text = "An id, a uid, part of a URL, or part of an organization's name."
    autocomplete_fields = ("organization",)
    ordering = ("-id",)
    actions = (
        "retry_failed", "disable", "enable", "recover", "send_test", "rotate_secret", "add_secret", "remove_secret",
        "stop_host", "enable_host",
    )  # fmt: skip
    object_actions = (
        "send_test", "retry_failed", "recover", "disable", "enable", "rotate_secret", "add_secret", "remove_secret",
        "stop_host", "enable_host",
    )  # fmt: skip
    dangerous_actions = ("disable", "remove_secret", "stop_host")
    # An inbox has neither secret nor host, and nothing can be sent to it.
    _endpoint_actions = ("send_test", "rotate_secret", "add_secret", "remove_secret", "stop_host", "enable_host")
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
        """Let nobody move a subscription to another organization, or change what was recorded about it."""
        if obj is None:
            return ()
        facts = (*self._status_fields, "organization", *(["url_full"] if is_inbox(obj) else []))
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
    def url_display(self, row: Subscription) -> SafeString:
        return with_note(short(row.url), " · ".join(short(one, 60) for one in (row.uid, row.description) if one))

    @admin.display(description="URL")
    def url_full(self, row: Subscription) -> str:
        return short(row.url, 2048)

    @admin.display(description="description")
    def description_full(self, row: Subscription) -> str:
        return short(row.description, 500)

    @admin.display(description="uid")
    def uid_display(self, row: Subscription) -> str:
        return short(row.uid or "-", 255)

    @admin.display(description="metadata")
    def metadata_display(self, row: Subscription) -> SafeString | str:
        return lines([short(f"{name}: {value}", 610) for name, value in row.metadata.items()]) or "-"

    @admin.display(description="transform")
    def transform_full(self, row: Subscription) -> str:
        return short(row.transform, 4096) or "-"

    @admin.display(description="channels")
    def channels_display(self, row: Subscription) -> str:
        return short(", ".join(row.channels), 1500) or "-"

    @admin.display(description="filter")
    def filter_display(self, row: Subscription) -> str:
        return "-" if row.filter is None else short(json.dumps(row.filter, ensure_ascii=False), 8192)

    @admin.display(description="event types")
    def event_types_display(self, row: Subscription) -> SafeString:
        some = (["operational events:"] if row.is_operational else []) + [short(one) for one in row.event_types[:10]]
        return lines(some + (["…"] if len(row.event_types) > 10 else []))

    @admin.display(description="event types")
    def first_types_display(self, row: Subscription) -> SafeString:
        """For the list: as many as don't make the row tall."""
        some = (["operational events:"] if row.is_operational else []) + [short(one, 40) for one in row.event_types[:3]]
        more = len(row.event_types) - 3
        return lines(some + ([f"and {more} more"] if more > 0 else []))

    @admin.display(description="operational events")
    def operational_display(self, row: Subscription) -> str:
        return "yes, and no others" if row.is_operational else "no"

    @admin.display(description="state")
    def state_display(self, row: Any) -> SafeString:
        return badge(row.state)

    @admin.display(description="state, since")
    def state_since_display(self, row: Any) -> SafeString:
        return with_note(badge(row.state), format_time(row.state_since))

    @admin.display(description="next attempt")
    def next_attempt_display(self, row: Any) -> str:
        return format_time(row.next_attempt_at)

    @admin.display(description="in flight")
    def in_flight_display(self, row: Subscription) -> int | str:
        queue: SubscriptionQueue | None = getattr(row, "queue", None)
        return "-" if queue is None else queue.in_flight

    @admin.display(description="cause")
    def cause_display(self, row: Any) -> str:
        return cause_of(row) or "-"

    @admin.display(description="disabled reason")
    def disabled_reason_display(self, row: Subscription) -> str:
        return short(row.disabled_reason, 500) or "-"

    @admin.display(description="custom headers")
    def header_names_display(self, row: Subscription) -> SafeString | str:
        return lines([short(name) for name in row.header_names]) or "-"

    @admin.display(description="secrets that sign")
    def secrets_display(self, row: Subscription) -> SafeString | str:
        stored = signing_secrets.stored_secrets(Subscription.objects.only(*signing_secrets.COLUMNS).get(pk=row.pk))
        return secret_actions.secrets_table(stored) if stored else "-"

    @admin.display(description="authorization")
    def auth_type_display(self, row: Subscription) -> str:
        return short(row.auth_type) or "-"

    @admin.display(description="second signature header")
    def signature_header_full(self, row: Subscription) -> str:
        return short(row.signature_header) or "-"

    @admin.display(description="client certificate")
    def certificate_display(self, row: Subscription) -> SafeString | str:
        details = row.client_certificate_details
        if not details:
            return "-"
        ends = datetime.datetime.fromisoformat(details["expires_at"])
        state = "expired" if ends <= timezone.now() else "expires"
        return lines(
            [
                short(details["subject"], 300),
                short(f"issued by {details['issuer']}", 310),
                f"{state} {format_time(ends)}",
                short(f"SHA-256 {details['fingerprint_sha256']}", 80),
            ]
        )

    def search(self, request: HttpRequest, queryset: QuerySet[Any], term: str) -> QuerySet[Any]:
        """Find by id, uid, part of the URL, or part of the organization's name."""
        row_id = parse_id(term)
        if row_id:
            return queryset.filter(Q(pk=row_id) | Q(uid=term))
        return queryset.filter(pk__in=search.subscriptions_named(term, search.Scope.of(request)))

    @admin.display(description="created", ordering="id")
    def created_display(self, row: Subscription) -> str:
        return format_time(row.created_at)

    @admin.display(description="id")
    def id_display(self, row: Subscription) -> SafeString:
        return short_id(row.pk)

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
            request.handshaken = self._shake_hands(request, object_id)  # type: ignore[attr-defined]
        return super().changeform_view(request, object_id, form_url, extra_context)

    def _shake_hands(self, request: HttpRequest, object_id: str | None) -> Handshake | None:
        """Return what came of it; None if none was made, because the form or the user can't change anything."""
        row = None if object_id is None else self.get_object(request, unquote(object_id))
        if object_id is None:
            may_save = self.has_add_permission(request)
        else:
            may_save = row is not None and self.has_change_permission(request, row)
        if not may_save:
            return None
        form = self.get_form(
            request, row, change=row is not None, fields=flatten_fieldsets(self.get_fieldsets(request, row))
        )(request.POST, instance=row)
        form.handshaken = Handshake()
        if not form.is_valid() or not form.asks_for_handshake:
            return None
        # The form has written into its row.
        current = None if row is None else Subscription.objects.get(pk=row.pk)
        url = form.values["url"] if current is None or "url" in form.values else current.url
        organization_id = form.cleaned_data["organization"].pk if current is None else current.organization_id
        try:
            handshake.shake_hands(organization_id, url, form.values, current)
        except handshake.HandshakeFailed as error:
            return Handshake(f"The endpoint didn't confirm. {error.sentence} Nothing was saved.")
        except probes.TooManyProbes as error:
            return Handshake(f"{error.sentence} Wait {error.retry_after} seconds.")
        return Handshake()

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
            context["endpoint"] = {**endpoint_context(request, row), "state": self.state_display(row)}
        return super().change_view(request, object_id, form_url, context)

    # --- actions ------------------------------------------------------------------------------------

    def fits(self, action: str, row: Any) -> bool:
        """Offer nothing for a deleted subscription, and for others what changes something."""
        if row.deleted_at is not None or (action in self._endpoint_actions and is_inbox(row)):
            return False
        if action == "remove_secret" and not row.previous_secrets_expire_at:
            return False
        needs_active = {"disable": True, "stop_host": True, "enable": False, "enable_host": False}
        return action not in needs_active or needs_active[action] == row.is_active

    def has_rotate_permission(self, request: HttpRequest) -> bool:
        """Whether the user may give a subscription a new secret, for `permissions=["rotate"]`."""
        return request.user.has_perm("webhooks.change_subscription")

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
            by = f"Disabled {subscriptions.BY_OPERATOR}: {reason}"
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

    def _only_endpoint(self, request: HttpRequest, queryset: QuerySet[Subscription]) -> Subscription | None:
        """Return the selected subscription; tell the user if it isn't one that exists, or is an inbox."""
        rows = list(queryset[:2])
        if len(rows) != 1 or rows[0].deleted_at is not None:
            self.message_user(request, "Select one subscription that isn't deleted.", messages.ERROR)
            return None
        if is_inbox(rows[0]):
            text = "The subscription is an inbox: it has no secret, and nothing is sent to it. Nothing was changed."
            self.message_user(request, text, messages.ERROR)
            return None
        return Subscription.objects.get(pk=rows[0].pk)

    @admin.action(description="Send a test event", permissions=["switch"])
    def send_test(self, request: HttpRequest, queryset: QuerySet[Subscription]) -> None:
        """Send a test event to the endpoint and show what came back."""
        row = self._only_endpoint(request, queryset)
        if row is None:
            return
        try:
            result = endpoint_test.send_test_event(row)
        except probes.TooManyProbes as error:
            wait = f"{error.sentence} Wait {error.retry_after} seconds."
            self.message_user(request, wait, messages.ERROR)
            return
        with transaction.atomic():
            self.audit(request, "subscription.test", row, result.for_audit())
        body = short(result.outcome.body, 200)
        said = f"Test event {result.event_id}: {result.summary}" + (f" Response: {body}" if body else "")
        self.message_user(request, said, messages.SUCCESS if result.outcome.succeeded else messages.WARNING)

    @admin.action(description="Rotate the secret…", permissions=["rotate"])
    def rotate_secret(self, request: HttpRequest, queryset: QuerySet[Subscription]) -> HttpResponse | None:
        """Replace the signing secret and show the new one, which can't be read again."""
        row = self._only_endpoint(request, queryset)
        if row is None:
            return None
        form = answer(request, RotationForm)
        if not form.is_valid():
            texts = [
                f"The endpoint {short(row.url, 200)} gets a new signing secret, which is shown once. For as long as "
                "you choose, webhooks are signed with both, so that the receiver can change over."
            ]
            return question_page(
                self, request, form, Question("Rotate the signing secret?", "Rotate the secret", texts)
            )
        overlap = int(form.cleaned_data["overlap"])
        try:
            with transaction.atomic():
                secret = subscriptions.rotate_secret(row, datetime.timedelta(seconds=overlap))
                self.audit(request, "subscription.rotate_secret", row, {"overlap_seconds": overlap}, reason_of(form))
        except signing_secrets.TooManySecrets as error:
            self.message_user(
                request,
                f"{signing_secrets.MAX_PREVIOUS_SECRETS} other secrets sign"
                + (f", the first of them until {format_time(error.ends_at)}" if error.ends_at else "")
                + ". Nothing was changed.",
                messages.ERROR,
            )
            return None
        return secret_actions.show_new(self, request, row, "signing secret", secret, own=False)

    @admin.action(description="Add a secret…", permissions=["rotate"])
    def add_secret(self, request: HttpRequest, queryset: QuerySet[Subscription]) -> HttpResponse | None:
        """Let another signing secret sign beside those there are."""
        row = self._only_endpoint(request, queryset)
        return secret_actions.ask_and_add(self, request, row) if row else None

    @admin.action(description="Remove a secret…", permissions=["rotate"])
    def remove_secret(self, request: HttpRequest, queryset: QuerySet[Subscription]) -> HttpResponse | None:
        """Erase a signing secret, which stops signing at once."""
        row = self._only_endpoint(request, queryset)
        return secret_actions.ask_and_remove(self, request, row) if row else None

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
