"""What an attempt sent and received, as it is kept with the attempt: bounded, and encrypted as a whole.

The body isn't part of it: it is made again from the event, in the format that the subscription had (`formats`).
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from core.encryption import DecryptionError, Sealer, unseal

# Of a response's status line and headers, so many bytes are kept.
MAX_HEAD_BYTES = 8_192
# The first byte of what is sealed: which dictionary it is compressed with.
_FIRST_DICTIONARY = b"\x01"
# What many exchanges have in common, so that a short one is compressed to less than half, too.  The most frequent comes
# last, which is cheapest to refer to.  What is stored can be read only with the very same bytes: a better dictionary
# gets another number.
_DICTIONARY = (
    b"HTTP/1.1 500 Internal Server Error\r\nHTTP/1.1 503 Service Unavailable\r\nHTTP/1.1 202 Accepted\r\n"
    b"HTTP/1.1 204 No Content\r\nStrict-Transport-Security: max-age=31536000; includeSubDomains\r\n"
    b"X-Content-Type-Options: nosniff\r\nX-Frame-Options: SAMEORIGIN\r\nReferrer-Policy: same-origin\r\n"
    b'Access-Control-Allow-Origin: *\r\nAlt-Svc: h3=":443"; ma=86400\r\nX-Powered-By: Express\r\nETag: W/"2-\r\n'
    b"X-Request-Id: \r\nCF-Cache-Status: DYNAMIC\r\nCF-RAY: \r\nVia: 1.1 \r\nVary: Accept-Encoding\r\n"
    b"Transfer-Encoding: chunked\r\nCache-Control: no-cache, no-store, must-revalidate, max-age=0\r\n"
    b"Keep-Alive: timeout=5\r\nServer: cloudflare\r\nServer: uvicorn\r\nServer: nginx\r\nConnection: close\r\n"
    b"Connection: keep-alive\r\nDate: Mon, Tue, Wed, Thu, Fri, Sat, Sun, 01 Jan Feb Mar Apr May Jun Jul Aug Sep Oct "
    b"Nov Dec 2026 00:00:00 GMT\r\nContent-Type: text/html; text/plain; charset=utf-8\r\n"
    b"Content-Type: application/json; charset=utf-8\r\nHTTP/1.1 200 OK\r\n"
    b"content-type: application/json\r\ncontent-length: 0\r\nContent-Length: 2\r\n"
    b"\xabtraceparent\xd97\x92\xactransfer-encoding\xa7chunked\x92\xadauthorization\xc0http://https://hooks."
    b"\x92\xaccontent-type\xb0application/json\x92\xaauser-agent\xafTriggersAPI/1.0\x92\xaawebhook-id\xd9$01"
    b"\x92\xb1webhook-timestamp\xaa1\x92\xb1webhook-signature\xc0"
)
# A small window: an exchange has some hundred bytes, seldom some thousand, and a larger one costs time to set up.
_WINDOW_BITS = -12
_MEMORY_LEVEL = 4


class Exchange(msgspec.Struct, array_like=True):
    """One attempt on the wire; members for steps that it didn't reach are None or empty.  New members go to the end,
    with a default.

    request_headers: in the order in which they were sent, without Host and Content-Length; None for a value that is
    secret.
    remote_address: IP address and port of the peer: the endpoint, or the proxy if `via_proxy`.
    is_reused: the connection had carried a request before.  is_resent: one had ended before it brought any response,
    so that the request was sent again on a new one; the times are that one's.
    dns_us, connect_us, tls_us: how long that took, in microseconds; None on a reused connection.
    first_byte_us: from sending the request to the first byte of the response.
    response_head: the status line and headers as they came, any bytes.  is_head_cut: there was more of it.
    format, expression: how the event became a body; empty for the standard one.
    """

    url: str
    request_headers: list[tuple[str, str | None]]
    body_bytes: int = 0
    remote_address: str = ""
    via_proxy: bool = False
    is_reused: bool = False
    is_resent: bool = False
    dns_us: int | None = None
    connect_us: int | None = None
    tls_us: int | None = None
    first_byte_us: int | None = None
    response_head: bytes = b""
    is_head_cut: bool = False
    format: str = ""
    expression: str = ""

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Note how long the block took, however it ends.  phase: the member to set."""
        started = time.monotonic()
        try:
            yield
        finally:
            setattr(self, phase, round((time.monotonic() - started) * 1_000_000))


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Exchange)


def seal_exchange(exchange: Exchange, sealer: Sealer) -> bytes:
    """Return an exchange as it is stored: compressed, and encrypted, after which the database can't compress it."""
    compressing = zlib.compressobj(1, zlib.DEFLATED, _WINDOW_BITS, _MEMORY_LEVEL, zlib.Z_DEFAULT_STRATEGY, _DICTIONARY)
    return sealer.seal(_FIRST_DICTIONARY + compressing.compress(_encoder.encode(exchange)) + compressing.flush())


def open_exchange(sealed: bytes | memoryview) -> Exchange:
    """Return what `seal_exchange` was given.

    Raises DecryptionError when no key fits, and when another version has stored it in a way that this one can't read.
    """
    plain = unseal(bytes(sealed))
    if plain[:1] != _FIRST_DICTIONARY:
        raise DecryptionError("the exchange is stored in a way that this version can't read")
    opening = zlib.decompressobj(_WINDOW_BITS, _DICTIONARY)
    return _decoder.decode(opening.decompress(plain[1:]) + opening.flush())


def status_line(exchange: Exchange) -> str:
    """Return the response's first line; empty if there was no response."""
    return _text(exchange.response_head.split(b"\n", 1)[0].removesuffix(b"\r"))


def response_headers(exchange: Exchange) -> list[tuple[str, str]]:
    """Return the response's headers in their order, as text whatever bytes they hold."""
    headers: list[tuple[str, str]] = []
    for line in exchange.response_head.split(b"\n")[1:]:
        text = _text(line.removesuffix(b"\r"))
        name, colon, value = text.partition(":")
        if text[:1] in (" ", "\t") and headers:  # a folded line continues the value above it
            headers[-1] = headers[-1][0], f"{headers[-1][1]} {text.strip()}"
        elif text:
            headers.append((name, value.strip(" \t")) if colon else ("", text))
    return headers


def _text(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def milliseconds(microseconds: int | None) -> float | None:
    """Return a duration as it is shown."""
    return None if microseconds is None else microseconds / 1000
