"""The reader of responses: bounded before the status, harmless after it, and of one mind with h11 about framing."""

from __future__ import annotations

import contextlib

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from webhooks.destinations.http.errors import ConnectionLost, InvalidResponse
from webhooks.destinations.http.response_reader import (
    MAX_FRAMING_BYTES,
    MAX_HEAD_BYTES,
    MAX_HEADERS,
    MAX_INTERIM_RESPONSES,
    End,
    ResponseReader,
)

LIMIT = 1024


def read(data: bytes, *, limit: int = LIMIT, step: int = 0, closes: bool = False) -> ResponseReader:
    """Feed `data` to a new reader, in pieces of `step` bytes if that isn't 0, and then perhaps the end."""
    reader = ResponseReader(limit)
    for start in range(0, len(data), step or len(data) or 1):
        reader.feed(data[start : start + step] if step else data)
    if closes:
        reader.feed_eof()
    return reader


# --- the head -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200\r\n", b"HTTP/1.1 200 \r\n", b"HTTP/1.0 200 OK\r\n",
        b"HTTP/1.7 200 OK\r\n",
        b"HTTP/1.1 200 Tr\xe8s bien\r\n", b"HTTP/1.1 200 OK\n", b"HTTP/1.1 200 OK\r\nX: a\r\n b\r\n\tc\r\n",
        b"HTTP/1.1 200 OK\r\nx:\r\n", b"HTTP/1.1 200 OK\r\nx: \xff\x01\r\n",
        b"HTTP/1.1 200 OK\r\n!#$%&'*+-.^_`|~1: x\r\n",
    ],
)  # fmt: skip
def test_what_the_standard_lets_pass_passes(head: bytes) -> None:
    assert read(head + b"\r\n").status == 200
    assert read(head + b"\r\n", step=1).status == 200


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/2.0 200 OK\r\n", b"HTTP/11 200 OK\r\n", b"http/1.1 200 OK\r\n", b"HTTP/1.1  200 OK\r\n",
        b"HTTP/1.1 20 OK\r\n",
        b"HTTP/1.1 2000 OK\r\n", b"HTTP/1.1 099 OK\r\n", b"HTTP/1.1 +20 OK\r\n", b"HTTP/1.1 200OK\r\n",
        b"HTTP/1.1 200 O\x00K\r\n", b"HTTP/1.1 200 O\x1bK\r\n", b"\r\nHTTP/1.1 200 OK\r\n", b" HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 200 OK\r\n x: folded into nothing\r\n", b"HTTP/1.1 200 OK\r\nno colon\r\n",
        b"HTTP/1.1 200 OK\r\nx : y\r\n", b"HTTP/1.1 200 OK\r\n: y\r\n", b"HTTP/1.1 200 OK\r\nx\xe9: y\r\n",
        b"HTTP/1.1 200 OK\r\nx: a\x00b\r\n", b"HTTP/1.1 200 OK\r\nx: a\rb: c\r\n", b"HTTP/1.1 200 OK\r\nx: a\r\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\n",
    ],
)  # fmt: skip
@pytest.mark.parametrize("step", [0, 1])
def test_a_head_that_is_malformed_is_no_response(head: bytes, step: int) -> None:
    with pytest.raises(InvalidResponse):
        read(head + b"\r\n", step=step)


def test_what_is_not_http_is_noticed_at_its_first_byte_that_differs() -> None:
    with pytest.raises(InvalidResponse):
        read(b"SSH-2.0-x")
    assert read(b"HTTP/1").status is None
    with pytest.raises(ConnectionLost):
        read(b"HTTP/1.1 200 OK\r\nconte", closes=True)
    with pytest.raises(ConnectionLost):
        read(b"", closes=True)


