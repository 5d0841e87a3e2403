"""An HTTP parser for a server that changes to no other protocol."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import httptools


class RequestParser:
    """httptools' parser, but `Upgrade` is ignored, as a server may do (RFC 9110 §7.8).

    httptools takes the head of a request with `Upgrade` for the end of HTTP: it says that the request has no body, and
    reads what follows the head as another request.  Java's client asks for `Upgrade: h2c` with each POST without TLS,
    and behind a proxy that passes the header on, anybody could have a body of theirs served as a request.  So when such
    a request has a body, a parser that has been told the same framing goes on with it.

    protocol: gets httptools' callbacks.  It calls `head_is_complete` in its `on_headers_complete`, and ignores the
    `on_message_complete` that comes while `body_follows`.
    """

    def __init__(self, protocol: Any, parser: httptools.HttpRequestParser) -> None:
        self._protocol = protocol
        self._use(parser)
        self._framing = b""  # header lines that say how long the body is that httptools didn't see

    def _use(self, parser: httptools.HttpRequestParser) -> None:
        self._parser = parser
        self.get_method = parser.get_method
        self.get_http_version = parser.get_http_version
        self.should_keep_alive = parser.should_keep_alive

    def should_upgrade(self) -> bool:
        """Tell uvicorn that no request wants another protocol."""
        return False

    @property
    def body_follows(self) -> bool:
        """Return whether the message that httptools calls complete has a body."""
        return bool(self._framing)

    def head_is_complete(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Note how long the body is.  headers: of the request, with names in lower case."""
        if self._parser.should_upgrade():
            framing = (name for name in headers if name[0] in (b"content-length", b"transfer-encoding"))
            self._framing = b"".join(b"%b: %b\r\n" % field for field in framing if field[1] != b"0")

    def feed_data(self, data: bytes) -> None:
        """Parse what has come.  Raises httptools.HttpParserError."""
        while True:
            try:
                self._parser.feed_data(data)
                return
            except httptools.HttpParserUpgrade as upgrade:
                data = data[upgrade.args[0] :]
            if self._framing:
                callbacks = _Callbacks(self._protocol)
                parser = httptools.HttpRequestParser(callbacks)
                parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn does
                self._use(parser)
                head, self._framing = b"POST / HTTP/1.1\r\n%b\r\n" % self._framing, b""
                parser.feed_data(head)
                callbacks.are_passed_on = True


class _Callbacks:
    """Passes the callbacks of a parser on, but not those of the head that it is given to begin with."""

    def __init__(self, protocol: Any) -> None:
        self._protocol = protocol
        self.are_passed_on = False

    def on_message_begin(self) -> None:
        if self.are_passed_on:
            self._protocol.on_message_begin()

    def on_url(self, url: bytes) -> None:
        if self.are_passed_on:
            self._protocol.on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.are_passed_on:
            self._protocol.on_header(name, value)

    def on_headers_complete(self) -> None:
        if self.are_passed_on:
            self._protocol.on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._protocol.on_body(body)

    def on_message_complete(self) -> None:
        self._protocol.on_message_complete()
