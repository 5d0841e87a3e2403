"""Tokens for endpoints that ask for OAuth 2.0, by client credentials (RFC 6749 §4.4).

Authlib's clients use httpx, which would resolve names itself, without the egress policy, and read responses of any
size.  So our own client sends the request, which is one form.  Of a token endpoint's response, only the token is kept,
and only the RFC's error codes are logged or shown.
"""

from __future__ import annotations

import asyncio
import base64
import re
import uuid
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import quote_plus, urlencode

import msgspec
from cachetools import LRUCache

from webhooks.destinations.http.auth import ClientCredentials
from webhooks.destinations.http.client import HttpClient
from webhooks.destinations.http.egress_settings import Egress
from webhooks.destinations.outcome import Failure, Outcome

# How long a token request may take, and never more than half of an attempt.
MAX_SECONDS = 10.0
MAX_RESPONSE_BYTES = 65_536
MAX_TOKEN_CHARACTERS = 16_384
MAX_TOKENS = 10_000
# The most concurrent token requests, and the most connections that are kept.
CONNECTIONS = 64
# How long a token is used if the endpoint doesn't say when it expires, and the longest that any is used.
DEFAULT_SECONDS = 300.0
MAX_LIFE_SECONDS = 86_400.0
# A token is renewed before it expires: earlier by this share of its life, at most this many seconds.
EARLY_SHARE = 0.1
EARLY_SECONDS = 60.0
# RFC 6749 §5.2
ERROR_CODES = frozenset(
    {
        "invalid_request", "invalid_client", "invalid_grant", "unauthorized_client", "unsupported_grant_type",
        "invalid_scope",
    }
)  # fmt: skip
_TOKEN = re.compile(r"[\x21-\x7e]+")


class TokenFailed(Exception):
    """There is no token.  The message is a sentence of ours, fit for the tenant."""


@dataclass(frozen=True, slots=True)
class Token:
    """A token, when it was requested, and when to request another one, by the loop's clock."""

    value: str
    issued_at: float
    renew_at: float

    def __repr__(self) -> str:
        return "Token(…)"


class _Answer(msgspec.Struct):
    access_token: str
    token_type: str = ""
    expires_in: Any = None


class _ErrorAnswer(msgspec.Struct):
    error: str = ""


_Owner = tuple[uuid.UUID, ClientCredentials]


class TokenStore:
    """The tokens of this process, by organization and credentials.  Made, used, and closed on one event loop.

    Deliveries that need the same token at the same time wait for one request; no others wait.
    """

    def __init__(self, egress: Egress) -> None:
        self._seconds = min(MAX_SECONDS, egress.timeout / 2)
        limited = replace(
            egress,
            timeout=self._seconds,
            body_bytes=MAX_RESPONSE_BYTES,
            connections=min(CONNECTIONS, egress.connections),
        )
        self._client = HttpClient(limited)
        self._tokens: LRUCache[_Owner, Token] = LRUCache(MAX_TOKENS)
        self._requests: dict[_Owner, asyncio.Task[Token]] = {}

    async def token(self, organization_id: uuid.UUID, credentials: ClientCredentials) -> Token:
        """Return a token that isn't about to end.  Raises TokenFailed."""
        owner = (organization_id, credentials)
        known = self._tokens.get(owner)
        if known is not None and asyncio.get_running_loop().time() < known.renew_at:
            return known
        request = self._requests.get(owner)
        if request is None:
            request = self._requests[owner] = asyncio.create_task(self._request(credentials))
            request.add_done_callback(lambda done: self._take(owner, done))
        # If one of them gives up, the others' request goes on.
        return await asyncio.shield(request)

    def reject(self, organization_id: uuid.UUID, credentials: ClientCredentials, token: Token) -> None:
        """Forget a token that the endpoint didn't take, unless there is another one already."""
        if self._tokens.get((organization_id, credentials)) is token:
            del self._tokens[organization_id, credentials]

    async def aclose(self) -> None:
        """Close every connection."""
        for request in self._requests.values():
            request.cancel()
        await self._client.aclose()

    def _take(self, owner: _Owner, done: asyncio.Task[Token]) -> None:
        self._requests.pop(owner, None)
        if not done.cancelled() and done.exception() is None:
            self._tokens[owner] = done.result()

    async def _request(self, credentials: ClientCredentials) -> Token:
        form = {"grant_type": "client_credentials"}
        if credentials.scope:
            form["scope"] = credentials.scope
        if credentials.audience:
            form["audience"] = credentials.audience
        headers = [("content-type", "application/x-www-form-urlencoded"), ("accept", "application/json")]
        if credentials.client_authentication == "body":
            form |= {"client_id": credentials.client_id, "client_secret": credentials.client_secret}
        else:
            # RFC 6749 §2.3.1: both are form-encoded first.
            pair = f"{quote_plus(credentials.client_id)}:{quote_plus(credentials.client_secret)}"
            headers.append(("authorization", "Basic " + base64.b64encode(pair.encode()).decode()))
        asked_at = asyncio.get_running_loop().time()
        outcome = await self._client.send(credentials.token_url, headers, urlencode(form).encode())
        return _read(outcome, asked_at, self._seconds)


def _read(outcome: Outcome, asked_at: float, seconds: float) -> Token:
    """Return the token in a response to a request that was sent at `asked_at`.  Raises TokenFailed."""
    if outcome.failure is Failure.REDIRECT:
        raise TokenFailed(f"The token URL responded with a redirect ({outcome.status_code}), which isn't followed.")
    if outcome.failure is Failure.HTTP_STATUS:
        raise TokenFailed(f"The token URL responded with {outcome.status_code}{_error_code(outcome.body)}.")
    if outcome.failure is Failure.TIMEOUT:
        raise TokenFailed(f"The token URL did not respond within {seconds:g} s.")
    if outcome.failure is not None:
        # Our own sentences, which say "the endpoint".
        raise TokenFailed(f"No token could be asked for at the token URL: {outcome.detail}")
    if len(outcome.body.encode()) >= MAX_RESPONSE_BYTES:
        raise TokenFailed(f"The token URL's response is larger than {MAX_RESPONSE_BYTES // 1024} KiB.")
    try:
        answer = msgspec.json.decode(outcome.body, type=_Answer)
    except (msgspec.DecodeError, ValueError, RecursionError):
        raise TokenFailed("The token URL's response isn't JSON with an access_token.") from None
    if answer.token_type.lower() not in ("bearer", ""):
        raise TokenFailed("The token URL's response has another token_type than Bearer.")
    if not _TOKEN.fullmatch(answer.access_token) or len(answer.access_token) > MAX_TOKEN_CHARACTERS:
        raise TokenFailed("The token URL's response has an access_token that can't be sent in a header.")
    life = _life(answer.expires_in)
    return Token(answer.access_token, asked_at, asked_at + life - min(EARLY_SECONDS, life * EARLY_SHARE))


def _life(expires_in: Any) -> float:
    """Return how many seconds a token is used, within our bounds."""
    if isinstance(expires_in, bool) or not isinstance(expires_in, int | float | str):
        return DEFAULT_SECONDS
    try:
        said = float(expires_in)
    except (ValueError, OverflowError):
        return DEFAULT_SECONDS
    return min(said, MAX_LIFE_SECONDS) if said > 0 else 0.0


def _error_code(body: str) -> str:
    try:
        code = msgspec.json.decode(body, type=_ErrorAnswer).error
    except (msgspec.DecodeError, ValueError, RecursionError):
        return ""
    return f" ({code})" if code in ERROR_CODES else ""
