"""A transport that sends the head of a response together with its body: one system call, and for the client one packet.

uvicorn writes them one after the other, and uvloop passes each on at once.
"""

from __future__ import annotations

import asyncio
from typing import Any


class OneWriteTransport:
    """Wraps a transport.  A head waits for the next write, which follows at once, at most for a turn of the loop."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._head = b""

    def write(self, data: bytes) -> None:
        """Write `data`; keep it for a moment if it is a head and nothing is kept yet."""
        if not self._head and data.startswith(b"HTTP/") and data.endswith(b"\r\n\r\n"):
            self._head = data
            self._loop.call_soon(self._flush)  # a response to HEAD has no body
            return
        head, self._head = self._head, b""
        self._transport.write(head + data if head else data)

    def close(self) -> None:
        """Close the transport after what was written."""
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        head, self._head = self._head, b""
        if head and not self._transport.is_closing():
            self._transport.write(head)

    def __getattr__(self, name: str) -> Any:
        """Everything else is the transport's."""
        return getattr(self._transport, name)
