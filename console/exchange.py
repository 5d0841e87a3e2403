"""How the admin shows what an attempt sent and received."""

from __future__ import annotations

from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

from console.formatting import SHOWN_CHARACTERS, code_block, format_duration, short
from core.pretty import excerpt, visible
from webhooks.attempts import exchange_of, request_body, request_head
from webhooks.destinations.exchange import Exchange, response_headers, status_line
from webhooks.destinations.http.curl import BODY_FILE, MAX_BODY_CHARACTERS, body_command, curl_command
from webhooks.models import Delivery, DeliveryAttempt

# Of the page: the element that writes the body, which all attempts of a delivery share.
BODY_ID = "curl-body"
_NOT_KEPT = "Not kept: no request was made, the organization keeps none, or the key that encrypted it is gone."


def curl_body(delivery: Delivery) -> SafeString:
    """Return the hidden part of the page that the attempts' curl commands begin with."""
    return format_html('<pre id="{}" hidden>{}</pre>', BODY_ID, body_command(request_body(delivery.event)))


def exchange_block(attempt: DeliveryAttempt) -> SafeString:
    """Return the whole exchange of an attempt, escaped; `curl_body` has to be on the same page."""
    exchange = exchange_of(attempt)
    if exchange is None:
        response = code_block(attempt.response_body) if attempt.response_body else SafeString("")
        return format_html('<p class="help">{}</p>{}', _NOT_KEPT, response)
    path, request = request_head(exchange)
    sent = "\n".join([f"POST {path} HTTP/1.1", *(f"{name}: {value}" for name, value in request)])
    command_id = f"curl-{attempt.number}"
    return format_html(
        '<div class="exchange"><p><button type="button" class="button" data-copy-from="{body_id} {command_id}">'
        'Copy as curl</button> <span class="help">{note}</span></p><pre id="{command_id}" hidden>{command}</pre>{facts}'
        "<h4>Request</h4>{sent}<h4>Response</h4>{received}{body}</div>",
        body_id=BODY_ID,
        command_id=command_id,
        note=_note(exchange),
        command=curl_command(exchange),
        facts=_facts(attempt, exchange),
        sent=_block(sent),
        received=_response(exchange),
        body=code_block(attempt.response_body) if attempt.response_body else "",
    )


def _note(exchange: Exchange) -> str:
    hidden = [name for name, value in exchange.request_headers if value is None]
    note = f"Put the values of {', '.join(short(name, 60) for name in hidden)} in." if hidden else ""
    if exchange.body_bytes > MAX_BODY_CHARACTERS:
        note += f" The body is too long for a command; save it as {BODY_FILE}."
    return note


def _facts(attempt: DeliveryAttempt, exchange: Exchange) -> SafeString:
    """Return the connection and the times, on one line that wraps."""
    times = (
        ("DNS", exchange.dns_us),
        ("connect", exchange.connect_us),
        ("TLS", exchange.tls_us),
        ("first byte", exchange.first_byte_us),
    )
    address = exchange.remote_address or "none"
    facts = [
        ("proxy" if exchange.via_proxy else "remote address", address),
        ("connection", "reused" if exchange.is_reused else "sent again on a new one" if exchange.is_resent else "new"),
        *((name, format_duration(took / 1000)) for name, took in times if took is not None),
        ("total", format_duration(attempt.duration_ms)),
    ]
    return format_html('<ul class="facts">{}</ul>', format_html_join("", "<li>{}: <b>{}</b></li>", facts))


def _response(exchange: Exchange) -> SafeString:
    if not exchange.response_head:
        return SafeString('<p class="help">No response came.</p>')
    lines = [
        status_line(exchange),
        *(f"{name}: {value}" if name else value for name, value in response_headers(exchange)),
    ]
    cut = SafeString('<p class="help">Further headers are not kept.</p>') if exchange.is_head_cut else SafeString("")
    return _block("\n".join(lines)) + cut


def _block(text: str) -> SafeString:
    return format_html('<pre class="hostile">{}</pre>', excerpt(visible(text), SHOWN_CHARACTERS)[0])
