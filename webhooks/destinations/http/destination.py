"""The HTTP kind of destination: from an event to a signed request, and from the response to an outcome."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import AnyStr
from weakref import WeakValueDictionary

import msgspec
from django.utils import timezone

from events.models import ERASED
from events.origin import trace_headers
from webhooks.destinations.base import Outgoing
from webhooks.destinations.exchange import Exchange
from webhooks.destinations.formats import Body, Format, render, standard_envelope
from webhooks.destinations.http.auth import ClientCredentials
from webhooks.destinations.http.client import HttpClient, Identity
from webhooks.destinations.http.egress_settings import egress_from_settings
from webhooks.destinations.http.endpoint import Endpoint
from webhooks.destinations.http.failures import explain
from webhooks.destinations.http.oauth import TokenFailed, TokenStore
from webhooks.destinations.http.signing import sign
from webhooks.destinations.outcome import Failure, Outcome
from webhooks.destinations.transform import TransformError

USER_AGENT = "TriggersAPI/1.0"
SIGNATURE = "webhook-signature"
HIDDEN = "***"
SHORTEST_HIDDEN = 8
PERHAPS_REFUSED = "It may not accept the client certificate."
EXPIRED = "The subscription's client certificate has expired: give it another one."


def build_headers(outgoing: Outgoing, timestamp: int, body: bytes, form: Body | None = None) -> list[tuple[str, str]]:
    """Return the headers of Standard Webhooks and the subscription's own, which can't replace ours.

    timestamp: seconds since the epoch, of this attempt.  body: the bytes that are signed and sent. form: the media type
    and headers of the body's format, if it isn't the standard one.
    """
    webhook_id = str(outgoing.event_id)
    signature = sign(outgoing.endpoint.keys, webhook_id, timestamp, body)
    ours = [
        ("content-type", form.content_type if form else "application/json"),
        ("user-agent", USER_AGENT),
        ("webhook-id", webhook_id),
        ("webhook-timestamp", str(timestamp)),
        (SIGNATURE, signature),
    ]
    if outgoing.endpoint.signature_header:
        ours.append((outgoing.endpoint.signature_header, signature))
    if form and not form.content_type:  # there is no body that could have a type
        del ours[0]
    if outgoing.event_trace:
        ours += trace_headers(outgoing.event_trace)
    if form:
        ours += form.headers
    return ours + list(outgoing.endpoint.headers)


def mask_headers(headers: list[tuple[str, str]], endpoint: Endpoint) -> list[tuple[str, str | None]]:
    """Return the headers with None for what is secret: the signature, and what the subscription stores encrypted."""
    ours = len(headers) - len(endpoint.headers)
    secret = {SIGNATURE, endpoint.signature_header}
    return [
        (name, value if position < ours and name not in secret else None)
        for position, (name, value) in enumerate(headers)
    ]


def _without(text: AnyStr, secret: AnyStr, hidden: AnyStr) -> AnyStr:
    text = text.replace(secret, hidden)
    # What is kept of a long response may end within the secret.
    at = text.rfind(secret[:SHORTEST_HIDDEN])
    return text[:at] + hidden if at >= 0 and secret.startswith(text[at:]) else text


def hide(outcome: Outcome, secrets: Iterable[str]) -> Outcome:
    """Return the outcome without the request's secrets, which an endpoint may repeat in its response."""
    for secret in secrets:
        if secret[:SHORTEST_HIDDEN] in outcome.body:
            outcome = replace(outcome, body=_without(outcome.body, secret, HIDDEN))
        if outcome.exchange is not None:
            head = outcome.exchange.response_head
            outcome.exchange.response_head = _without(head, secret.encode(), HIDDEN.encode())
    return outcome


def _secret_values(headers: Iterable[tuple[str, str]]) -> list[str]:
    """Return what is secret in the subscription's own headers; nothing so short that any text holds it.

    That is their values and what stands in them behind a scheme, as in `Token …`; of `Authorization`, only the latter.
    """
    found = []
    for name, value in headers:
        rest = value.partition(" ")[2]
        found += [rest or value] if name.lower() == "authorization" else [value, rest]
    return [value for value in found if len(value) >= SHORTEST_HIDDEN]


