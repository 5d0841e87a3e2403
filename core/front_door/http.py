"""One HTTP request on the event loop, and its response."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any

from django.http import QueryDict

from core.compression import decompress, require_encoding
from core.json_body import too_large
from core.problems import Problem

ASGIScope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

# How long a client may take to send the body.
BODY_SECONDS = 30.0
# How much of an unwanted body is read so that the connection can be kept, and for how long.
DRAIN_BYTES = 16 * 1_048_576
DRAIN_SECONDS = 2.0


class ClientGone(Exception):
    """The client closed the connection before it had sent the whole body."""


@dataclass(frozen=True, slots=True)
class Response:
    """What is sent back.  body: complete, with a media type."""

    status: int
    body: bytes
    media_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Stream:
    """A response whose body is sent in chunks as they come.  chunks: closed when the client goes or the server
    stops."""

    chunks: AsyncGenerator[bytes]
    media_type: str = "text/event-stream"
    status: int = 200


# Set in the scope of a request whose client has closed its side of the connection.
INPUT_HAS_ENDED = "triggers.input_has_ended"


class Request:
    """A request.  Its body is read when it is needed, within a limit."""

    def __init__(self, scope: ASGIScope, receive: Receive, request_id: str = "") -> None:
        self.scope = scope
        self.request_id = request_id
        self.progress: object = None  # what a handler has to know if it serves the request again
        self._receive = receive
        self._body: bytes | None = None
        self._decompressed = b""
        self._ended = False  # no more of the body will come
        # The header fields by lowercase name; the values of a repeated field are joined with a comma.
        self.headers: dict[bytes, bytes] = {}
        headers = self.headers
        for name, value in scope["headers"]:
            headers[name] = headers[name] + b"," + value if name in headers else value

    def header(self, name: bytes) -> str:
        """Return the value of a header field; empty when it is missing."""
        return self.headers.get(name, b"").decode("latin-1")

    def decoded_headers(self) -> dict[str, str]:
        """Return the header fields by lowercase name, each byte of a value as one character, as Django has them."""
        return {name.decode("latin-1"): value.decode("latin-1") for name, value in self.headers.items()}

    @property
    def META(self) -> dict[str, str]:
        """Return the parts of Django's META that `core.client_address` reads."""
        meta = {"REMOTE_ADDR": (self.scope.get("client") or ("",))[0]}
        forwarded = self.headers.get(b"x-forwarded-for")
        if forwarded is not None:
            meta["HTTP_X_FORWARDED_FOR"] = forwarded.decode("latin-1")
        return meta

    async def read_decompressed(self, limit: int) -> bytes:
        """Return the body, decompressed, at most `limit` bytes of it.

        Raises Problem: 415 for a compression that isn't gzip, what `read` raises, and what `decompress` raises.
        """
        is_compressed = b"content-encoding" in self.headers and require_encoding(self.header(b"content-encoding"))
        body = await self.read(limit)
        self._decompressed = decompress(body, limit) if is_compressed else body
        return self._decompressed

    def body_so_far(self) -> bytes:
        """Return the body, decompressed, if `read_decompressed` has returned it; otherwise nothing."""
        return self._decompressed

    async def read(self, limit: int) -> bytes:
        """Return the body, at most `limit` bytes of it; reading it twice returns the same bytes.

        Raises Problem: 413 for a longer body, 408 for one that takes too long; and ClientGone.
        """
        if self._body is None:
            if self._announced() > limit:
                raise too_large(limit)
            self._body = await self._read(limit)
        if len(self._body) > limit:
            raise too_large(limit)
        return self._body

    async def _read(self, limit: int) -> bytes:
        body, more = await self._next()
        if not more:
            return body  # nearly always: the whole request came in one packet
        parts = [body]
        size = len(body)
        try:
            async with asyncio.timeout(BODY_SECONDS):
                while more:
                    body, more = await self._next()
                    parts.append(body)
                    size += len(body)
                    if size > limit:
                        raise too_large(limit)
        except TimeoutError:
            raise Problem(
                "request_timeout", f"The body did not arrive within {BODY_SECONDS:.0f} seconds. Nothing was stored."
            ) from None
        return b"".join(parts)

    async def _next(self) -> tuple[bytes, bool]:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self._ended = True
            raise ClientGone
        more = message.get("more_body", False)
        self._ended = not more
        return message.get("body", b""), more

    @property
    def query_params(self) -> QueryDict:
        """Return the parameters in the URL, as a request of Django REST framework does."""
        return QueryDict(self.scope["query_string"])

    @property
    def input_has_ended(self) -> bool:
        """Return whether the client has closed its side of the connection.  Most clients that do so have gone."""
        return INPUT_HAS_ENDED in self.scope

    async def gone(self) -> None:
        """Wait until the client closes the connection, or its side of it."""
        with contextlib.suppress(ClientGone):
            while not self.input_has_ended:
                await self._next()

    async def drain(self) -> bool:
        """Read the rest of an unwanted body.

        Returns False if it is too long: then the connection has to be closed after the response.
        """
        if self._ended or (b"content-length" not in self.headers and b"transfer-encoding" not in self.headers):
            return True
        if self._announced() > DRAIN_BYTES or b"expect" in self.headers:
            return False
        size = 0
        try:
            async with asyncio.timeout(DRAIN_SECONDS):
                more = True
                while more:
                    body, more = await self._next()
                    size += len(body)
                    if size > DRAIN_BYTES:
                        return False
        except (TimeoutError, ClientGone):
            return False
        return True

    def _announced(self) -> int:
        """Return the Content-Length; 0 when there is none.  The server has checked that it is a number."""
        return int(self.headers.get(b"content-length", b"0"))
