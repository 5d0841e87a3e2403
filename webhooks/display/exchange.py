"""How the admin and the portal show what an attempt sent and received."""

from __future__ import annotations

from collections.abc import Sequence

from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

from core.safe_text import excerpt, visible
from webhooks.attempts import exchange_of, request_body, request_head
from webhooks.destinations.exchange import Exchange, response_headers, status_line
from webhooks.destinations.http.curl import BODY_FILE, MAX_BODY_CHARACTERS, body_command, curl_command
from webhooks.destinations.http.query_secrets import secret_parameters
from webhooks.display.formatting import SHOWN_CHARACTERS, box, code_block, format_duration, short
from webhooks.models import Delivery, DeliveryAttempt

# Of the page: the beginning of the name of an element that writes a body.
BODY_ID = "curl-body"
_NOT_KEPT = "Not kept: no request was made, the organization keeps none, or the key that encrypted it is gone."


class _Bodies:
    """The bodies of a delivery's requests: one, unless the subscription's format has changed between attempts."""

    def __init__(self, delivery: Delivery) -> None:
        self._event = delivery.event
        self._found: dict[tuple[str, str], tuple[str, str | None]] = {}

    def of(self, exchange: Exchange) -> tuple[str, str | None, SafeString]:
        """Return the id of the element that writes the body, the body, and the element if the page has none yet."""
        key = exchange.format, exchange.expression
        if key in self._found:
            return *self._found[key], SafeString("")
        element_id, body = f"{BODY_ID}-{len(self._found) + 1}", request_body(self._event, exchange)
        self._found[key] = element_id, body
        command = f"cat {BODY_FILE}" if body is None else body_command(body)
        return element_id, body, format_html('<pre id="{}" hidden>{}</pre>', element_id, command)


def exchange_blocks(
    delivery: Delivery, attempts: Sequence[DeliveryAttempt], *, for_tenant: bool = False
) -> list[SafeString]:
    """Return the whole exchange of each of the delivery's attempts, escaped, for one page.

    for_tenant: without the address of the operator's proxy, and with the headings one level lower, below the attempt's.
    """
    bodies = _Bodies(delivery)
    return [_exchange_block(attempt, bodies, for_tenant) for attempt in attempts]


def _exchange_block(attempt: DeliveryAttempt, bodies: _Bodies, for_tenant: bool) -> SafeString:
    exchange = exchange_of(attempt)
    if exchange is None:
        response = code_block(attempt.response_body, "Response body") if attempt.response_body else SafeString("")
        return format_html('<p class="help">{}</p>{}', _NOT_KEPT, response)
    body_id, content, body_element = bodies.of(exchange)
    path, request = request_head(exchange)
    sent = "\n".join([f"POST {path} HTTP/1.1", *(f"{name}: {value}" for name, value in request)])
    command_id = f"curl-{attempt.number}"
    return format_html(
        '<div class="exchange"><p><button type="button" class="button" data-copy-from="{body_id} {command_id}">'
        'Copy as curl</button> <span class="help">{note}</span></p>{body_element}'
        '<pre id="{command_id}" hidden>{command}</pre>{facts}'
        "<{heading}>Request</{heading}>{sent}{content}<{heading}>Response</{heading}>{received}{body}</div>",
        body_id=body_id,
        heading="h4" if for_tenant else "h3",
        body_element=body_element,
        content=SafeString("") if content is None else code_block(content, "Request body"),
        command_id=command_id,
        note=_note(exchange, content),
        command=curl_command(exchange),
        facts=_facts(attempt, exchange, for_tenant),
        sent=_block(sent, "Request headers"),
        received=_response(exchange),
        body=code_block(attempt.response_body, "Response body") if attempt.response_body else "",
    )


def _note(exchange: Exchange, content: str | None) -> str:
    hidden = [name for name, value in exchange.request_headers if value is None] + secret_parameters(exchange.url)
    names = ", ".join(short(name, 60) for name in hidden)
    note = f"Before you run it, fill in what isn't shown: {names}." if hidden else ""
    if content is None:
        note += f" The body can't be made again; put it into {BODY_FILE}."
    elif exchange.body_bytes > MAX_BODY_CHARACTERS:
        note += f" The body is too long for a command; save it as {BODY_FILE}."
    return note


def _facts(attempt: DeliveryAttempt, exchange: Exchange, for_tenant: bool) -> SafeString:
    """Return the connection and the times, on one line that wraps."""
    times = (
        ("DNS", exchange.dns_us),
        ("connect", exchange.connect_us),
        ("TLS", exchange.tls_us),
        ("first byte", exchange.first_byte_us),
    )
    # Which proxy the operator uses is its own business.
    address = "not shown" if exchange.via_proxy and for_tenant else exchange.remote_address or "none"
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
    return _block("\n".join(lines), "Response headers") + cut


def _block(text: str, label: str) -> SafeString:
    return box(excerpt(visible(text), SHOWN_CHARACTERS)[0], label)
