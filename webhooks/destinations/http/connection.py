"""One TCP or TLS connection that carries one request at a time."""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
import ssl
from collections.abc import Callable

from webhooks.destinations.http.errors import ConnectionLost, InvalidResponse
from webhooks.destinations.http.response_reader import ResponseReader

# How much of one connection's data is handled before the event loop turns to the others.
READ_BYTES = 8_192


class Connection(asyncio.BufferedProtocol):
    """Writes a request and feeds what comes back to a reader.

    Bytes or an end that come while no response is expected close it.  It is always closed at once (`abort`): there is
    never anything left to send, and a graceful end of TLS would take as long as the peer likes.

    remote_address: IP address and port of the peer.
    first_byte_at: when the first byte of the last request's response came, by the loop's clock.
    has_been_kept: whether it has carried a request before, and was idle since.
    when_closed: called with the connection when that is closed, but not by `abort`.
    """

    has_been_kept = False
    first_byte_at: float | None = None
    when_closed: Callable[[Connection], None] | None = None

    def __init__(self, sock: socket.socket) -> None:
        """Make the protocol of a connection over `sock`, which stays the transport's to close."""
        self._socket = sock
        self.remote_address = peer(sock)
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN | select.POLLRDHUP)
        self._buffer = bytearray(READ_BYTES)
        self._view = memoryview(self._buffer)
        self._reader: ResponseReader | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._is_closed = False
        self._had_unsolicited_data = False
        self._may_hold_more = False
        self._transport: asyncio.Transport | None = None

    @property
    def transport(self) -> asyncio.Transport:
        """The transport; another one once TLS has been started through a proxy."""
        assert self._transport is not None  # noqa: S101 - made by create_connection, which calls connection_made
        return self._transport

    @transport.setter
    def transport(self, transport: asyncio.Transport) -> None:
        self._transport = transport

    # --- what the client calls --------------------------------------------------------------------

    async def request(self, data: bytes, reader: ResponseReader) -> None:
        """Send a request and return when the head of its response is complete.

        Raises ConnectionLost and InvalidResponse, then and in `wait_for_end`; the connection is closed by then.
        """
        if self._had_unsolicited_data:
            raise InvalidResponse("data came before the request was sent")
        if self._is_closed:
            raise ConnectionLost
        self._reader = reader
        self.first_byte_at = None
        self._may_hold_more = False
        self.transport.write(data)
        await self._wait()

    async def wait_for_end(self) -> None:
        """Return when the body of the response has ended, in whatever way."""
        if self._reader is not None and self._reader.end is None:
            await self._wait()

    def finish(self) -> bool:
        """Finish the response; return whether the connection may carry another request."""
        reader, self._reader = self._reader, None
        return (
            reader is not None
            and reader.may_reuse
            and not self._is_closed
            and not self._may_hold_more
            and self.transport.get_write_buffer_size() == 0
        )

    def is_silent(self) -> bool:
        """Return whether the connection is open and nothing has come, not even what the loop hasn't read yet."""
        return not self._is_closed and not self._poll.poll(0)

    def abort(self) -> None:
        """Close the connection now."""
        self._is_closed = True
        if self._transport is not None:
            self._transport.abort()

    async def _wait(self) -> None:
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    # --- what the transport calls -----------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - for the type checker
        self._transport = transport

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._view

    def buffer_updated(self, nbytes: int) -> None:
        # TLS may have decrypted more than fits, and brings it in the loop's next turn.
        self._may_hold_more = nbytes == READ_BYTES
        self._feed(bytes(self._view[:nbytes]))

    def eof_received(self) -> None:
        self._end(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is not None and self._reader is not None and self._reader.status is None:
            self._read_what_came_before_the_reset()
        self._end(exc)
        self._transport = None  # each knows the other, and would wait for the garbage collector

    def _feed(self, data: bytes) -> None:
        reader = self._reader
        if reader is None:
            self._had_unsolicited_data = True
            self.abort()
            self._tell_closed()
            return
        if not reader.has_started:
            self.first_byte_at = asyncio.get_running_loop().time()
        waits_for_head = reader.status is None
        try:
            reader.feed(data)
        except InvalidResponse as error:
            self._wake(error)
            self.abort()
            return
        if reader.end is not None:
            self._wake()
            if not reader.may_reuse:
                self.abort()
        elif waits_for_head and reader.status is not None:
            self._wake()

    def _end(self, exc: Exception | None) -> None:
        """Handle the end of the connection, by the peer or by a fault."""
        if self._is_closed and self._waiter is None:
            return
        self._is_closed = True
        self._tell_closed()
        if self._reader is not None:
            try:
                self._reader.feed_eof(is_clean=exc is None)
            except ConnectionLost as error:
                # With TLS 1.3, an endpoint refuses a client certificate only after the handshake.
                if isinstance(exc, ssl.SSLError) and "ALERT" in (exc.reason or ""):
                    error.__cause__ = exc
                self._wake(error)
                return
        self._wake()

    def _read_what_came_before_the_reset(self) -> None:
        """Feed what the kernel still holds: an endpoint may respond (413, 401) and close before it has read all.

        asyncio gives up reading when writing fails.  With TLS the rest can't be decrypted any more.
        """
        if self._transport is None or self._transport.get_extra_info("ssl_object") is None:
            with contextlib.suppress(OSError):
                if data := self._socket.recv(READ_BYTES):
                    self._is_closed = False
                    self._feed(data)

    def _tell_closed(self) -> None:
        if self.when_closed is not None:
            self.when_closed(self)

    def _wake(self, error: Exception | None = None) -> None:
        if self._waiter is not None and not self._waiter.done():
            if error is None:
                self._waiter.set_result(None)
            else:
                self._waiter.set_exception(error)


def peer(sock: socket.socket) -> str:
    """Return the address and port that a socket is connected to; empty if the peer is gone already."""
    try:
        host, port = sock.getpeername()[:2]
    except (OSError, ValueError):
        return ""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
