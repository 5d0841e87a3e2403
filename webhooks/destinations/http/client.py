"""One signed request on the wire, with everything that an endpoint can do bounded.

Each connection's address is checked where it is made: the resolver drops refused addresses, and the socket factory
looks again at what is about to be connected to, so that a literal address, a cached response and a name that changed
its mind all pass the same check.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from functools import lru_cache
from typing import Any

import aiohttp
import httpx
from httpx_aiohttp import AiohttpTransport
from multidict import CIMultiDict

from webhooks.destinations.http.addresses import (
    NOT_ALLOWED,
    AddressNotAllowed,
    UrlError,
    check_url,
    is_allowed,
    is_port_allowed,
)
from webhooks.destinations.http.egress import Egress
from webhooks.destinations.http.failures import explain
from webhooks.destinations.http.resolver import make_resolver
from webhooks.destinations.http.tls import resume_sessions
from webhooks.destinations.outcome import Failure, Outcome, classify_response

# An endpoint that said 2xx has the webhook; the rest of its response is waited for no longer than this.
BODY_GRACE_SECONDS = 5.0


@lru_cache(maxsize=10_000)
def _parse_url(url: str) -> httpx.URL:
    return httpx.URL(url)


class _Post(httpx.Request):
    """A POST as the transport reads it, with the headers in aiohttp's own type.

    httpx's constructor builds its headers twice and the transport's client once more; that was a tenth of the
    processor time of a delivery.  Host and Content-Length are aiohttp's to add.
    """

    def __init__(self, url: httpx.URL, headers: list[tuple[str, str]], body: bytes) -> None:
        self.method = "POST"
        self.url = url
        self.headers = CIMultiDict(headers)  # type: ignore[assignment]
        self.extensions = {}
        self.stream = httpx.ByteStream(body)
        self._content = body


class HttpClient:
    """Sends requests over kept connections.  Made and closed on the event loop that uses it."""

    def __init__(self, egress: Egress) -> None:
        self._egress = egress
        self._checked_urls: set[str] = set()
        context = httpx.create_ssl_context(verify=True, trust_env=False)
        if egress.ca_file:
            context.load_verify_locations(egress.ca_file)
        resume_sessions(context)
        # A proxy is the operator's own; what is behind it, it decides.
        self._resolver = None if egress.proxy_url else make_resolver(egress)
        connector = aiohttp.TCPConnector(
            limit=0,  # the claim bounds what is in flight
            ssl=context,
            resolver=self._resolver,
            ttl_dns_cache=int(egress.dns_cache_ttl) or None,
            use_dns_cache=egress.dns_cache_ttl >= 1,
            keepalive_timeout=30,
            socket_factory=None if egress.proxy_url else self._open_socket,
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
            timeout=aiohttp.ClientTimeout(total=None),
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding"),
            auto_decompress=False,
            max_line_size=8190,
            max_field_size=8190,
        )
        self._transport = AiohttpTransport(
            client=self._session, proxy=httpx.Proxy(egress.proxy_url) if egress.proxy_url else None, verify=context
        )

    def _open_socket(self, info: aiohttp.AddrInfoType) -> socket.socket:
        """Open the socket for a vetted address: the last look before a connection."""
        family, kind, proto, _, sockaddr = info
        address, port = ipaddress.ip_address(sockaddr[0]), int(sockaddr[1])
        if not is_allowed(address, self._egress.allowed_networks) or not is_port_allowed(
            port, self._egress.allowed_ports
        ):
            raise AddressNotAllowed(NOT_ALLOWED)
        return socket.socket(family=family, type=kind, proto=proto)

    async def aclose(self) -> None:
        """Close every connection."""
        await self._transport.aclose()
        if self._resolver is not None:
            await self._resolver.close()

    async def send(self, url: str, headers: list[tuple[str, str]], body: bytes) -> Outcome:
        """POST `body` and return what came of it; never raises but for cancellation.

        The whole, from resolving to the last byte that is kept, ends within the timeout.
        """
        egress = self._egress
        deadline = asyncio.get_running_loop().time() + egress.timeout
        try:
            self._check(url)
            async with asyncio.timeout_at(deadline):
                response = await self._transport.handle_async_request(_Post(_parse_url(url), headers, body))
            return await self._read(response, deadline)
        except UrlError as error:
            return Outcome(failure=Failure.ADDRESS_NOT_ALLOWED, detail=str(error))
        except TimeoutError:
            return Outcome(failure=Failure.TIMEOUT, detail=f"No complete answer within {egress.timeout:g} s.")
        except Exception as error:
            return explain(error)

    def _check(self, url: str) -> None:
        """Judge the URL again at sending: the policy may have changed since it was stored."""
        if url not in self._checked_urls:
            check_url(url, self._egress.allowed_networks, self._egress.allowed_ports)
            if len(self._checked_urls) > 10_000:
                self._checked_urls.clear()
            self._checked_urls.add(url)

    async def _read(self, response: httpx.Response, deadline: float) -> Outcome:
        """Read as much of the body as is kept; an answer whose body fails is still an answer.

        deadline: by the loop's clock, when the whole must be over.
        """
        kept = bytearray()
        complete = False
        detail = ""
        stream: Any = response.stream
        try:
            async with asyncio.timeout_at(min(deadline, asyncio.get_running_loop().time() + BODY_GRACE_SECONDS)):
                async for chunk in stream:
                    kept += chunk
                    if len(kept) > self._egress.body_bytes:
                        break
                else:
                    complete = True
        except TimeoutError:
            detail = "The answer's body did not end in time."
        except Exception as error:
            detail = f"The answer's body broke off: {type(error).__name__}."
        finally:
            if complete:
                await stream.aclose()
            else:
                # What is left of the body may never end: the connection goes, unread.
                stream._aiohttp_response.close()
        failure = classify_response(response.status_code)
        if failure is not None:
            detail = detail or f"The receiver answered {response.status_code}."
        text = bytes(kept[: self._egress.body_bytes]).decode("utf-8", "replace").replace("\x00", "\ufffd")
        return Outcome(response.status_code, failure, detail, text, response.headers.get("retry-after"))
