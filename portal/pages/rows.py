"""Rows of the lists, as the templates show them."""

from __future__ import annotations

import datetime
from typing import Any

from portal import meanings, texts
from webhooks.display.causes import error_words
from webhooks.display.formatting import cause_of, format_duration, format_time, host_of_url, short
from webhooks.display.standing import distance
from webhooks.inboxes import is_inbox
from webhooks.models import Delivery, DeliveryAttempt
from webhooks.states import SubscriptionState, state_of

NO_BREAK = "\N{NO-BREAK SPACE}"


def _when(moment: datetime.datetime | None, now: datetime.datetime) -> str:
    """Return a time and how far away it is, which stays on one line; empty for none."""
    if moment is None:
        return ""
    return f"{format_time(moment)} ({distance(moment, now).replace(' ', NO_BREAK)})"


def endpoint_row(row: Any, now: datetime.datetime) -> dict[str, Any]:
    """Return an endpoint, read with its state."""
    meaning = meanings.of_endpoint(row)
    state = str(row.state)
    return {
        "id": row.pk,
        "url": short(row.url, 2048),
        "host": short(host_of_url(row.url, with_path=True), 300),
        "description": short(row.description, 500),
        "uid": short(row.uid or "", 255),
        "event_types": [short(one, 255) for one in row.event_types],
        "all_events": "*" in row.event_types,
        "is_operational": row.is_operational,
        "state": state,
        "meaning": meaning.text,
        "cause": _cause(row, now),
        # Its last error stands beside it in the list.
        "cause_in_list": _cause(row, now) if state in {SubscriptionState.DISABLED, SubscriptionState.PAUSED} else "",
        "advice": meaning.advice,
        "about": meaning.about,
        "since": _when(row.state_since, now),
        "last_success": _when(row.last_success_at, now) or "never",
        "last_success_ago": distance(row.last_success_at, now) if row.last_success_at else "never",
        "last_failure": _when(row.last_failure_at, now),
        "last_error": error_words(row.last_error or "", row.last_status_code),
        "next_attempt": _when(row.next_attempt_at, now),
        "paused_until": _when(row.paused_until, now),
    }


def _cause(row: Any, now: datetime.datetime) -> str:
    """Return why an endpoint isn't active, without words that only operators know; empty if it is."""
    if row.state == SubscriptionState.PAUSED:
        error = error_words(row.last_error or "", row.last_status_code) or "the last attempt failed"
        return f"{error[:1].upper()}{error[1:]}. The next attempt is {distance(row.paused_until, now)}."
    cause = cause_of(row)
    return cause[:1].upper() + cause[1:]


def delivery_row(row: Delivery) -> dict[str, Any]:
    """Return a delivery, read with its event's type and its subscription."""
    state = state_of(row)
    return {
        "id": row.pk,
        "type": short(row.event.type, 255),
        "endpoint": short(host_of_url(row.subscription.url, with_path=True), 300),
        "state": state,
        "is_inbox": is_inbox(row.subscription),
        "attempts": row.attempt_count,
        "result": error_words(row.last_error, row.last_status_code),
        "at": format_time(row.created_at),
        "completed": format_time(row.completed_at) if row.completed_at else "",
    }


def attempt_row(attempt: DeliveryAttempt) -> dict[str, Any]:
    """Return an attempt, read with its delivery and event."""
    about, advice = texts.advice(attempt.error, attempt.status_code)
    result = error_words(attempt.error, attempt.status_code) or f"accepted with {attempt.status_code}"
    return {
        "delivery_id": attempt.delivery_id,
        "number": attempt.number,
        "type": short(attempt.delivery.event.type, 60),
        "at": format_time(attempt.started_at),
        "is_good": not attempt.error,
        "result": result,
        "detail": short(attempt.error_detail, 300),
        "response": short(attempt.response_body or attempt.error_detail, 80),
        "duration": format_duration(attempt.duration_ms),
        "cause": {"schedule": "", "manual": "retried by hand", "replay": "sent again"}.get(attempt.cause, ""),
        "advice": advice,
        "about": about,
    }
