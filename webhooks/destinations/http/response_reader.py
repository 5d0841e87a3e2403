"""Reads one HTTP/1.1 response out of bytes as they arrive, without any I/O (RFC 9110, RFC 9112).

It is our own because of what a reader must not do here.  A final status line with valid headers is the outcome, so
nothing that comes after it may raise; everything before it is bounded in bytes, headers, and interim responses; and the
reader has to know whether the connection may carry another request.  h11 bounds the bytes of each message but not the
number of messages, raises errors for what follows the head of a valid response, and takes four times as long. httptools
has no bounds, and we can't choose what it tolerates.  The tests compare this reader with h11, so that no connection is
used again where the two disagree about where a response ends.
"""

from __future__ import annotations

import enum
import re

from webhooks.destinations.exchange import MAX_HEAD_BYTES as MAX_KEPT_HEAD_BYTES
from webhooks.destinations.http.errors import ConnectionLost, InvalidResponse

# Of one attempt: everything up to the end of the final response's headers, interim responses included.
MAX_HEAD_BYTES = 65_536
MAX_HEADERS = 256
MAX_INTERIM_RESPONSES = 20
# Chunk sizes, chunk extensions, and trailers of one body, and one line of them.
MAX_FRAMING_BYTES = 16_384
MAX_FRAMING_LINE = 1_024

# A bare LF ends a line, too (RFC 9112 §2.2).
_HEAD_END = re.compile(rb"\n\r?\n")
_STATUS_LINE = re.compile(rb"HTTP/1\.([0-9]) ([1-9][0-9][0-9])(?: [^\x00-\x08\x0a-\x1f\x7f]*)?")
_TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_FORBIDDEN_IN_HEADERS = re.compile(rb"\x00|\r(?!\n|\Z)")
_LENGTH = re.compile(rb"[0-9]{1,19}")
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,16})[ \t]*(?:;[^\r\n]*)?\r\n")
_START = b"HTTP/1."
_MEANINGFUL = frozenset([b"connection", b"content-length", b"transfer-encoding", b"retry-after"])


class End(enum.Enum):
    """How a body ended."""

    COMPLETE = enum.auto()
    CUT_OFF = enum.auto()  # enough was read; there is more
    BROKEN = enum.auto()  # the connection ended, or the framing made no sense


class _Body(enum.Enum):
    """What the next bytes of the body are."""

    LENGTH = enum.auto()
    UNTIL_CLOSE = enum.auto()
    CHUNK_SIZE = enum.auto()
    CHUNK_DATA = enum.auto()
    CHUNK_END = enum.auto()
    TRAILERS = enum.auto()


