"""How values look on the pages of the admin and of the portal: text that others sent, times, states, and tables."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Sequence
from typing import Any
from urllib.parse import urlsplit

from django.utils.html import escape, format_html, format_html_join
from django.utils.safestring import SafeString

from core.safe_text import excerpt, pretty_json, visible
from webhooks.display.causes import error_words
from webhooks.models import Delivery, DeliveryAttempt
from webhooks.states import Breaker, SubscriptionState, next_attempt_at, state_of

SHOWN_CHARACTERS = 65_536


def box(text: str, label: str = "") -> SafeString:
    """Return text in a box that scrolls, for which the keyboard reaches it.  label: its name for screen readers."""
    named = format_html(' role="group" aria-label="{}"', label) if label else SafeString("")
    return format_html('<pre class="hostile" tabindex="0"{}>{}</pre>', named, text)


def code_block(text: str, label: str = "") -> SafeString:
    """Return text that others sent, escaped, in a box of bounded length; JSON is indented.

    label: the box's name for screen readers.
    """
    if not text:
        return SafeString("-")
    shown, left_out = excerpt(visible(pretty_json(text)), SHOWN_CHARACTERS)
    shown_box = box(shown, label)
    if left_out:
        shown_box += format_html('<p class="help">{} further characters are not shown.</p>', left_out)
    return shown_box


def short(text: str, most: int = 80) -> str:
    """Return the beginning of text that others sent, on one line.  most: characters."""
    line = visible(text).replace("\n", " ").replace("\t", " ")
    return line if len(line) <= most else line[: most - 1] + "…"


def short_id(row_id: object) -> SafeString:
    """Return the end of an id, which tells ids apart, with a button that copies all of it."""
    text = str(row_id)
    return format_html(
        '<span class="id" title="{}">…{}'
        '<button type="button" class="copy" data-copy="{}" aria-label="Copy id">copy</button></span>',
        text, text[-8:], text,
    )  # fmt: skip


def host_of_url(url: str, *, with_path: bool = False) -> str:
    """Return a URL without its scheme, user and, unless `with_path`, its path; what can't be parsed, as it is."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        if parts.port is not None:
            host += f":{parts.port}"
    except ValueError:
        return url
    return host + parts.path if with_path else host


def badge(status: str, label: str | None = None) -> SafeString:
    """Return a status in its color.  status: one of our words, used as a CSS class.  label: what is shown instead."""
    return format_html('<span class="state state-{}">{}</span>', status, label or status)


def with_note(text: str, note: str) -> SafeString:
    """Return a text, and below it a quieter one if there is any."""
    if not note or note == "-":
        return format_html("{}", text)
    return format_html('{}<div class="quiet">{}</div>', text, note)


def delivery_badge(delivery: Delivery) -> SafeString:
    """Return a delivery's state in its color."""
    return badge(state_of(delivery))


def cause_of(subscription: Any) -> str:
    """Return why a subscription, read with its state, isn't active; empty if it is."""
    error = error_words(subscription.last_error or "", subscription.last_status_code)
    if subscription.state == SubscriptionState.DISABLED:
        return short(subscription.disabled_reason, 160)
    if subscription.state == SubscriptionState.PAUSED:
        why = "circuit breaker is open" if subscription.breaker == Breaker.OPEN else "endpoint asked for a pause"
        return f"{error or 'unknown error'}; {why} until {format_time(subscription.paused_until)}"
    if subscription.state == SubscriptionState.FAILING:
        return error or "unknown error"
    return ""


def escape_each(texts: Sequence[str]) -> list[SafeString]:
    """Return texts without U+0000, escaped: all at once, which is much faster than one by one."""
    return [SafeString(text) for text in escape("\0".join(texts)).split("\0")] if texts else []


def lines(parts: Iterable[str]) -> SafeString:
    """Return the texts, one per line."""
    return format_html_join("\n", "<div>{}</div>", ((part,) for part in parts))


def table(head: Sequence[str], rows: Iterable[Sequence[object]], more: Sequence[SafeString] = ()) -> SafeString:
    """Return a small table; cells are escaped unless they are safe already.

    more: what can be unfolded below each of the first rows; the first one is unfolded already.
    """
    body = SafeString("")
    for position, row in enumerate(rows):
        body += format_html("<tr>{}</tr>\n", format_html_join("", "<td>{}</td>", ((cell,) for cell in row)))
        if position < len(more):
            body += format_html(
                '<tr class="exchange-row"><td colspan="{}"><details{}><summary>Request and response</summary>'
                "{}</details></td></tr>\n",
                len(head),
                SafeString("" if position else " open"),
                more[position],
            )
    if not body:
        return SafeString("none")
    return format_html(
        '<table class="inner"><thead><tr>{}</tr></thead><tbody>{}</tbody></table>',
        format_html_join("", "<th>{}</th>", ((name,) for name in head)),
        body,
    )


def format_time(moment: datetime.datetime | None) -> str:
    """Return a time in UTC to the second, or a dash."""
    return moment.strftime("%Y-%m-%d %H:%M:%S") if moment else "-"


def format_duration(milliseconds: float) -> str:
    """Return a duration in the unit that people would use."""
    for unit, size in (("d", 86_400_000), ("h", 3_600_000), ("min", 60_000), ("s", 1000)):
        if milliseconds >= size:
            return f"{milliseconds / size:.1f} {unit}".replace(".0 ", " ")
    return f"{milliseconds:.{1 if milliseconds < 10 else 0}f} ms".replace(".0 ", " ")


def outcome_badge(attempt: DeliveryAttempt) -> SafeString:
    """Return what came of an attempt, in its color."""
    words = error_words(attempt.error, attempt.status_code)
    return badge("failed", words) if attempt.error else badge("delivered")


def last_result(delivery: Delivery) -> str:
    """Return what came of a delivery's last attempt, or a dash."""
    return error_words(delivery.last_error, delivery.last_status_code) or str(delivery.last_status_code or "-")


def next_attempt(delivery: Delivery) -> str:
    """Return when a pending delivery is attempted next, or a dash."""
    return format_time(next_attempt_at(delivery))
