"""Sends a signed request, with bounds on everything that an endpoint can do.

The parts: `target` parses the URL, `pool` keeps connections, a route (`connect`, `proxy`) opens them, `connection`
carries the bytes, `response_reader` parses them, and `failures` explains exceptions.
"""

from __future__ import annotations

import asyncio
import ssl
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from weakref import WeakValueDictionary

import httpx
from cachetools import LRUCache

from webhooks.destinations.exchange import Exchange
from webhooks.destinations.http.client_certificates import ClientCertificate, load_into
from webhooks.destinations.http.connect import DirectRoute, Route
from webhooks.destinations.http.connection import Connection
from webhooks.destinations.http.egress_policy import UrlError, check_url
from webhooks.destinations.http.egress_settings import Egress
from webhooks.destinations.http.errors import ConnectionLost
from webhooks.destinations.http.failures import explain
from webhooks.destinations.http.pool import Pool
from webhooks.destinations.http.proxy import ProxyRoute
from webhooks.destinations.http.response_reader import End, ResponseReader
from webhooks.destinations.http.target import Target, parse_target
from webhooks.destinations.http.tls import resume_sessions
from webhooks.destinations.outcome import Failure, Outcome, classify_response

# An endpoint that returned 2xx has the webhook; we wait no longer than this for the rest of its response.
BODY_GRACE_SECONDS = 5.0
MAX_KNOWN_TARGETS = 10_000
# A TLS context with all authorities takes about 0.7 MB.
MAX_IDENTITIES = 100
MAX_IDENTITIES_PER_ORGANIZATION = 20


@dataclass(frozen=True, slots=True)
class Identity:
    """For whom a connection is made.  Connections and TLS sessions are only shared within one identity."""

    organization: str
    certificate: ClientCertificate

    @property
    def key(self) -> str:
        """Identifies, with their origin, the connections that may be shared."""
        return f"{self.organization} {self.certificate.digest}"


def make_context(egress: Egress, certificate: ClientCertificate | None = None) -> ssl.SSLContext:
    """Return the TLS context for connections to endpoints, which may present a client certificate."""
    context = httpx.create_ssl_context(verify=True, trust_env=False)
    if egress.ca_file:
        context.load_verify_locations(egress.ca_file)
    if certificate is not None:
        load_into(context, certificate)
    resume_sessions(context)
    return context