class ResponseReader:
    """Feed it what arrives until `end` is set.

    body_limit: how many bytes of the body are kept; a longer body is cut off there.
    to_connect: whether this responds to CONNECT, where a 2xx has no body.

    status: the final response's status; None until its head is complete.
    retry_after: its Retry-After header, if there is one.
    head: what is kept of the last head that came, status line and headers, valid or not; is_head_cut: there was more.
    body: what is kept of the body.
    end: how the body ended; None while it goes on.
    has_started: whether any byte of a response has arrived.
    is_persistent: False once something said that the connection can't carry another request.
    """

    __slots__ = (
        "_body", "_body_limit", "_framing_bytes", "_head_bytes", "_interim_responses", "_pending", "_remaining",
        "_scanned", "_to_connect", "body", "end", "has_started", "head", "is_head_cut", "is_persistent",
        "retry_after", "status",
    )  # fmt: skip

    def __init__(self, body_limit: int, *, to_connect: bool = False) -> None:
        self.status: int | None = None
        self.retry_after: str | None = None
        self.head = b""
        self.is_head_cut = False
        self.body = bytearray()
        self.end: End | None = None
        self.has_started = False
        self._body_limit = body_limit
        self._to_connect = to_connect
        self._pending = bytearray()  # what is not understood yet
        self._scanned = 0  # how much of it holds no end of a head
        self._head_bytes = 0
        self._interim_responses = 0
        self.is_persistent = True
        self._body = _Body.UNTIL_CLOSE
        self._remaining = 0  # of a body with a length, or of a chunk
        self._framing_bytes = 0

    @property
    def may_reuse(self) -> bool:
        """Return whether the connection may carry another request."""
        return self.is_persistent and self.end is End.COMPLETE

    def feed(self, data: bytes) -> None:
        """Take the next bytes.  Raises InvalidResponse, but never once the status is known."""
        self.has_started = True
        if self.status is None:
            data = self._feed_head(data)
        if self.end is None and data:  # a head that is incomplete leaves no data
            data = self._feed_body(data)
        if self.end is not None and data:
            self.is_persistent = False  # surplus bytes

    def feed_eof(self, *, is_clean: bool = True) -> None:
        """Take the end of the connection.  is_clean: False for a reset.  Raises ConnectionLost before the status."""
        self.is_persistent = False
        if self.status is None:
            raise ConnectionLost
        if self.end is None:
            whole = is_clean and self._body is _Body.UNTIL_CLOSE
            self.end = End.COMPLETE if whole else End.BROKEN

    # --- the head ---------------------------------------------------------------------------------

    def _feed_head(self, data: bytes) -> bytes:
        """Read heads up to the final one's and return what follows it; sets `status` if it is complete."""
        pending = self._pending
        pending += data
        while found := _HEAD_END.search(pending, self._scanned):
            self._head_bytes += found.end()
            if self._head_bytes > MAX_HEAD_BYTES:
                raise InvalidResponse("its headers are too long")
            head = bytes(pending[: found.start()])
            self._keep_head(head)
            del pending[: found.end()]
            self._scanned = 0
            if self._read_head(head):
                rest = bytes(pending)
                pending.clear()
                return rest
        if not pending.startswith(_START[: len(pending)]):
            self._keep_head(pending)
            raise InvalidResponse("it doesn't begin with an HTTP/1.1 status line")
        if self._head_bytes + len(pending) > MAX_HEAD_BYTES:
            self._keep_head(pending)
            raise InvalidResponse("its headers are too long")
        self._scanned = max(0, len(pending) - 2)
        return b""

    def _keep_head(self, head: bytes | bytearray) -> None:
        self.head = bytes(head[:MAX_KEPT_HEAD_BYTES])
        self.is_head_cut = len(head) > MAX_KEPT_HEAD_BYTES

    def _read_head(self, head: bytes) -> bool:
        """Read a status line and its headers; return whether it was the final response's."""
        if _FORBIDDEN_IN_HEADERS.search(head):
            raise InvalidResponse("its headers hold forbidden characters")
        lines = head.split(b"\n")
        status_line = _STATUS_LINE.fullmatch(lines[0].removesuffix(b"\r"))
        if status_line is None:
            raise InvalidResponse("it doesn't begin with an HTTP/1.1 status line")
        if len(lines) > MAX_HEADERS + 1:
            raise InvalidResponse("it has too many headers")
        headers = _parse_headers(lines)
        status = int(status_line[2])
        if status == 101:
            raise InvalidResponse("it switches to a protocol that wasn't asked for")
        if status < 200:
            self._interim_responses += 1
            if self._interim_responses > MAX_INTERIM_RESPONSES:
                raise InvalidResponse("too many interim responses came before it")
            return False
        self._begin_body(status, is_1_0=status_line[1] == b"0", headers=headers)
        if retry_after := headers.get(b"retry-after"):
            self.retry_after = b", ".join(retry_after).decode("latin-1")
        self.status = status
        return True

    def _begin_body(self, status: int, *, is_1_0: bool, headers: dict[bytes, list[bytes]]) -> None:
        """Decide how long the body is (RFC 9112 §6.3) and whether the connection stays open (§9.3).

        Raises InvalidResponse for lengths that contradict each other where one is needed.
        """
        options = _list(headers.get(b"connection", []))
        self.is_persistent = b"close" not in options and (not is_1_0 or b"keep-alive" in options)
        lengths = headers.get(b"content-length")
        encodings = headers.get(b"transfer-encoding")
        if self._to_connect and 200 <= status <= 299:
            # The tunnel begins here, whatever the headers say (RFC 9110 §9.3.6).
            self.end = End.COMPLETE
            self.is_persistent = True
        elif status in (204, 304):
            # No body, whatever the headers say; a sender that says otherwise may send one all the same.
            self.end = End.COMPLETE
            if encodings or (lengths and status != 304 and set(_list(lengths)) != {b"0"}):
                self.is_persistent = False
        elif encodings:
            coding = _list(encodings)
            if coding[-1:] == [b"chunked"] and coding.count(b"chunked") == 1:
                self._body = _Body.CHUNK_SIZE
            if lengths or is_1_0:
                self.is_persistent = False  # somebody between us may have read it the other way
        elif lengths:
            self._body = _Body.LENGTH
            self._remaining = _content_length(lengths)
            if self._remaining == 0:
                self.end = End.COMPLETE

    # --- the body ---------------------------------------------------------------------------------

    def _feed_body(self, data: bytes) -> bytes:
        """Take bytes of the body and return what follows its end, or what is left when it is cut off."""
        if self._body is _Body.UNTIL_CLOSE:
            self._keep(data)
            return b""
        if self._body is _Body.LENGTH:
            rest = data[self._remaining :]
            self._remaining -= len(data) - len(rest)
            self._keep(data[: len(data) - len(rest)])
            if self.end is None and self._remaining == 0:
                self.end = End.COMPLETE
            elif self.end is None and len(self.body) == self._body_limit:
                self.end = End.CUT_OFF
            return rest
        return self._feed_chunks(data)

    def _keep(self, data: bytes) -> None:
        room = self._body_limit - len(self.body)
        self.body += data[:room]
        if len(data) > room:
            self.end = End.CUT_OFF

    def _feed_chunks(self, data: bytes) -> bytes:
        """Read chunked framing (RFC 9112 §7.1), with CR LF only: leniency here is for smuggling, not for users."""
        if self._pending:
            data = bytes(self._pending) + data
            self._pending.clear()
        position = 0
        while self.end is None:
            if self._body is _Body.CHUNK_DATA:
                chunk = data[position : position + self._remaining]
                self._keep(chunk)
                position += len(chunk)
                self._remaining -= len(chunk)
                if self._remaining or self.end is not None:
                    break
                self._body = _Body.CHUNK_END
            line_end = data.find(b"\n", position, position + MAX_FRAMING_LINE)
            if line_end < 0:
                if len(data) - position >= MAX_FRAMING_LINE:
                    self.end = End.BROKEN
                break
            self._read_framing(data[position : line_end + 1])
            position = line_end + 1
        rest = data[position:]
        if self.end is None:
            self._pending += rest
            return b""
        return rest

    def _read_framing(self, line: bytes) -> None:
        """Read one line that is not a chunk's data."""
        self._framing_bytes += len(line)
        if self._framing_bytes > MAX_FRAMING_BYTES:
            self.end = End.CUT_OFF
        elif self._body is _Body.CHUNK_END and line == b"\r\n":
            self._body = _Body.CHUNK_SIZE
        elif self._body is _Body.CHUNK_SIZE and (size := _CHUNK_SIZE.fullmatch(line)):
            self._remaining = int(size[1], 16)
            self._body = _Body.CHUNK_DATA if self._remaining else _Body.TRAILERS
        elif self._body is _Body.TRAILERS and line == b"\r\n":
            self.end = End.COMPLETE
        elif self._body is not _Body.TRAILERS or not _is_header(line):
            self.end = End.BROKEN


