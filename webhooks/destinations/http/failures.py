"""What an exception of the HTTP client means for the attempt."""

from __future__ import annotations

import socket
import ssl
import traceback
from collections.abc import Sequence
from pathlib import Path

import aiohttp
import httpx

from webhooks.destinations.http.addresses import NOT_ALLOWED, AddressNotAllowed
from webhooks.destinations.outcome import Failure, Outcome


def explain(error: BaseException) -> Outcome:
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
        return Outcome(failure=Failure.ADDRESS_NOT_ALLOWED, detail=NOT_ALLOWED)
    if has(aiohttp.ClientProxyConnectionError, aiohttp.ClientHttpProxyError):
        return Outcome(failure=Failure.PROXY_FAILED, detail="The way out did not pass the request on.")
    if has(ssl.SSLError, ssl.CertificateError, aiohttp.ClientSSLError, aiohttp.ServerFingerprintMismatch):
        return Outcome(failure=Failure.TLS_FAILED, detail=_tls_detail(chain))
    if has(aiohttp.ClientConnectorDNSError, socket.gaierror):
        return Outcome(failure=Failure.DNS_FAILED, detail="The host name has no address.")
    if has(aiohttp.InvalidURL, httpx.InvalidURL, httpx.UnsupportedProtocol):
        return Outcome(failure=Failure.ADDRESS_NOT_ALLOWED, detail=NOT_ALLOWED)
    if has(ConnectionRefusedError):
        return Outcome(failure=Failure.CONNECTION_REFUSED, detail="The receiver refused the connection.")
    if has(aiohttp.ClientConnectorError):
        return Outcome(failure=Failure.CONNECTION_FAILED, detail="No connection to the receiver could be made.")
    if has(aiohttp.ServerDisconnectedError, ConnectionResetError, BrokenPipeError, aiohttp.ClientOSError):
        return Outcome(failure=Failure.CONNECTION_LOST, detail="The receiver closed the connection without an answer.")
    if has(aiohttp.ClientResponseError, aiohttp.http_exceptions.HttpProcessingError, aiohttp.ClientPayloadError):
        messages = [link.message for link in chain if isinstance(link, aiohttp.http_exceptions.HttpProcessingError)]
        reason = " ".join(messages[0].split())[:200] if messages else "it broke off"
        return Outcome(failure=Failure.INVALID_RESPONSE, detail=f"Not a valid HTTP answer: {reason}")
    # Where it was raised, and not what it says, which may be anybody's data.
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return Outcome(failure=Failure.INTERNAL_ERROR, detail=f"{type(error).__name__}{place}.")


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
