"""What the state of an endpoint or a delivery means, and what to do about it, for people who have never seen the API.

The states are those of `webhooks.states`; the text also depends on the cause of the state.
"""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from typing import Any

from django.conf import settings
from django.utils import timezone

from portal import texts
from webhooks.destinations.outcome import Failure
from webhooks.display.formatting import format_time
from webhooks.display.standing import MOST_HELD_UP
from webhooks.inboxes import is_inbox
from webhooks.models import Delivery, DisabledCause, OrderedOnFailure
from webhooks.states import Breaker, DeliveryState, SubscriptionState, next_attempt_at, state_of


@dataclass(frozen=True, slots=True)
class Meaning:
    """What a state means and what happens next; what to do (empty for nothing); the part of the help page about it."""

    text: str
    advice: str = ""
    about: str = ""


def of_endpoint(row: Any) -> Meaning:
    """Return what the state of an endpoint means.  row: from `states.with_state`."""
    about, advice = texts.advice(row.last_error or "", row.last_status_code)
    if row.state == SubscriptionState.DISABLED:
        return _of_disabled(row, advice, about)
    if row.state == SubscriptionState.PAUSED and row.breaker != Breaker.OPEN:
        return Meaning(texts.ASKED_FOR_PAUSE, texts.ASKED_FOR_PAUSE_ADVICE, "pause")
    # The advice is about the failure, which is over once the endpoint is active again.
    is_over = row.state == SubscriptionState.ACTIVE
    return Meaning(texts.STATES.get(row.state, ""), "" if is_over else advice, "" if is_over else about)


def _of_disabled(row: Any, advice: str, about: str) -> Meaning:
    match row.disabled_cause:
        case DisabledCause.GONE:
            return Meaning(texts.DISABLED_GONE, texts.advice(Failure.HTTP_STATUS, 410)[1], "410")
        case DisabledCause.ALWAYS_FAILED:
            return Meaning(
                texts.DISABLED_ALWAYS_FAILED, f"{advice or texts.CORRECT_IT} Then enable the endpoint.", about
            )
        case DisabledCause.WITH_HOST:
            return Meaning(texts.DISABLED_WITH_HOST, texts.ASK_OPERATOR_FIRST, "operator")
        case DisabledCause.BY_OPERATOR:
            return Meaning(texts.DISABLED_BY_OPERATOR, texts.ASK_OPERATOR_FIRST, "operator")
    return Meaning(texts.STATES["disabled"])


def of_delivery(row: Delivery, earlier: Delivery | None, holds_up: int) -> Meaning:
    """Return what the state of a delivery means.  row: with its event and its subscription.

    earlier: the one of the same ordering key that it waits for.  holds_up: how many of its key wait for it.
    """
    state = state_of(row)
    if state == DeliveryState.CANCELLED:
        return _of_cancelled(row)
    if is_inbox(row.subscription):
        return Meaning(texts.INBOX_STATES.get(state, ""))
    if state in {DeliveryState.PENDING, DeliveryState.RETRYING}:
        return _of_waiting(row, state, earlier)
    if state == DeliveryState.HELD:
        return _of_held(row)
    if state == DeliveryState.FAILED:
        return _of_failed(row, holds_up)
    return Meaning(texts.DELIVERY_STATES.get(state, ""))


def next_attempt(row: Delivery) -> datetime.datetime | None:
    """Return when a delivery is attempted next, which isn't before the end of its endpoint's pause."""
    planned = next_attempt_at(row)
    if planned is None or is_inbox(row.subscription):
        return planned
    return max(planned, row.subscription.queue.paused_until or planned)