def _parse_headers(lines: list[bytes]) -> dict[bytes, list[bytes]]:
    """Return the values of the headers that mean something to us, by lower-case name.

    lines: a head's; the first is the status line.  Raises InvalidResponse if any of them isn't a header.
    """
    headers: dict[bytes, list[bytes]] = {}
    values: list[bytes] | None = None
    for position in range(1, len(lines)):
        line = lines[position]
        if line[:1] in (b" ", b"\t"):  # a folded line continues the value above it (RFC 9112 §5.2)
            if position == 1:
                raise InvalidResponse("one of its headers is malformed")
            if values is not None:
                values[-1] = (values[-1] + b" " + line.strip(b" \t\r")).strip()
            continue
        name, colon, value = line.partition(b":")
        if not colon or not _TOKEN.fullmatch(name):
            raise InvalidResponse("one of its headers is malformed")
        values = None
        name = name.lower()
        if name in _MEANINGFUL:
            values = headers.setdefault(name, [])
            values.append(value.strip(b" \t\r"))
    return headers


def _is_header(line: bytes) -> bool:
    name, colon, value = line.partition(b":")
    return bool(colon and _TOKEN.fullmatch(name) and value.endswith(b"\r\n")) and not _FORBIDDEN_IN_HEADERS.search(line)


def _list(values: list[bytes]) -> list[bytes]:
    """Return the lower-case members of a header whose value is a list (RFC 9110 §5.6.1)."""
    members = (member.strip(b" \t").lower() for value in values for member in value.split(b","))
    return [member for member in members if member]


def _content_length(values: list[bytes]) -> int:
    """Return the one length that all values agree on (RFC 9112 §6.3).  Raises InvalidResponse."""
    lengths = {member.strip(b" \t") for value in values for member in value.split(b",")}
    if any(not _LENGTH.fullmatch(length) for length in lengths) or len({int(length) for length in lengths}) != 1:
        raise InvalidResponse("its Content-Length makes no sense")
    return int(lengths.pop())
