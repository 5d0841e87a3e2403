"""What an exception of the HTTP client means for the attempt."""

from __future__ import annotations

import socket
import ssl
import traceback
from pathlib import Path

from webhooks.destinations.http.egress_policy import NOT_ALLOWED, AddressNotAllowed
from webhooks.destinations.http.errors import (
    ConnectFailed,
    ConnectionLost,
    DnsFailed,
    InvalidResponse,
    ProxyFailed,
)
from webhooks.destinations.outcome import Failure, Outcome

# The first kind that fits counts.  The exceptions' own messages name resolved addresses and proxies, which tenants must
# not see; they read these sentences instead.
_SENTENCES: tuple[tuple[tuple[type[BaseException], ...], Failure, str], ...] = (
    ((AddressNotAllowed,), Failure.ADDRESS_NOT_ALLOWED, NOT_ALLOWED),
    ((ProxyFailed,), Failure.PROXY_FAILED, "The egress proxy did not pass the request on."),
    ((ssl.SSLError,), Failure.TLS_FAILED, ""),
    ((DnsFailed, socket.gaierror), Failure.DNS_FAILED, "The host name has no address."),
    ((ConnectionRefusedError,), Failure.CONNECTION_REFUSED, "The endpoint refused the connection."),
    ((ConnectFailed,), Failure.CONNECTION_FAILED, "No connection to the endpoint could be made."),
    (
        (ConnectionLost, ConnectionResetError, BrokenPipeError),
        Failure.CONNECTION_LOST,
        "The endpoint closed the connection without a response.",
    ),
)


def explain(error: BaseException) -> Outcome:
    """Return the failed outcome that stands for an exception of the HTTP client."""
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and len(chain) < 10:
        chain.append(cause)
        if isinstance(cause, BaseExceptionGroup):
            chain.extend(cause.exceptions)
        cause = cause.__cause__ or cause.__context__
    for kinds, failure, sentence in _SENTENCES:
        if any(isinstance(link, kinds) for link in chain):
            return Outcome(failure=failure, detail=sentence or _tls_detail(chain))
    for link in chain:
        if isinstance(link, InvalidResponse):
            return Outcome(failure=Failure.INVALID_RESPONSE, detail=f"Not a valid HTTP response: {link}.")
    # Where it was raised, and not its message, which may contain data.
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return Outcome(failure=Failure.INTERNAL_ERROR, detail=f"{type(error).__name__}{place}.")


def _tls_detail(chain: list[BaseException]) -> str:
    """Return OpenSSL's reason, without what Python adds to it."""
    for link in chain:
        if isinstance(link, ssl.SSLCertVerificationError) and link.verify_message:
            return f"The certificate was not accepted: {link.verify_message.rstrip('.')}."
    for link in chain:
        if isinstance(link, ssl.SSLError) and link.reason:
            return f"The TLS handshake failed: {link.reason.replace('_', ' ').lower()}."
    return "The TLS handshake failed."
