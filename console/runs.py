"""Retrying and replaying many deliveries: a preview with numbers, a confirmation, and a run that workers move on."""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from django import forms
from django.contrib import messages
from django.db import transaction
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import reverse

from console.confirmation import OptionalReasonForm, Question, answer, question_page, reason_of
from console.formatting import object_link
from console.model_admin import BoundedAdmin
from events.models import Event
from orgs import audit
from webhooks.display.causes import error_words
from webhooks.display.formatting import badge, format_time, short, table
from webhooks.models import BulkRun, Delivery, Subscription
from webhooks.upkeep import replay
from webhooks.upkeep.bulk_runs import CHUNK
from webhooks.upkeep.preview import COUNT_TO, Expected, Fate, Preview, preview

# What a user types to have delivered webhooks sent a second time.
SEND_AGAIN = "send again"
# Runs up to this size are done before the next page is shown.
DONE_AT_ONCE = CHUNK
SHOWN_ROWS = 20
# An action on more organizations than this gets one audit entry, without an organization.
MOST_ENTRIES = 20

_FATES = {
    Fate.DUE: "due at once",
    Fate.RATE_LIMIT: "due at once, sent as the rate limit allows",
    Fate.CIRCUIT_BREAKER: "wait behind a circuit breaker",
    Fate.RETRY_AFTER: "wait, because the endpoint asked for a pause",
    Fate.HELD: "held until the subscription is enabled",
    Fate.SENDING_DISABLED: "wait while DISABLE_WEBHOOK_DELIVERY is set",
    Fate.LEFT_ALONE: "left alone: the subscription was deleted",
}
_WORDS = {
    BulkRun.Kind.RETRY: ("Retry", "one more attempt of each"),
    BulkRun.Kind.REPLAY: ("Replay", "the full retry schedule again for each"),
}


class RunForm(OptionalReasonForm):
    """The confirmation of a run.  again: the words that include what was delivered."""

    again = forms.CharField(
        required=False,
        label="Also send again what was delivered",
        help_text=f"Type “{SEND_AGAIN}” to include it. Leave this empty to leave it alone.",
        widget=forms.TextInput(attrs={"autocomplete": "off"}),
    )

    def clean_again(self) -> bool:
        """Return whether delivered ones are included; anything but the words is a mistake."""
        typed: str = self.cleaned_data["again"].strip().lower()
        if typed and typed != SEND_AGAIN:
            raise forms.ValidationError(f"Type “{SEND_AGAIN}”, or nothing.")
        return bool(typed)


def ask_and_run(
    model_admin: BoundedAdmin,
    request: HttpRequest,
    kind: BulkRun.Kind,
    filters: Mapping[str, Any],
    asked: object = None,
) -> HttpResponse:
    """Show what retrying or replaying what matches would do or, once that is confirmed, begin it.

    filters: as in `webhooks.upkeep.replay`.  asked: the same, with a span of time as a word, so that two people who
    press the same buttons ask for the same.
    """
    form = answer(request, RunForm)
    valid = form.is_valid()
    chosen = dict(filters)
    if valid and form.cleaned_data["again"]:
        chosen["statuses"] = [*replay.states_in(filters), replay.DELIVERED]
    found = preview(chosen)
    if not valid:
        if not found.delivered:
            del form.fields["again"]
        return question_page(model_admin, request, form, _question(kind, found))
    if not found.total:
        left = _left_alone(found)
        model_admin.message_user(request, f"Nothing was queued. {left}".strip(), messages.WARNING)
        return HttpResponseRedirect(request.get_full_path())
    return _begin(model_admin, request, kind, chosen, [asked or filters, sorted(replay.states_in(chosen))], found, form)


