"""Recovering what a subscription missed: since when, what that would queue, and a run."""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib import messages
from django.db import transaction
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import reverse

from console.confirmation import OptionalReasonForm, Question, answer, question_page, reason_of
from console.model_admin import BoundedAdmin
from console.runs import breaker_sentences, expected_table
from core.query import ParameterError, moment
from orgs import audit
from webhooks.display.formatting import badge, format_time, short, table
from webhooks.models import BulkRun, Subscription
from webhooks.upkeep import recovery
from webhooks.upkeep.preview import RecoveryPreview, preview_recovery


class RecoverForm(OptionalReasonForm):
    """Since when to recover; the first time the form is sent it shows what that would do."""

    since = forms.CharField(
        label="Recover events since",
        max_length=40,
        help_text="In UTC, such as 2026-01-31T12:00:00Z.",
        widget=forms.TextInput(attrs={"size": 24, "placeholder": "2026-01-31T12:00:00Z"}),
    )
    # The time whose preview was shown: another one is shown first.
    shown = forms.CharField(required=False, max_length=40, widget=forms.HiddenInput)
    field_order = ("since", "reason", "shown", "seen_at")

    def clean_since(self) -> Any:
        try:
            return moment(self.cleaned_data["since"].strip())
        except ParameterError:
            raise forms.ValidationError("Enter a time such as 2026-01-31T12:00:00Z.") from None


def ask_and_recover(model_admin: BoundedAdmin, request: HttpRequest, subscription: Subscription) -> HttpResponse:
    """Ask since when, show what that would do, and begin the recovery once it is confirmed."""
    form = answer(request, RecoverForm)
    title = f"Recover missed events of {short(subscription.url, 80)}"
    if not form.is_valid():
        text = (
            "Every event since a time that the subscription wants and has no delivery for is queued, and deliveries "
            "that failed are sent again. What was delivered or still waits is left alone."
        )
        return question_page(model_admin, request, form, Question(title, "Preview", [text]))
    since = form.cleaned_data["since"]
    if form.cleaned_data["shown"] != since.isoformat():
        found = preview_recovery(subscription, since)
        again = RecoverForm({**request.POST.dict(), "shown": since.isoformat()}, auto_id="confirm_%s")
        return question_page(model_admin, request, again, _question(title, found))
    with transaction.atomic():
        running = BulkRun.objects.filter(
            subscription=subscription, kind=BulkRun.Kind.RECOVER, state=BulkRun.State.RUNNING
        ).first()
        run = recovery.start(subscription, since, audit.staff_actor(request))
        if running is None or running.filters != run.filters:
            model_admin.audit(
                request, "subscription.recover", subscription, {"since": since.isoformat(), "run": str(run.pk)},
                reason_of(form), [run.pk],
            )  # fmt: skip
    if running is not None:
        text = f"{running.actor or 'Somebody'} began a recovery at {format_time(running.created_at)}. This is that run."
        model_admin.message_user(request, text, messages.WARNING)
    else:
        text = "The recovery has begun. Workers go on with it; this page shows how far they are."
        model_admin.message_user(request, text, messages.SUCCESS)
    return HttpResponseRedirect(reverse("admin:webhooks_bulkrun_change", args=[run.pk]))


def _question(title: str, found: RecoveryPreview) -> Question:
    more = f"more than {found.events:,}" if found.is_cut else f"{found.events:,}"
    paragraphs = [f"There are {more} events since then. {found.total:,} deliveries would be queued."]
    if found.is_cut:
        paragraphs.append(f"The numbers are of the first {found.events:,}; the recovery goes through all of them.")
    paragraphs += breaker_sentences(found.expected)
    rows: list[tuple[Any, str, str]] = [("no delivery yet", f"{found.missing:,}", "created")]
    for state, count in sorted(found.by_state.items()):
        rows.append((badge(state), f"{count:,}", "sent again" if state == "failed" else "left alone"))
    tables = [("Events that the subscription wants", table(("delivery", "events", "what will happen"), rows))]
    if found.expected:
        tables.append(("What will happen", expected_table(found.expected)))
    return Question(title, "Begin the recovery", paragraphs, tables)