class HttpDestination:
    """Sends webhooks as the settings' egress policy allows."""

    def __init__(self, timeout: float | None = None) -> None:
        """timeout: of an attempt, in seconds; DELIVERY_TIMEOUT without it."""
        egress = egress_from_settings()
        self._egress = egress if timeout is None else replace(egress, timeout=timeout)
        self._client = HttpClient(self._egress)
        self._tokens: TokenStore | None = None  # made for the first endpoint that asks for one
        self._transforming = ThreadPoolExecutor(1, thread_name_prefix="transform")
        # An unused lock is removed by the garbage collector.
        self._turns: WeakValueDictionary[uuid.UUID, asyncio.Lock] = WeakValueDictionary()

    async def send(self, outgoing: Outgoing, timestamp: float) -> Outcome:
        """POST the event; see `destinations.base.Destination`."""
        endpoint = outgoing.endpoint
        if endpoint.fault:
            return Outcome(failure=Failure.INTERNAL_ERROR, detail=endpoint.fault)
        if outgoing.event_data == ERASED:
            return Outcome(failure=Failure.PAYLOAD_ERASED, detail="The event's payload was erased.")
        try:
            form = None if endpoint.format == Format.STANDARD else await self._render(outgoing)
            body = standard_envelope(outgoing) if form is None else form.content
            headers = build_headers(outgoing, int(timestamp), body, form)
            exchange = Exchange(endpoint.url, mask_headers(headers, endpoint), len(body))
            if form is not None:
                exchange.format = endpoint.format
                exchange.expression = endpoint.transform if endpoint.format == Format.TRANSFORM else ""
            return await self._post(endpoint, outgoing.organization_id, headers, body, exchange)
        except TransformError as error:
            return Outcome(failure=Failure.TRANSFORM_FAILED, detail=str(error))
        except TokenFailed as error:
            return Outcome(failure=Failure.OAUTH_FAILED, detail=str(error))
        except Exception as error:
            return explain(error)

    async def send_plain(
        self, endpoint: Endpoint, organization_id: uuid.UUID, headers: list[tuple[str, str]], body: bytes
    ) -> Outcome:
        """POST something other than a webhook, with the same authorization; the endpoint's custom headers are added.
        Raises as `send`."""
        if endpoint.fault:
            return Outcome(failure=Failure.INTERNAL_ERROR, detail=endpoint.fault)
        headers = [*headers, *endpoint.headers]
        exchange = Exchange(endpoint.url, mask_headers(headers, endpoint), len(body))
        try:
            return await self._post(endpoint, organization_id, headers, body, exchange)
        except TokenFailed as error:
            return Outcome(failure=Failure.OAUTH_FAILED, detail=str(error))
        except Exception as error:
            return explain(error)

    async def _post(
        self,
        endpoint: Endpoint,
        organization_id: uuid.UUID,
        headers: list[tuple[str, str]],
        body: bytes,
        exchange: Exchange,
    ) -> Outcome:
        """Make the request with the endpoint's credentials.  Raises TokenFailed."""
        identity = None
        if endpoint.certificate is not None:
            identity = Identity(str(organization_id), endpoint.certificate)
            if endpoint.certificate.has_expired(timezone.now()):
                return Outcome(failure=Failure.TLS_FAILED, detail=EXPIRED)
        if endpoint.token is not None:
            outcome = await self._send_with_token(
                endpoint, organization_id, endpoint.token, headers, body, exchange, identity
            )
        else:
            outcome = await self._client.send(endpoint.url, headers, body, exchange, identity=identity)
            outcome = hide(outcome, _secret_values(endpoint.headers))
        if identity is not None and outcome.failure is Failure.CONNECTION_LOST:
            return replace(outcome, detail=f"{outcome.detail} {PERHAPS_REFUSED}")
        return outcome

    async def _send_with_token(
        self,
        endpoint: Endpoint,
        organization_id: uuid.UUID,
        credentials: ClientCredentials,
        headers: list[tuple[str, str]],
        body: bytes,
        exchange: Exchange,
        identity: Identity | None,
    ) -> Outcome:
        """Send the request with a token, and once more with a new one if the endpoint refuses a remembered token.

        All of it ends within the attempt's time.  Raises TokenFailed.
        """
        if self._tokens is None:
            self._tokens = TokenStore(self._egress)
        loop = asyncio.get_running_loop()
        started = loop.time()
        deadline = started + self._egress.timeout
        for is_last in (False, True):
            try:
                async with asyncio.timeout_at(deadline):
                    token = await self._tokens.token(organization_id, credentials)
            except TimeoutError:
                raise TokenFailed("The attempt's time was over before there was a new token.") from None
            authorization = ("authorization", f"Bearer {token.value}")
            # If there are two requests, the exchange of the second one is kept.
            sent = msgspec.structs.replace(
                exchange, request_headers=[*exchange.request_headers, ("authorization", None)]
            )
            outcome = await self._client.send(
                endpoint.url,
                [*headers, authorization],
                body,
                sent,
                identity=identity,
                deadline=deadline,
            )
            outcome = hide(outcome, _secret_values([*endpoint.headers, authorization]))
            if outcome.status_code != 401:
                break
            self._tokens.reject(organization_id, credentials, token)
            # A token that was issued for this attempt won't be any better the next time.
            if is_last or token.issued_at >= started:
                break
        return outcome

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
        if self._tokens is not None:
            await self._tokens.aclose()
        await self._client.aclose()