def _of_waiting(row: Delivery, state: str, earlier: Delivery | None) -> Meaning:
    if not row.subscription.is_active:  # it becomes held in a moment
        return _of_held(row)
    about, advice = texts.advice(row.last_error, row.last_status_code)
    now, queue = timezone.now(), row.subscription.queue
    if earlier is not None:
        return _of_ordered(row, earlier)
    if settings.DISABLE_WEBHOOK_DELIVERY:
        return Meaning(texts.SENDING_DISABLED)
    if queue.paused_until is not None and queue.paused_until > now:
        when = f"until {format_time(queue.paused_until)}"
        if queue.breaker_trips:
            return Meaning(texts.WAITS_FOR_PAUSE.format(when=when), advice or texts.WAITS_FOR_PAUSE_ADVICE, "pause")
        text = texts.WAITS_FOR_ASKED_PAUSE.format(when=when)
        return Meaning(text, texts.WAITS_FOR_ASKED_PAUSE_ADVICE, "pause")
    if row.next_attempt_at is not None and row.next_attempt_at <= now:
        limit = row.subscription.deliveries_per_second
        if limit and queue.next_due_at is not None and queue.next_due_at > now:
            return Meaning(texts.WAITS_FOR_RATE.format(limit=f"{limit:g}"), texts.WAITS_FOR_RATE_ADVICE, "429")
        return Meaning(texts.DUE, advice, about)
    if row.attempt_count and not row.last_error:
        return Meaning(texts.AGAIN)
    return Meaning(texts.DELIVERY_STATES[state], advice, about)


def _of_ordered(row: Delivery, earlier: Delivery) -> Meaning:
    """Return what it means that a delivery waits for an earlier one of its key."""
    state = state_of(earlier)
    if state == DeliveryState.FAILED:
        return Meaning(f"{texts.WAITS_IN_ORDER} {texts.EARLIER_FAILED}", texts.EARLIER_FAILED_ADVICE, "order")
    if state == DeliveryState.RETRYING:
        blocks = row.subscription.ordered_on_failure == OrderedOnFailure.BLOCK
        after = texts.EARLIER_RETRYING_BLOCKS if blocks else texts.EARLIER_RETRYING
        return Meaning(f"{texts.WAITS_IN_ORDER} {after}", texts.EARLIER_RETRYING_ADVICE, "order")
    if state == DeliveryState.HELD:
        return Meaning(f"{texts.WAITS_IN_ORDER} {texts.EARLIER_HELD}", texts.ASK_OPERATOR, "operator")
    return Meaning(f"{texts.WAITS_IN_ORDER} {texts.EARLIER_PENDING}", "", "order")


def _of_held(row: Delivery) -> Meaning:
    if row.subscription.is_active:
        return Meaning(texts.HELD_BY_OPERATOR, texts.ASK_OPERATOR, "operator")
    days = settings.HELD_RETENTION_DAYS
    limit = f" If it is held for more than {days:g} days, it is cancelled." if days else ""
    return Meaning(f"{texts.DELIVERY_STATES['held']}{limit}", texts.HELD_ADVICE)


def _of_failed(row: Delivery, holds_up: int) -> Meaning:
    about, advice = texts.advice(row.last_error, row.last_status_code)
    text = texts.FAILED_AT_ONCE if row.last_error == Failure.TRANSFORM_FAILED else texts.DELIVERY_STATES["failed"]
    if row.event.is_erased:
        about, advice = texts.advice(Failure.PAYLOAD_ERASED, None)
        text = texts.FAILED_ERASED
    elif row.subscription.deleted_at is not None:
        text, about, advice = texts.FAILED_DELETED, "", ""
    elif not row.subscription.is_active:
        text = texts.FAILED_DISABLED
    if holds_up:
        more = "at least " if holds_up == MOST_HELD_UP else ""
        number = "1 later webhook" if holds_up == 1 else f"{more}{holds_up:,} later webhooks"
        verb = "waits" if holds_up == 1 else "wait"
        text += f" {number} with the same ordering key {verb} for it, until it is retried or skipped."
        about = about or "order"
    return Meaning(text, advice, about)


def _of_cancelled(row: Delivery) -> Meaning:
    if row.last_error in texts.CANCELLED_BECAUSE:
        return Meaning(texts.CANCELLED_BECAUSE[row.last_error])
    if row.event.is_erased:
        return Meaning(texts.CANCELLED_BECAUSE[Failure.PAYLOAD_ERASED])
    if row.subscription.deleted_at is not None:
        return Meaning(texts.CANCELLED_DELETED.format(what="inbox" if is_inbox(row.subscription) else "endpoint"))
    return Meaning(texts.CANCELLED_SKIPPED)