class HttpClient:
    """Sends requests over kept connections.  Made and closed on the event loop that uses it."""

    def __init__(self, egress: Egress) -> None:
        self._egress = egress
        self._targets: dict[str, Target] = {}
        self.tls_context = make_context(egress)
        self._contexts: LRUCache[str, ssl.SSLContext] = LRUCache(MAX_IDENTITIES)
        # An unused lock is removed by the garbage collector.
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._making = ThreadPoolExecutor(1, thread_name_prefix="tls")
        self._route: Route = ProxyRoute(egress, self.tls_context) if egress.proxy_url else DirectRoute(egress)
        self._pool = Pool(egress.connections)

    async def aclose(self) -> None:
        """Close every connection."""
        self._making.shutdown(wait=False, cancel_futures=True)
        self._pool.close()
        await self._route.close()

    async def send(
        self,
        url: str,
        headers: list[tuple[str, str]],
        body: bytes,
        exchange: Exchange | None = None,
        *,
        identity: Identity | None = None,
        deadline: float | None = None,
    ) -> Outcome:
        """POST `body` and return the outcome; raises nothing except cancellation.

        The whole, from resolving to the last byte that is kept, ends within the timeout.

        exchange: where to note what happens on the wire; the outcome brings it along.
        identity: who a TLS connection is made for, with a client certificate.
        deadline: by the loop's clock, if all must be over before the timeout.
        """
        exchange = exchange or Exchange(url, [], len(body))
        latest = asyncio.get_running_loop().time() + self._egress.timeout
        deadline = latest if deadline is None else min(deadline, latest)
        try:
            target = self._find_target(url)
            request = self._write_request(target, headers, body)
            async with asyncio.timeout_at(deadline):
                connection, reader = await self._exchange(target, request, exchange, identity)
            detail = await self._read_rest(connection, reader, deadline)
            if connection.finish():
                self._pool.put(_pool_key(target, identity), connection)
            else:
                connection.abort()
            return _outcome(reader, detail, exchange)
        except UrlError as error:
            return Outcome(failure=Failure.ADDRESS_NOT_ALLOWED, detail=str(error), exchange=exchange)
        except TimeoutError:
            detail = f"No complete response within {self._egress.timeout:g} s."
            return Outcome(failure=Failure.TIMEOUT, detail=detail, exchange=exchange)
        except Exception as error:
            return replace(explain(error), exchange=exchange)

    def _find_target(self, url: str) -> Target:
        """Return the target of the URL, checked again: the policy may have changed since it was stored.

        Raises UrlError.
        """
        target = self._targets.get(url)
        if target is None:
            check_url(url, self._egress.allowed_networks, self._egress.allowed_ports)
            if len(self._targets) >= MAX_KNOWN_TARGETS:
                self._targets.clear()
            target = self._targets[url] = parse_target(url)
        return target

    def _write_request(self, target: Target, headers: list[tuple[str, str]], body: bytes) -> bytes:
        """Return the request's bytes.  Raises ValueError for a header that would end its line."""
        lines = "".join([f"{name}: {value}\r\n" for name, value in headers])
        if lines.count("\n") != len(headers) or lines.count("\r") != len(headers) or "\0" in lines:
            raise ValueError("a header holds a line break")
        head = (
            f"{self._route.request_line(target)}Host: {target.authority}\r\n{lines}Content-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body

    async def _context_for(self, identity: Identity | None) -> ssl.SSLContext:
        """Return the TLS context of an identity.

        One takes some 20 ms to make.  That is done beside the event loop, for one identity of each organization at a
        time, so that one that has many takes turns with the others.
        """
        if identity is None:
            return self.tls_context
        context = self._contexts.get(identity.key)
        if context is None:
            async with self._turns.setdefault(identity.organization, asyncio.Lock()):
                context = self._contexts.get(identity.key)  # made while this one waited
                if context is None:
                    loop = asyncio.get_running_loop()
                    context = await loop.run_in_executor(self._making, make_context, self._egress, identity.certificate)
                    self._remember(identity, context)
        return context

    def _remember(self, identity: Identity, context: ssl.SSLContext) -> None:
        """Keep a context for the next connection; an organization that has its share gives up its oldest."""
        own = [key for key in self._contexts if key.startswith(f"{identity.organization} ")]
        if len(own) >= MAX_IDENTITIES_PER_ORGANIZATION:
            del self._contexts[own[0]]
        self._contexts[identity.key] = context

    async def _exchange(
        self, target: Target, request: bytes, exchange: Exchange, identity: Identity | None
    ) -> tuple[Connection, ResponseReader]:
        """Send the request and return once the response's head is there.

        A kept connection that ends before the first byte of a response says nothing about the endpoint, which may
        have closed it before it saw the request: that goes out once more, on a new connection.
        """
        kept = self._pool.take(_pool_key(target, identity))
        if kept is not None:
            reader = ResponseReader(self._egress.body_bytes)
            try:
                exchange.is_reused = True
                await self._request(kept, request, reader, exchange)
            except ConnectionLost:
                if reader.has_started:
                    raise
            except BaseException:
                kept.abort()
                raise
            else:
                # 408 may be said of a connection that was idle, and not of our request (RFC 9110 §15.5.9).
                if reader.status != 408 or reader.is_persistent:
                    return kept, reader
            kept.abort()
            exchange.is_reused, exchange.is_resent = False, True
            exchange.remote_address, exchange.response_head, exchange.first_byte_us = "", b"", None
        connection = await self._route.connect(target, exchange, await self._context_for(identity))
        reader = ResponseReader(self._egress.body_bytes)
        try:
            await self._request(connection, request, reader, exchange)
        except BaseException:
            connection.abort()
            raise
        return connection, reader

    async def _request(
        self, connection: Connection, request: bytes, reader: ResponseReader, exchange: Exchange
    ) -> None:
        """Send the request over the connection, and note the times."""
        exchange.remote_address = connection.remote_address
        exchange.via_proxy = bool(self._egress.proxy_url)
        sent = asyncio.get_running_loop().time()
        try:
            await connection.request(request, reader)
        finally:
            exchange.response_head, exchange.is_head_cut = reader.head, reader.is_head_cut
            if connection.first_byte_at is not None:
                exchange.first_byte_us = round((connection.first_byte_at - sent) * 1_000_000)

    async def _read_rest(self, connection: Connection, reader: ResponseReader, deadline: float) -> str:
        """Wait for the end of the body, and return a remark about it: a body that fails changes nothing.

        deadline: by the loop's clock, when the whole must be over.
        """
        if reader.end is None:
            grace_ends = asyncio.get_running_loop().time() + BODY_GRACE_SECONDS
            try:
                async with asyncio.timeout_at(min(deadline, grace_ends)):
                    await connection.wait_for_end()
            except TimeoutError:
                return "The response's body did not end in time."
            except BaseException:
                connection.abort()
                raise
        return "The response's body broke off." if reader.end is End.BROKEN else ""


def _pool_key(target: Target, identity: Identity | None) -> str:
    return target.origin if identity is None else f"{target.origin} {identity.key}"


def _outcome(reader: ResponseReader, detail: str, exchange: Exchange) -> Outcome:
    """Return what a response means.  detail: what is to be said about its body."""
    status = reader.status or 0
    failure = classify_response(status)
    if failure is not None:
        detail = detail or f"The endpoint responded with {status}."
    text = bytes(reader.body).decode("utf-8", "replace").replace("\x00", "\ufffd")
    return Outcome(status, failure, detail, text, reader.retry_after, exchange)
