"""A subscription's endpoint: its URL, custom headers, and signing secrets, sealed at rest and opened in memory."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import urlsplit

import orjson

from core.encryption import DecryptionError, decrypt, encrypt
from webhooks.destinations.http.auth import ClientCredentials, authorization_of, open_auth
from webhooks.destinations.http.client_certificates import ClientCertificate, open_client_certificate
from webhooks.destinations.http.signing import Key, secret_key

UNREADABLE_SECRETS = "The subscription's secrets can't be decrypted with SECRETS_ENCRYPTION_KEYS."
# Opened endpoints are kept.  One with all the headers and certificates that it may have takes some 200 kB, so of those
# that are longer than this, sealed, fewer are.
LONG = 16_384
MAX_KEPT, MAX_LONG_KEPT = 10_000, 500
UNREADABLE_URL = "The subscription's URL can't be parsed."


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where and how to send.  host: the host and port that the URL leads to, for limits by host.

    headers: the custom headers, and the authorization, unless that is a token. format, transform: how an event becomes
    a body, see `destinations.formats`. signature_header: the name of a header that repeats the signature. token: the
    credentials for a token that authorizes the request. certificate: what the connection presents to the endpoint.
    fault: why nothing can be sent; empty if nothing is wrong.  A faulty endpoint fails its own deliveries only.
    """

    url: str
    host: str
    headers: tuple[tuple[str, str], ...]
    keys: tuple[Key, ...]
    fault: str = ""
    format: str = "standard"
    transform: str = ""
    signature_header: str = ""
    token: ClientCredentials | None = None
    certificate: ClientCertificate | None = None

    def __repr__(self) -> str:
        return f"Endpoint({self.url!r})"  # the rest is secret and must not reach a log


def seal_headers(headers: Mapping[str, str]) -> str:
    """Return the headers encrypted, as text; empty for none."""
    return encrypt(orjson.dumps(dict(headers)).decode()) if headers else ""


def open_headers(sealed: str) -> dict[str, str]:
    """Return what `seal_headers` was given.  Raises DecryptionError if no key fits."""
    return dict(orjson.loads(decrypt(sealed))) if sealed else {}


def host_of(url: str) -> str:
    """Return the host and port that a URL leads to.  Raises ValueError if it can't be parsed."""
    parts = urlsplit(url)
    return f"{parts.hostname}:{parts.port or {'http': 80}.get(parts.scheme, 443)}"


def open_endpoint(
    url: str,
    sealed_headers: str,
    sealed_secret: str,
    sealed_previous: Iterable[str] = (),
    format: str = "standard",
    transform: str = "",
    *,
    sealed_auth: str = "",
    sealed_certificate: str = "",
    signature_header: str = "",
) -> Endpoint:
    """Return the endpoint opened; if it can't be, one whose `fault` says why.

    sealed_previous: the other secrets that sign beside the current one.  Never raises: one tenant's row must not stop a
    claim that others share.
    """
    length = len(sealed_headers) + len(sealed_auth) + len(sealed_certificate)
    opened = _open if length <= LONG else _open_long
    try:
        return opened(
            url,
            sealed_headers,
            (sealed_secret, *sealed_previous),
            format,
            transform,
            sealed_auth,
            sealed_certificate,
            signature_header,
        )
    except (DecryptionError, TypeError):
        return Endpoint(url, "", (), (), UNREADABLE_SECRETS)
    except ValueError as error:
        fault = UNREADABLE_URL if isinstance(error, _UrlUnreadable) else UNREADABLE_SECRETS
        return Endpoint(url, "", (), (), fault)


class _UrlUnreadable(ValueError):
    """`urlsplit` refuses the URL."""


def _read(
    url: str,
    sealed_headers: str,
    sealed_secrets: tuple[str, ...],
    format: str,
    transform: str,
    sealed_auth: str,
    sealed_certificate: str,
    signature_header: str,
) -> Endpoint:
    try:
        host = host_of(url)
    except ValueError:
        raise _UrlUnreadable from None
    keys = tuple(secret_key(decrypt(sealed)) for sealed in sealed_secrets if sealed)
    headers = open_headers(sealed_headers)
    auth = open_auth(sealed_auth)
    token = auth if isinstance(auth, ClientCredentials) else None
    if auth is not None:
        # Two requests at the same time may have set both.
        headers = {name: value for name, value in headers.items() if name.lower() != "authorization"}
        if not isinstance(auth, ClientCredentials):
            headers["authorization"] = authorization_of(auth)
    certificate = open_client_certificate(sealed_certificate)
    return Endpoint(
        url, host, tuple(headers.items()), keys, "", format, transform, signature_header, token, certificate
    )


_open = lru_cache(MAX_KEPT)(_read)
_open_long = lru_cache(MAX_LONG_KEPT)(_read)
