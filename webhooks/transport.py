"""One signed request on the wire, with everything that a receiver can do bounded.

Each connection's address is vetted where it is made: the resolver drops refused addresses, and the
socket factory looks again at what is about to be connected to, so that a literal address, a cached
answer or a name that changed its mind all pass the same check.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import ipaddress
import socket
import ssl
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import pycares
from aiohttp import AsyncResolver
from aiohttp.abc import AbstractResolver, ResolveResult
from httpx_aiohttp import AiohttpTransport
from multidict import CIMultiDict

from webhooks.addresses import NOT_ALLOWED, Network, UrlError, check_url, is_allowed, is_port_allowed
from webhooks.schedule import Answer, Failure, judge_status
from webhooks.tls import resume_sessions

# A receiver that said 2xx has the webhook; what else it says is waited for this long at the most.
BODY_GRACE_SECONDS = 5.0


class AddressNotAllowed(OSError):
    """The policy refuses the address that a connection would go to."""


@dataclass(frozen=True)
class Egress:
    """How requests leave: the policy, the limits, and what they are sent through."""

    timeout: float
    body_bytes: int
    allowed_networks: tuple[Network, ...] = ()
    allowed_ports: frozenset[int] = frozenset()
    proxy_url: str = ""
    ca_file: str = ""
    dns_cache_ttl: float = 10.0
    dns_servers: tuple[str, ...] = ()
    connections: int = 512


class SystemResolver(AbstractResolver):
    """Asks the system's resolver, on threads of its own: a name server that hangs must not use up the loop's.

    threads: one for each request that may be in flight, so that no number of names whose servers hang keeps
    another name waiting.  They are made when they are needed.
    """

    def __init__(self, threads: int) -> None:
        self._threads = concurrent.futures.ThreadPoolExecutor(threads, thread_name_prefix="resolver")

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Return every IPv4 and IPv6 address of `host`.  Raises OSError when it has none."""
        found = await asyncio.get_running_loop().run_in_executor(
            self._threads, lambda: socket.getaddrinfo(host, port, family=family, type=socket.SOCK_STREAM)
        )
        return [
            ResolveResult(
                hostname=host, host=str(sockaddr[0]), port=port, family=kind, proto=proto, flags=socket.AI_NUMERICHOST
            )
            for kind, _, proto, _, sockaddr in found
            if kind in (socket.AF_INET, socket.AF_INET6)
        ]

    async def close(self) -> None:
        """Let the threads end."""
        self._threads.shutdown(wait=False, cancel_futures=True)