@pytest.mark.parametrize("step", [0, 1, 700])
def test_interim_responses_headers_and_bytes_are_bounded_before_the_status(step: int) -> None:
    interim, final = b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 204 No Content\r\n\r\n"
    assert read(interim * MAX_INTERIM_RESPONSES + final, step=step).status == 204
    with pytest.raises(InvalidResponse, match="interim"):
        read(interim * (MAX_INTERIM_RESPONSES + 1), step=step)
    headers = b"".join(b"x-%d: y\r\n" % number for number in range(MAX_HEADERS))
    assert read(b"HTTP/1.1 204 x\r\n" + headers + b"\r\n", step=step).status == 204
    with pytest.raises(InvalidResponse, match="too many headers"):
        read(b"HTTP/1.1 204 x\r\nx: y\r\n" + headers + b"\r\n", step=step)
    with pytest.raises(InvalidResponse, match="too long"):
        read(b"HTTP/1.1 200 OK\r\nx: " + b"a" * MAX_HEAD_BYTES, step=step)
    hints = b"HTTP/1.1 103 Early Hints\r\nlink: " + b"a" * (MAX_HEAD_BYTES // 4) + b"\r\n\r\n"
    with pytest.raises(InvalidResponse, match="too long"):
        read(hints * 4, step=step)


def test_reading_a_head_takes_time_in_proportion_to_its_bytes() -> None:
    """Patterns that go back and forth over these would take minutes; the suite's time limit is the test."""
    for filling in (b" ", b"\t", b"a", b"\r", b"\n", b":", b"a:\n ", b";", b"0"):
        text = filling * (60_000 // len(filling))
        for data in (
            b"HTTP/1.1 200 " + text + b"\x01\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nx: " + text + b"\x01y\r\n\r\n",
            b"HTTP/1.1 200 OK\r\ncontent-length:" + text + b"1\r\n\r\n",
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1" + text + b"\x01",
        ):
            for step in (0, 1):
                with contextlib.suppress(InvalidResponse):
                    read(data, step=step)


# --- the body -----------------------------------------------------------------------------------------

CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("data", "status", "body", "reuse"),
    [
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", 200, b"ok", True),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", 200, b"", True),
        (b"HTTP/1.1 204 No Content\r\n\r\n", 204, b"", True),
        (b"HTTP/1.1 304 Not Modified\r\ncontent-length: 99\r\n\r\n", 304, b"", True),
        (CHUNKED + b"2\r\nok\r\n0\r\n\r\n", 200, b"ok", True),
        (CHUNKED + b'2;a=b;c="d"\r\nok\r\n00 \r\nx-trailer: y\r\n\r\n', 200, b"ok", True),
        (b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\nconnection: keep-alive\r\n\r\nok", 200, b"ok", True),
        # redundant, but consistent (RFC 9112 §6.3)
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nContent-Length: 2\r\n\r\nok", 200, b"ok", True),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2, 2\r\n\r\nok", 200, b"ok", True),
        # complete, and the last on its connection
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: x, Close\r\n\r\nok", 200, b"ok", False),
        (b"HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\nok", 200, b"ok", False),
        (CHUNKED[:-2] + b"content-length: 9\r\n\r\n1\r\nk\r\n0\r\n\r\n", 200, b"k", False),
        (b"HTTP/1.0 200 OK\r\ntransfer-encoding: chunked\r\nconnection: keep-alive\r\n\r\n0\r\n\r\n", 200, b"", False),
        # surplus bytes and bodies where none may be
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok!", 200, b"ok", False),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nokHTTP/1.1 200 OK\r\n\r\n", 200, b"ok", False),
        (CHUNKED + b"2\r\nok\r\n0\r\n\r\n\r\n", 200, b"ok", False),
        (b"HTTP/1.1 204 No Content\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 204, b"", False),
        (b"HTTP/1.1 204 No Content\r\ntransfer-encoding: chunked\r\n\r\n", 204, b"", False),
        (b"HTTP/1.1 204 No Content\r\ncontent-length: 2\r\n\r\nok", 204, b"", False),
        (b"HTTP/1.1 204 No Content\r\ncontent-length: 5, 6\r\n\r\n", 204, b"", False),
        (b"HTTP/1.1 304 Not Modified\r\ntransfer-encoding: chunked\r\n\r\n", 304, b"", False),
    ],
)  # fmt: skip
def test_a_response_ends_where_the_standard_says(data: bytes, status: int, body: bytes, reuse: bool) -> None:
    for step in (0, 1, 2, 3, 7):
        reader = read(data, step=step)
        assert (reader.status, bytes(reader.body), reader.end) == (status, body, End.COMPLETE)
        assert reader.may_reuse is reuse