def _begin(
    model_admin: BoundedAdmin, request: HttpRequest, kind: BulkRun.Kind, filters: dict[str, Any], asked: object,
    found: Preview, form: forms.Form,
) -> HttpResponse:  # fmt: skip
    actor = audit.staff_actor(request)
    organizations = list(found.by_organization)
    with transaction.atomic():
        run, is_new = replay.start_in_background(
            filters,
            filters.get("org") or (organizations[0] if len(organizations) == 1 and not found.is_cut else None),
            kind=kind,
            actor=actor,
            total=None if found.is_cut else found.seen,
            asked=asked,
            seen_at=form.cleaned_data["seen_at"],
        )
        if is_new:
            _write_audit(request, run, found, reason_of(form))
    if not is_new:
        text = f"{run.actor or 'Somebody'} asked for the same at {format_time(run.created_at)}. This is that run."
        model_admin.message_user(request, text, messages.WARNING)
    else:
        if not found.is_cut and found.seen <= DONE_AT_ONCE:
            while run.state == BulkRun.State.RUNNING and (following := replay.advance(run.pk)) is not None:
                run = following
        model_admin.message_user(request, _said(run, found), messages.SUCCESS)
    return HttpResponseRedirect(reverse("admin:webhooks_bulkrun_change", args=[run.pk]))


def _write_audit(request: HttpRequest, run: BulkRun, found: Preview, reason: str) -> None:
    """Write one entry for each organization concerned, or a single one if there are many.

    An organization's entry names its own deliveries or events and no other's.
    """
    named: list[str] = run.filters.get("deliveries") or run.filters.get("events") or []
    filters = {name: value for name, value in run.filters.items() if name not in {"deliveries", "events"}}
    counts = found.by_organization
    if len(counts) > MOST_ENTRIES or found.is_cut or not counts:
        counts = {run.organization_id: found.total}
    owned = _by_owner(run, named)
    for organization_id, count in counts.items():
        own = named if organization_id is None else owned.get(organization_id, [])
        target, name = _target(run, own, count, found)
        detail = {"run": str(run.pk), "count": count, "count_is_more": found.is_cut, "filters": filters}
        audit.record_for_user(
            request,
            f"delivery.{run.kind}",
            organization_id,
            target,
            detail,
            name=name,
            reason=reason,
            targets=[run.pk, *own],
        )


def _by_owner(run: BulkRun, named: list[str]) -> dict[uuid.UUID, list[str]]:
    """Return the deliveries or events that a run was asked for by name, by their organization."""
    owned: dict[uuid.UUID, list[str]] = defaultdict(list)
    rows: Any = Delivery.objects if "deliveries" in run.filters else Event.objects
    for organization_id, pk in rows.filter(pk__in=named).order_by("pk").values_list("organization_id", "pk"):
        owned[organization_id].append(str(pk))
    return owned


def _target(run: BulkRun, own: list[str], count: int, found: Preview) -> tuple[object, str]:
    """Return the id and the name of what a run was asked for: one delivery, one subscription, or else the run."""
    if len(own) == 1:
        return own[0], "one delivery" if "deliveries" in run.filters else "the deliveries of one event"
    if "subscription" in run.filters:
        url = Subscription.objects.filter(pk=run.filters["subscription"]).values_list("url", flat=True).first()
        return run.filters["subscription"], url or ""
    if "event" in run.filters:
        return run.filters["event"], "the deliveries of one event"
    return run.pk, f"more than {COUNT_TO:,} deliveries" if found.is_cut else f"{count:,} deliveries"


def describe(run: BulkRun) -> str:
    """Return how far a run is, as a sentence."""
    parts = [f"{run.queued:,} queued"]
    if run.held:
        parts.append(f"{run.held:,} of them held, because their subscriptions are disabled")
    left = run.visited - run.queued
    if left > 0 and run.kind != BulkRun.Kind.RECOVER:
        parts.append(f"{left:,} left alone, because they were taken up, sent or cancelled meanwhile")
    return ", ".join(parts) + "."


def _said(run: BulkRun, found: Preview) -> str:
    word = _WORDS[BulkRun.Kind(run.kind)][0]
    if run.state == BulkRun.State.RUNNING:
        return f"{word} of {_many(found)} has begun. Workers go on with it; this page shows how far they are."
    return " ".join([f"{word}: {describe(run)}", *breaker_sentences(found.expected), _left_alone(found)]).strip()


