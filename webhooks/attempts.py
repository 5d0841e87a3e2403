"""Reading attempts back: the exchange of each, for the API and the admin."""

from __future__ import annotations

from typing import Any

from core.encryption import DecryptionError
from events.models import Event
from webhooks.destinations.base import StoredEvent
from webhooks.destinations.exchange import Exchange, milliseconds, open_exchange, response_headers, status_line
from webhooks.destinations.formats import Format, render
from webhooks.destinations.http.query_secrets import mask_query
from webhooks.destinations.http.target import parse_target
from webhooks.destinations.transform import TransformError
from webhooks.models import DeliveryAttempt

# Shown instead of a value that isn't kept.
MASK = "***"


def exchange_of(attempt: DeliveryAttempt) -> Exchange | None:
    """Return what was sent and received; None if it isn't kept, or if the key that encrypted it is gone."""
    if attempt.sealed_exchange is None:
        return None
    try:
        return open_exchange(attempt.sealed_exchange)
    except DecryptionError:
        return None


def request_body(event: Event, exchange: Exchange) -> str | None:
    """Return the body of a request that delivered the event, in the format that the subscription had then.

    None if it can't be made again, because the payload was erased or a later version's expressions can do less.
    """
    if event.is_erased:
        return None
    stored = StoredEvent(event.id, event.type, event.created_at, event.data, event.cloudevent)
    try:
        body = render(stored, event.organization_id, exchange.format, exchange.expression)
    except TransformError:
        return None
    return body.content.decode(errors="replace")


def shown_url(exchange: Exchange) -> str:
    """Return the URL that a request was sent to, with MASK instead of what look like secrets in its query."""
    return mask_query(exchange.url, lambda name: MASK)


def request_head(exchange: Exchange) -> tuple[str, list[tuple[str, str]]]:
    """Return a request's path and its headers as they were sent, with MASK instead of secrets."""
    target = parse_target(shown_url(exchange))
    headers = [(name, MASK if value is None else value) for name, value in exchange.request_headers]
    return target.path, [("Host", target.authority), *headers, ("Content-Length", str(exchange.body_bytes))]


def describe_exchange(exchange: Exchange, body: str | None, *, shows_event: bool = True) -> dict[str, Any]:
    """Return an exchange as the API shows it.

    body: of the request; None if it isn't shown.  shows_event: whether headers that describe the event are shown.
    """
    _, headers = request_head(exchange)
    if not shows_event:
        headers = [(name, MASK if name.startswith("ce-") else value) for name, value in headers]
    response = None
    if exchange.response_head:
        response = {
            "status_line": status_line(exchange),
            "headers": _pairs(response_headers(exchange)),
            "headers_truncated": exchange.is_head_cut,
        }
    return {
        "request": {
            "method": "POST",
            "url": shown_url(exchange),
            "http_version": "1.1",
            "headers": _pairs(headers),
            "format": exchange.format or Format.STANDARD.value,
            "body": body,
            "body_bytes": exchange.body_bytes,
        },
        "response": response,
        "connection": {
            # The operator's proxy isn't shown to tenants.
            "remote_address": None if exchange.via_proxy else exchange.remote_address or None,
            "via_proxy": exchange.via_proxy,
            "reused": exchange.is_reused,
            "resent": exchange.is_resent,
        },
        "timings": {
            "dns_ms": milliseconds(exchange.dns_us),
            "connect_ms": milliseconds(exchange.connect_us),
            "tls_ms": milliseconds(exchange.tls_us),
            "first_byte_ms": milliseconds(exchange.first_byte_us),
        },
    }


def _pairs(headers: list[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"name": name, "value": value} for name, value in headers]