@pytest.mark.parametrize(
    ("data", "body"),
    [
        (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nok", b"ok"),
        (CHUNKED + b"5\r\nok", b"ok"),
        (CHUNKED + b"2\r\nok\r\n", b"ok"),
        (CHUNKED + b"2\r\nokay\r\n0\r\n\r\n", b"ok"),
        (CHUNKED + b"2\nok\n0\n\n", b""),
        (CHUNKED + b"-2\r\nok\r\n", b""),
        (CHUNKED + b"0x2\r\nok\r\n", b""),
        (CHUNKED + b"2" * 17 + b"\r\nok\r\n", b""),
        (CHUNKED + b"\r\n", b""),
        (CHUNKED + b"0\r\nno colon\r\n\r\n", b""),
        (CHUNKED + b"2;" + b"x" * 5000 + b"\r\nok\r\n0\r\n\r\n", b""),
    ],
)
def test_a_broken_body_changes_nothing_about_the_status(data: bytes, body: bytes) -> None:
    for step in (0, 1, 5):
        reader = read(data, step=step, closes=True)
        assert (reader.status, bytes(reader.body), reader.end) == (200, body, End.BROKEN)
        assert not reader.may_reuse


@pytest.mark.parametrize("coding", [b"gzip", b"chunked, gzip", b"chunked, chunked", b"identity", b""])
def test_a_transfer_coding_that_is_not_chunked_lasts_until_the_connection_ends(coding: bytes) -> None:
    data = b"HTTP/1.1 200 OK\r\ntransfer-encoding: " + coding + b"\r\n\r\nok"
    assert read(data).end is None
    reader = read(data, closes=True)
    assert (reader.end, bytes(reader.body), reader.may_reuse) == (End.COMPLETE, b"ok", False)


@pytest.mark.parametrize("length", [b"5, 6", b"-1", b"+1", b"0x1", b"1e3", b"9" * 26, b"", b",", b"5,", b"\xb2"])
def test_lengths_that_contradict_each_other_or_are_none_are_no_response(length: bytes) -> None:
    with pytest.raises(InvalidResponse):
        read(b"HTTP/1.1 200 OK\r\ncontent-length: " + length + b"\r\n\r\nok")
    with pytest.raises(InvalidResponse):
        read(b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nok")


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 11,
        b"HTTP/1.1 200 OK\r\ncontent-length: 11\r\n\r\n" + b"x" * 10,
        CHUNKED + b"b\r\n" + b"x" * 11,
        CHUNKED + b"1\r\nx\r\n" * 11,
    ],
)
def test_a_body_is_cut_off_where_enough_of_it_is_kept(data: bytes) -> None:
    for step in (0, 1):
        reader = read(data, limit=10, step=step)
        assert (reader.end, bytes(reader.body), reader.may_reuse) == (End.CUT_OFF, b"x" * 10, False)


def test_framing_is_bounded_beside_the_body() -> None:
    many = CHUNKED + b"1;aaaaaaaaaaaa\r\nx\r\n" * MAX_FRAMING_BYTES
    reader = read(many, limit=10_000_000)
    assert reader.end is End.CUT_OFF
    assert len(reader.body) <= MAX_FRAMING_BYTES / 14
    trailers = CHUNKED + b"0\r\n" + b"x: y\r\n" * MAX_FRAMING_BYTES
    assert read(trailers).end is End.CUT_OFF


def test_after_connect_the_tunnel_begins_whatever_the_headers_say() -> None:
    for headers in (b"", b"content-length: 5\r\n", b"transfer-encoding: chunked\r\n", b"connection: close\r\n"):
        reader = ResponseReader(0, to_connect=True)
        reader.feed(b"HTTP/1.0 200 Connection established\r\n" + headers + b"\r\n")
        assert reader.may_reuse
        reader.feed(b"\x16")
        assert not reader.may_reuse


def test_retry_after_is_read() -> None:
    assert read(b"HTTP/1.1 503 x\r\nRETRY-AFTER:\t 7 \r\n\r\n").retry_after == "7"
    assert read(b"HTTP/1.1 503 x\r\n\r\n").retry_after is None


# --- beside h11 ---------------------------------------------------------------------------------------


def through_h11(data: bytes, *, closes: bool) -> tuple[int | None, bytes, bool, bool]:
    """Return the status, the body, whether that is complete, and whether the connection may be used again."""
    ours = h11.Connection(h11.CLIENT, max_incomplete_event_size=10**6)
    ours.send(h11.Request(method="POST", target="/", headers=[("host", "x"), ("content-length", "0")]))
    ours.send(h11.EndOfMessage())
    status, body, complete = None, b"", False
    try:
        ours.receive_data(data)
        if closes:
            ours.receive_data(b"")
        while (event := ours.next_event()) not in (h11.NEED_DATA, h11.PAUSED):
            if isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                complete = True
                break
            elif isinstance(event, h11.ConnectionClosed):
                break
    except h11.RemoteProtocolError:
        return status, body, False, False
    # The end of the connection that ends a body is an event of its own, which is still to come.
    reuse = (
        complete
        and not closes
        and ours.their_state is h11.DONE
        and ours.our_state is h11.DONE
        and not ours.trailing_data[0]
    )
    return status, body, complete, reuse


