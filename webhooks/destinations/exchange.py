"""What an attempt sent and received, as it is kept with the attempt: bounded, and encrypted as a whole.

The body isn't part of it: it is made again from the event, in the format that the subscription had (`formats`).
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from core.encryption import Sealer, unseal

# Of a response's status line and headers, so many bytes are kept.
MAX_HEAD_BYTES = 8_192
# A longer exchange is compressed; a shorter one gains less than that takes.
_COMPRESS_FROM = 1_024
_PLAIN, _COMPRESSED = b"\x00", b"\x01"


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
    """Return an exchange as it is stored.

    Encrypted bytes can't be compressed, so the database needn't try: what is long is compressed here.
    """
    plain = _encoder.encode(exchange)
    if len(plain) >= _COMPRESS_FROM:
        return sealer.seal(_COMPRESSED + zlib.compress(plain, 1))
    return sealer.seal(_PLAIN + plain)


def open_exchange(sealed: bytes | memoryview) -> Exchange:
    """Return what `seal_exchange` was given.  Raises DecryptionError when no key fits."""
    plain = unseal(bytes(sealed))
    return _decoder.decode(zlib.decompress(plain[1:]) if plain[:1] == _COMPRESSED else plain[1:])


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
