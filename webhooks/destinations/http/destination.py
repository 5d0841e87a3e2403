"""The HTTP kind of destination: from an event to a signed request, and from the response to an outcome."""

from __future__ import annotations

import asyncio
import uuid
from concurrent.futures import ThreadPoolExecutor
from weakref import WeakValueDictionary

from events.origin import trace_headers
from webhooks.destinations.base import Outgoing
from webhooks.destinations.exchange import Exchange
from webhooks.destinations.formats import Body, Format, render, standard_envelope
from webhooks.destinations.http.client import HttpClient
from webhooks.destinations.http.egress import egress_from_settings
from webhooks.destinations.http.failures import explain
from webhooks.destinations.http.signing import sign
from webhooks.destinations.outcome import Failure, Outcome
from webhooks.destinations.transform import TransformError

USER_AGENT = "TriggersAPI/1.0"


def build_headers(outgoing: Outgoing, timestamp: int, body: bytes, form: Body | None = None) -> list[tuple[str, str]]:
    """Return the headers of Standard Webhooks and the subscription's own, which can't replace ours.

    timestamp: seconds since the epoch, of this attempt.  body: the bytes that are signed and sent.
    form: what else the format of the body brings, if it isn't the standard one.
    """
    webhook_id = str(outgoing.event_id)
    ours = [
        ("content-type", form.content_type if form else "application/json"),
        ("user-agent", USER_AGENT),
        ("webhook-id", webhook_id),
        ("webhook-timestamp", str(timestamp)),
        ("webhook-signature", sign(outgoing.endpoint.keys, webhook_id, timestamp, body)),
    ]
    if form and not form.content_type:  # there is no body that could have a type
        del ours[0]
    if outgoing.event_trace:
        ours += trace_headers(outgoing.event_trace)
    if form:
        ours += form.headers
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
        self._transforming = ThreadPoolExecutor(1, thread_name_prefix="transform")
        # A lock that nobody holds or waits for goes by itself.
        self._turns: WeakValueDictionary[uuid.UUID, asyncio.Lock] = WeakValueDictionary()

    async def send(self, outgoing: Outgoing, timestamp: float) -> Outcome:
        """POST the event; see `destinations.base.Destination`."""
        endpoint = outgoing.endpoint
        if endpoint.fault:
            return Outcome(failure=Failure.INTERNAL_ERROR, detail=endpoint.fault)
        try:
            form = None if endpoint.format == Format.STANDARD else await self._render(outgoing)
            body = standard_envelope(outgoing) if form is None else form.content
            headers = build_headers(outgoing, int(timestamp), body, form)
            exchange = Exchange(endpoint.url, mask_headers(headers, len(endpoint.headers)), len(body))
            if form is not None:
                exchange.format = endpoint.format
                exchange.expression = endpoint.transform if endpoint.format == Format.TRANSFORM else ""
            return await self._client.send(endpoint.url, headers, body, exchange)
        except TransformError as error:
            return Outcome(failure=Failure.TRANSFORM_FAILED, detail=str(error))
        except Exception as error:
            return explain(error)

    async def _render(self, outgoing: Outgoing) -> Body:
        """Return the body in the endpoint's format.

        An expression may take some 50 ms.  It runs beside the event loop, one of each organization at a time, so that
        one that has many in flight takes turns with the others.
        """
        endpoint = outgoing.endpoint
        if endpoint.format != Format.TRANSFORM:
            return render(outgoing, outgoing.organization_id, endpoint.format)
        turn = self._turns.setdefault(outgoing.organization_id, asyncio.Lock())
        async with turn:
            return await asyncio.get_running_loop().run_in_executor(
                self._transforming, render, outgoing, outgoing.organization_id, endpoint.format, endpoint.transform
            )

    async def aclose(self) -> None:
        """Close every connection."""
        self._transforming.shutdown(wait=False)
        await self._client.aclose()
