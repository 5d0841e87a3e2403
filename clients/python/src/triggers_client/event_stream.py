"""A stream of server-sent events as it is read, and how it goes on after it has ended."""

from __future__ import annotations

from collections.abc import Callable

import httpx

from triggers_client.calls import Attempts, Call
from triggers_client.deprecations import warn_if_deprecated
from triggers_client.json_text import read
from triggers_client.models import InboxEvent, StreamedEvent
from triggers_client.operations import stream_inbox

# The server shows every 10 seconds that a stream lives.
SILENCE_SECONDS = 30.0


class Following:
    """An inbox's log that is followed over many connections: where it is, and what to request next."""

    def __init__(
        self, cursor: str, inbox: str | None, event_type: str | None, attempt: Callable[[Call[None]], Attempts[None]]
    ) -> None:
        self._cursor = cursor
        self._inbox = inbox
        self._type = event_type
        self._attempt = attempt
        self._retry_seconds = 1.0
        self._is_open = False
        self._attempts = self._next()
        self._id = ""
        self._data: list[str] = []

    def _next(self) -> Attempts[None]:
        attempts = self._attempt(stream_inbox(self._cursor, inbox=self._inbox, type=self._type))
        attempts.request["timeout"] = httpx.Timeout(SILENCE_SECONDS)
        attempts.request["headers"]["Accept"] = "text/event-stream"
        return attempts

    def request(self) -> dict[str, object]:
        """Return the request for what comes next, as httpx's `stream` takes it."""
        self._is_open = False
        self._id, self._data = "", []
        return self._attempts.request

    def opened(self, response: httpx.Response) -> None:
        """Note that the server sends the stream."""
        warn_if_deprecated(response)
        self._is_open = True
        self._retry_seconds = max(self._retry_seconds, 0.1)

    def refused(self, response: httpx.Response) -> float:
        """Return after how many seconds to connect again.  Raises TriggersError."""
        return self._attempts.after_response(response) or 0.0

    def ended(self, error: httpx.TransportError | None = None) -> float:
        """Return after how many seconds to connect again.  Raises ConnectionFailedError if nothing could be opened."""
        if error is not None and not self._is_open:
            return self._attempts.after_error(error)
        self._attempts = self._next()
        return self._retry_seconds

    def feed(self, line: str) -> StreamedEvent | None:
        """Take a line of the stream, and return the event that it completes."""
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "id":
            self._id = value
        elif name == "data":
            self._data.append(value)
        elif name == "retry" and value.isdigit():
            self._retry_seconds = int(value) / 1000
        elif not line:
            return self._complete()
        return None

    def _complete(self) -> StreamedEvent | None:
        self._cursor = self._id or self._cursor
        data, self._data = "\n".join(self._data), []
        if not data:
            return None
        return StreamedEvent(cursor=self._cursor, event=read(data.encode(), InboxEvent))