class VettingResolver(AbstractResolver):
    """Keeps only those of another resolver's addresses that may be called."""

    def __init__(self, resolver: AbstractResolver, allowed: Sequence[Network]) -> None:
        self._resolver = resolver
        self._allowed = tuple(allowed)

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Return the allowed addresses of `host`.  Raises AddressNotAllowed when it has others only."""
        found = await self._resolver.resolve(host, port, family)
        results = [one for one in found if is_allowed(ipaddress.ip_address(one["host"]), self._allowed)]
        if not results:
            raise AddressNotAllowed(NOT_ALLOWED)
        return results

    async def close(self) -> None:
        """Close the other resolver."""
        await self._resolver.close()


def make_resolver(egress: Egress) -> VettingResolver:
    """Return the resolver that `egress` asks for: the named servers', or the system's."""
    if not egress.dns_servers:
        return VettingResolver(SystemResolver(egress.connections), egress.allowed_networks)
    # Only these servers, and the name as it stands: no hosts file, no search domains.
    named = AsyncResolver(nameservers=egress.dns_servers, lookups="b", flags=pycares.ARES_FLAG_NOSEARCH, timeout=2.0)
    return VettingResolver(named, egress.allowed_networks)


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


class Transport:
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

    async def send(self, url: str, headers: list[tuple[str, str]], body: bytes) -> Answer:
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
            return Answer(failure=Failure.ADDRESS_NOT_ALLOWED, detail=str(error))
        except TimeoutError:
            return Answer(failure=Failure.TIMEOUT, detail=f"No complete answer within {egress.timeout:g} s.")
        except Exception as error:
            return explain(error)

    def _check(self, url: str) -> None:
        """Judge the URL again at sending: the policy may have changed since it was stored."""
        if url not in self._checked_urls:
            check_url(url, self._egress.allowed_networks, self._egress.allowed_ports)
            if len(self._checked_urls) > 10_000:
                self._checked_urls.clear()
            self._checked_urls.add(url)

    async def _read(self, response: httpx.Response, deadline: float) -> Answer:
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
        failure = judge_status(response.status_code)
        if failure is not None:
            detail = detail or f"The receiver answered {response.status_code}."
        text = bytes(kept[: self._egress.body_bytes]).decode("utf-8", "replace").replace("\x00", "\ufffd")
        return Answer(response.status_code, failure, detail, text, response.headers.get("retry-after"))


def explain(error: BaseException) -> Answer:
    """Return the failed answer that stands for an exception of the HTTP client."""
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and len(chain) < 10:
        chain.append(cause)
        if isinstance(cause, BaseExceptionGroup):
            chain.extend(cause.exceptions)
        os_error = getattr(cause, "os_error", None)
        if isinstance(os_error, BaseException):
            chain.append(os_error)
        cause = cause.__cause__ or cause.__context__

    def has(*kinds: type[BaseException]) -> bool:
        return any(isinstance(link, kinds) for link in chain)

    # The texts of the client's exceptions name resolved addresses and proxies, which are the operator's
    # business.  The tenant reads ours.
    if has(AddressNotAllowed):
        return Answer(failure=Failure.ADDRESS_NOT_ALLOWED, detail=NOT_ALLOWED)
    if has(aiohttp.ClientProxyConnectionError, aiohttp.ClientHttpProxyError):
        return Answer(failure=Failure.PROXY_FAILED, detail="The way out did not pass the request on.")
    if has(ssl.SSLError, ssl.CertificateError, aiohttp.ClientSSLError, aiohttp.ServerFingerprintMismatch):
        return Answer(failure=Failure.TLS_FAILED, detail=_tls_detail(chain))
    if has(aiohttp.ClientConnectorDNSError, socket.gaierror):
        return Answer(failure=Failure.DNS_FAILED, detail="The host name has no address.")
    if has(aiohttp.InvalidURL, httpx.InvalidURL, httpx.UnsupportedProtocol):
        return Answer(failure=Failure.ADDRESS_NOT_ALLOWED, detail=NOT_ALLOWED)
    if has(ConnectionRefusedError):
        return Answer(failure=Failure.CONNECTION_REFUSED, detail="The receiver refused the connection.")
    if has(aiohttp.ClientConnectorError):
        return Answer(failure=Failure.CONNECTION_FAILED, detail="No connection to the receiver could be made.")
    if has(aiohttp.ServerDisconnectedError, ConnectionResetError, BrokenPipeError, aiohttp.ClientOSError):
        return Answer(failure=Failure.CONNECTION_LOST, detail="The receiver closed the connection without an answer.")
    if has(aiohttp.ClientResponseError, aiohttp.http_exceptions.HttpProcessingError, aiohttp.ClientPayloadError):
        messages = [link.message for link in chain if isinstance(link, aiohttp.http_exceptions.HttpProcessingError)]
        reason = " ".join(messages[0].split())[:200] if messages else "it broke off"
        return Answer(failure=Failure.INVALID_RESPONSE, detail=f"Not a valid HTTP answer: {reason}")
    # Where it was raised, and not what it says, which may be anybody's data.
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return Answer(failure=Failure.INTERNAL_ERROR, detail=f"{type(error).__name__}{place}.")


def _tls_detail(chain: Sequence[BaseException]) -> str:
    """Return what OpenSSL found wrong, without what Python and aiohttp add to it."""
    for link in chain:
        # aiohttp's own exception is an SSLCertVerificationError by name only.
        if isinstance(link, ssl.SSLCertVerificationError) and (found := getattr(link, "verify_message", "")):
            return f"The certificate was not accepted: {str(found).rstrip('.')}."
    for link in chain:
        if isinstance(link, ssl.SSLError) and (found := getattr(link, "reason", "")):
            return f"The TLS handshake failed: {str(found).replace('_', ' ').lower()}."
    return "The TLS handshake failed."
