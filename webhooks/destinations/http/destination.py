"""The HTTP kind of destination: from an event to a signed request, and from the response to an outcome."""

from __future__ import annotations

from events.origin import trace_headers
from webhooks.destinations.base import Outgoing
from webhooks.destinations.exchange import Exchange
from webhooks.destinations.formats import standard_envelope
from webhooks.destinations.http.client import HttpClient
from webhooks.destinations.http.egress import egress_from_settings
from webhooks.destinations.http.failures import explain
from webhooks.destinations.http.signing import sign
from webhooks.destinations.outcome import Failure, Outcome

USER_AGENT = "TriggersAPI/1.0"


def build_headers(outgoing: Outgoing, timestamp: int, body: bytes) -> list[tuple[str, str]]:
    """Return the headers of Standard Webhooks and the subscription's own, which can't replace ours.

    timestamp: seconds since the epoch, of this attempt.  body: the bytes that are signed and sent.
    """
    webhook_id = str(outgoing.event_id)
    ours = [
        ("content-type", "application/json"),
        ("user-agent", USER_AGENT),
        ("webhook-id", webhook_id),
        ("webhook-timestamp", str(timestamp)),
        ("webhook-signature", sign(outgoing.endpoint.keys, webhook_id, timestamp, body)),
    ]
    if outgoing.event_trace:
        ours += trace_headers(outgoing.event_trace)
    return ours + list(outgoing.endpoint.headers)


def mask_headers(headers: list[tuple[str, str]], own: int) -> list[tuple[str, str | None]]:
    """Return the headers with None for what is secret: the signature, and the values of the last `own`.

    own: how many are the subscription's own, which it stores encrypted.
    """
    ours = len(headers) - own
    return [
        (name, value if position < ours and name != "webhook-signature" else None)
        for position, (name, value) in enumerate(headers)
    ]


class HttpDestination:
    """Sends webhooks as the settings' egress policy allows."""

    def __init__(self) -> None:
        self._client = HttpClient(egress_from_settings())

    async def send(self, outgoing: Outgoing, timestamp: float) -> Outcome:
        """POST the event; see `destinations.base.Destination`."""
        endpoint = outgoing.endpoint
        if endpoint.fault:
            return Outcome(failure=Failure.INTERNAL_ERROR, detail=endpoint.fault)
        try:
            body = standard_envelope(outgoing)
            headers = build_headers(outgoing, int(timestamp), body)
            exchange = Exchange(endpoint.url, mask_headers(headers, len(endpoint.headers)), len(body))
            return await self._client.send(endpoint.url, headers, body, exchange)
        except Exception as error:
            return explain(error)

    async def aclose(self) -> None:
        """Close every connection."""
        await self._client.aclose()