TOKENS = st.text("abcdefghijklmnopqrstuvwxyz-", min_size=1, max_size=10).map(lambda text: f"x-{text}".encode())
VALUES = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=20).map(str.encode)
REASONS = st.sampled_from([b"", b" ", b" OK", b" Not so good"])


@st.composite
def responses(draw: st.DrawFn) -> tuple[bytes, bytes, bool]:
    """Return a valid response, its body, and whether the end of the connection is its end."""
    status = draw(st.sampled_from([200, 201, 202, 204, 301, 304, 400, 404, 410, 429, 500, 503]))
    version = draw(st.sampled_from([b"1.1", b"1.1", b"1.0"]))
    head = [b"HTTP/%b %d%b" % (version, status, draw(REASONS))]
    head += [b"%b: %b" % (draw(TOKENS), draw(VALUES)) for _ in range(draw(st.integers(0, 4)))]
    if draw(st.booleans()):
        head.append(b"Connection: " + draw(st.sampled_from([b"close", b"keep-alive", b"Keep-Alive, x"])))
    body = draw(st.binary(max_size=60))
    kind = draw(st.sampled_from(["length", "length", "chunked", "close"]))
    closes = False
    if status in (204, 304):
        body = wire = b""
    elif kind == "chunked" and version == b"1.1":
        head.append(b"Transfer-Encoding: chunked")
        wire, rest = b"", body
        while rest:
            size = draw(st.integers(1, len(rest)))
            wire += b"%x\r\n%b\r\n" % (size, rest[:size])
            rest = rest[size:]
        wire += b"0\r\n" + draw(st.sampled_from([b"", b"x-trailer: a\r\n"])) + b"\r\n"
    elif kind == "length":
        head.append(b"Content-Length: %d" % len(body))
        wire = body
    else:
        wire, closes = body, True
    interim = draw(st.sampled_from([b"", b"", b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n"]))
    end = draw(st.sampled_from([b"\r\n", b"\n"]))
    return interim + end.join(head) + end * 2 + wire, body, closes


@settings(max_examples=300)
@given(responses(), st.integers(1, 40))
def test_valid_responses_are_read_as_h11_reads_them(response: tuple[bytes, bytes, bool], step: int) -> None:
    data, body, closes = response
    reader = read(data, step=step, closes=closes)
    assert (reader.status, bytes(reader.body), reader.end) == (through_h11(data, closes=closes)[0], body, End.COMPLETE)
    # h11 never uses a connection of HTTP/1.0 again; we do if both sides said so.
    if b"HTTP/1.0" not in data:
        assert reader.may_reuse is through_h11(data, closes=closes)[3]


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """Return a response with some bytes taken out, put in, or replaced, and perhaps something after it."""
    data = bytearray(draw(responses())[0])
    for _ in range(draw(st.integers(0, 3))):
        place = draw(st.integers(0, len(data)))
        taken = draw(st.integers(0, 3))
        data[place : place + taken] = draw(
            st.sampled_from(
                [b"", b"\r\n", b"\n", b"\r", b" ", b"0", b"\x00", b":", b",", b"chunked", b"\r\nContent-Length: 3\r\n",
                 b"\r\nTransfer-Encoding: chunked\r\n", b"1", b";"]
            )
        )  # fmt: skip
    return bytes(data) + draw(st.sampled_from([b"", b"", b"\r\n", b"HTTP/1.1 200 OK\r\n\r\n"]))


@settings(max_examples=300)
@given(damaged(), st.integers(1, 40))
def test_damaged_responses_fail_alike_however_they_arrive_and_never_after_the_status(data: bytes, step: int) -> None:
    results = []
    for size in (0, step, 1):
        reader = ResponseReader(LIMIT)
        try:
            for start in range(0, len(data), size or len(data)):
                had_status = reader.status is not None
                reader.feed(data[start : start + size] if size else data)
            reader_end, outcome = reader.end, reader.status
        except InvalidResponse:
            assert not had_status
            reader_end, outcome = None, None
        results.append((outcome, bytes(reader.body), reader_end, reader.may_reuse))
    assert results[0] == results[1] == results[2]


@settings(max_examples=300)
@given(damaged())
def test_no_connection_is_used_again_where_h11_sees_other_bounds(data: bytes) -> None:
    try:
        reader = read(data)
    except InvalidResponse:
        return
    if reader.may_reuse and b"HTTP/1.0" not in data:
        status, body, complete, _ = through_h11(data, closes=False)
        if status is not None:  # h11 is stricter about some headers
            assert (status, body, complete) == (reader.status, bytes(reader.body), True)
            assert through_h11(data, closes=False)[3]
