"""What operators do with subscriptions in the admin."""

from __future__ import annotations

import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from django.conf import settings
from django.contrib import admin, messages
from django.db import transaction
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse

from console import secret_actions
from console.actions import ACTION_BOUND, TooMany, refuse_too_many, report, selected_ids
from console.confirmation import Question, ReasonForm, answer, question_page, reason_of
from console.host_actions import stop_or_enable
from console.model_admin import BoundedAdmin
from console.recoveries import ask_and_recover
from console.runs import ask_and_run
from webhooks import endpoint_test, probes, subscriptions
from webhooks.display.formatting import short, table
from webhooks.inboxes import is_inbox
from webhooks.models import BulkRun, DisabledCause, Subscription

SHOWN_ROWS = 20
# A transaction disables or enables as many: an organization has at most MAX_SUBSCRIPTIONS, by default as many.
MOST_AT_ONCE = 1000


class SubscriptionActions(BoundedAdmin):
    """The actions on subscriptions, and who may take them."""

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
            cause, by = DisabledCause.BY_OPERATOR, f"Disabled by the operator: {reason}"
            write = partial(self.audit_many, request, "subscription.disable", detail={}, reason=reason)
            for ids in _by_organization(rows):
                done += len(subscriptions.disable_many(ids, cause, by, audit=lambda changed: write(rows=changed)))
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
        return secret_actions.ask_and_rotate(self, request, row) if row else None

    @admin.action(description="Add a secret…", permissions=["rotate"])
    def add_secret(self, request: HttpRequest, queryset: QuerySet[Subscription]) -> HttpResponse | None:
        """Add another signing secret."""
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
    """Yield the ids of each organization's subscriptions, at most a thousand: each part is one transaction."""
    owned: dict[uuid.UUID, list[uuid.UUID]] = defaultdict(list)
    for row in rows:
        owned[row.organization_id].append(row.pk)
    for ids in owned.values():
        for start in range(0, len(ids), MOST_AT_ONCE):
            yield ids[start : start + MOST_AT_ONCE]