def _left_alone(found: Preview) -> str:
    """Return which of the deliveries that were chosen a run leaves alone, and why."""
    reasons = {_WHY_NOT.get(state, state): count for state, count in _others(found).items()}
    if found.delivered and found.is_by_name:
        reasons["delivered already"] = found.delivered
    return f"Left alone: {'; '.join(f'{count:,} {why}' for why, count in reasons.items())}." if reasons else ""


def _others(found: Preview) -> dict[str, int]:
    return {**found.others, **({"erased": found.erased} if found.erased else {})}


def _many(found: Preview) -> str:
    count = f"more than {COUNT_TO:,}" if found.is_cut else f"{found.total:,}"
    return f"{count} {'delivery' if count == '1' else 'deliveries'}"


def _question(kind: BulkRun.Kind, found: Preview) -> Question:
    word, what = _WORDS[kind]
    paragraphs = [f"{_many(found)} would be queued: {what}." if found.total else "Nothing matches that needs it."]
    if found.is_cut:
        paragraphs.append(f"The numbers below are of the first {COUNT_TO:,}.")
    paragraphs += breaker_sentences(found.expected)
    if found.delivered:
        delivered = f"{found.delivered:,} or more" if found.delivered >= COUNT_TO else f"{found.delivered:,}"
        paragraphs.append(
            f"Delivered already, and left alone unless you say so: {delivered} more. Their endpoints would get those "
            "webhooks a second time."
        )
    for state, count in _others(found).items():
        paragraphs.append(f"{count:,} selected {_are(count)} {_WHY_NOT.get(state, state)} and will be left alone.")
    nothing = not found.total and not found.delivered
    question = Question(f"{word} {_many(found)}?", f"{word} {_many(found)}", paragraphs, nothing_to_do=nothing)
    if found.total:
        question.tables = [("By cause", _cause_table(found)), ("What will happen", expected_table(found.expected))]
    return question


_WHY_NOT = {
    "erased": "of an event whose payload was erased",
    "pending": "waiting for the first attempt already",
    "delivering": "being sent right now",
    "held": "held (use Resume)",
    "cancelled": "cancelled",
}


def _are(count: int) -> str:
    return "is" if count == 1 else "are"


def _cause_table(found: Preview) -> Any:
    rows = [
        (badge(cause.state), error_words(cause.error, cause.status_code) or "-", f"{count:,}")
        for cause, count in found.by_cause[:SHOWN_ROWS]
    ]
    return table(("state", "last error", "deliveries"), rows)


def expected_table(expected: list[Expected]) -> Any:
    """Return what will happen to the deliveries of each subscription."""
    rows = [
        (
            f"{one.count:,}",
            _FATES[one.fate],
            f"not before {format_time(one.until)}" if one.until else "-",
            object_link(one.subscription, short(one.subscription.url, 80)),
        )
        for one in expected[:SHOWN_ROWS]
    ]
    if len(expected) > SHOWN_ROWS:
        rest = expected[SHOWN_ROWS:]
        rows.append((f"{sum(one.count for one in rest):,}", f"to {len(rest):,} more subscriptions", "-", "-"))
    return table(("deliveries", "what will happen", "when", "endpoint"), rows)


def breaker_sentences(expected: list[Expected]) -> list[str]:
    """Return what has to be said about deliveries that won't be sent at once, and when they will be."""
    behind = [one for one in expected if one.fate is Fate.CIRCUIT_BREAKER]
    sentences = []
    if behind:
        count = sum(one.count for one in behind)
        untils = [one.until for one in behind if one.until is not None]
        at = f" The next one is sent at {format_time(min(untils))}." if untils else ""
        sentences.append(
            f"{count:,} {'waits' if count == 1 else 'wait'} behind a circuit breaker, which lets one request at a time "
            f"through to test the endpoint; the others follow as soon as one succeeds.{at}"
        )
    held = sum(one.count for one in expected if one.fate is Fate.HELD)
    if held:
        sentences.append(f"{held:,} {_are(held)} for disabled subscriptions and will be held until those are enabled.")
    if any(one.fate is Fate.SENDING_DISABLED for one in expected):
        sentences.append("Nothing is sent while DISABLE_WEBHOOK_DELIVERY is set.")
    return sentences
