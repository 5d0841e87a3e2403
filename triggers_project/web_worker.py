"""The gunicorn worker that serves the front door: uvicorn, with the limits that it lacks."""

from __future__ import annotations

import asyncio
import logging
import resource
import sys
from types import SimpleNamespace
from typing import Any, ClassVar, cast

import httptools
import orjson
import structlog
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn_worker import UvicornWorker

from triggers_project.one_write import OneWriteTransport
from triggers_project.request_parser import RequestParser
from triggers_project.served_lately import served_lately
from triggers_project.web_loop import counts

log = structlog.get_logger()

# How long a client may take from connecting, or from the first byte of a request, to the end of the request's head.
HEAD_SECONDS = 20.0
# How long an idle connection may still bring a request when the server stops.
LAST_REQUEST_SECONDS = 0.5
# The largest head of a request, the longest of its fields, and the most of them.
MAX_HEAD_BYTES = 65536
MAX_FIELD_BYTES = 8190
MAX_FIELDS = 100


NOT_HTTP = "The request is not valid HTTP/1.1."
HOST_NEEDED = "A request of HTTP/1.1 must have one Host header."  # RFC 9112 §3.2
HEAD_TOO_LARGE = (
    f"The head of the request is too large: at most {MAX_HEAD_BYTES} bytes, and {MAX_FIELDS} header fields, "
    f"each of them and the URL up to {MAX_FIELD_BYTES} bytes."
)


class BadHead(ValueError):
    """The head of a request is over a limit, or lacks what it must have."""


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol, which by itself bounds neither the size of a request's head nor the wait for it.

    A connection whose request's head is late is closed.  Between two requests, uvicorn's keep-alive limit counts.

    uvicorn doesn't document this class for subclasses.  tests/api/test_front_door.py checks with real sockets what is
    changed here, so an upgrade that breaks it fails there.
    """

    parser: RequestParser  # type: ignore[assignment]
    _head_timer: asyncio.TimerHandle | None = None
    _is_last = False  # the next request is the connection's last one
    _awaits_head = True
    _head_bytes = 0
    _refusal = NOT_HTTP
    _is_refused = False  # nothing more is read; the connection ends with the responses that are due

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.transport = cast(asyncio.Transport, OneWriteTransport(transport, self.loop))
        self.parser = RequestParser(self, cast(httptools.HttpRequestParser, self.parser))
        self._start_timer()

    def data_received(self, data: bytes) -> None:
        if self._is_refused:
            return
        super().data_received(data)
        if self._awaits_head and not self.transport.is_closing():
            self._start_timer()
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._refuse(HEAD_TOO_LARGE)

    def on_message_begin(self) -> None:
        self._awaits_head = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        size = longest = len(self.url)
        hosts = 0
        for name, value in self.headers:
            field = len(name) + len(value)
            size += field
            if field > longest:
                longest = field
            if name == b"host":
                hosts += 1
        if len(self.headers) > MAX_FIELDS or longest > MAX_FIELD_BYTES or size > MAX_HEAD_BYTES:
            self._refusal = HEAD_TOO_LARGE
            raise BadHead
        if hosts > 1 or (not hosts and self.parser.get_http_version() == "1.1"):
            self._refusal = HOST_NEEDED
            raise BadHead
        super().on_headers_complete()
        self.parser.head_is_complete(self.headers)
        self._awaits_head = False
        self._head_bytes = 0
        self._stop_timer()
        if self._is_last:
            self.cycle.keep_alive = False

    def on_message_complete(self) -> None:
        if not self.parser.body_follows:
            super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Refuse what the parser couldn't read; uvicorn's message for that would be plain text."""
        self._refuse(self._refusal)

    def _refuse(self, detail: str) -> None:
        """End the connection because of a malformed request, with a 400 if that can't pass for another's response."""
        self._is_refused = True
        self._stop_timer()
        is_unanswered = self.cycle is not None and not self.cycle.response_complete
        if self._awaits_head and is_unanswered:
            self.cycle.keep_alive = False  # earlier requests, which were complete, get their responses
            return
        # By the connection, because what the head says of the client can't be relied on.
        log.info("malformed_request", client=self.client[0] if self.client else "", detail=detail)
        is_body_of_a_later_one = is_unanswered and (self.pipeline or self.cycle.response_started)
        is_body_of_an_answered_one = not self._awaits_head and not is_unanswered
        if not is_body_of_a_later_one and not is_body_of_an_answered_one:
            self.transport.write(self._bad_request(detail))
        self.transport.close()

    def _bad_request(self, detail: str) -> bytes:
        """Return a whole 400 response."""
        # Not above: the class is imported by gunicorn's master, which would keep the application's modules on a reload.
        from core.ids import new_request_id
        from core.problems import MEDIA_TYPE, Problem, document

        request_id = new_request_id()
        body = orjson.dumps(document(SimpleNamespace(request_id=request_id), Problem("bad_request", detail)))
        headers = {
            b"content-type": MEDIA_TYPE.encode(),
            b"content-length": b"%d" % len(body),
            b"x-request-id": request_id.encode(),
            b"cache-control": b"no-store",
            b"connection": b"close",
        }
        lines = [b"%b: %b\r\n" % field for field in (*self.server_state.default_headers, *headers.items())]
        return b"".join([b"HTTP/1.1 400 Bad Request\r\n", *lines, b"\r\n", body])

    def eof_received(self) -> bool:  # type: ignore[override]
        """Respond to a complete request although the client has ended its side of the connection, as `nc` does.

        Returns whether the connection stays open for that.  What isn't complete can't be any more.  A client that has
        closed the connection looks the same, so a request that waits is told.
        """
        if self.cycle is None or self.cycle.response_complete or self.cycle.more_body:
            return False
        # Not above, as in `_bad_request`.
        from core.front_door.http import INPUT_HAS_ENDED

        self.cycle.keep_alive = False
        cast(dict[str, Any], self.cycle.scope)[INPUT_HAS_ENDED] = True
        self.cycle.message_event.set()
        self._stop_timer()
        return True

    def shutdown(self) -> None:
        """Close the connection as the server stops, after LAST_REQUEST_SECONDS if it is idle.

        uvicorn would close an idle connection at once, and with it a request that is on its way.  Requests that wait
        for something come to their end.
        """
        # Not above, as in `_bad_request`.
        from core.front_door.stopping import stopping

        stopping.begin()
        if self.cycle is not None and not self.cycle.response_complete:
            super().shutdown()
            return
        self._is_last = True
        self.loop.call_later(LAST_REQUEST_SECONDS, self._close_if_idle)

    def _close_if_idle(self) -> None:
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        counts.add(-1)
        self._stop_timer()
        super().connection_lost(exc)

    def _start_timer(self) -> None:
        if self._head_timer is None and not self.transport.is_closing():
            self._head_timer = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


def _is_not_malformed_request(record: logging.LogRecord) -> bool:
    """Tell whether uvicorn's line is another one than the one that BoundedProtocol writes, with a reason."""
    return record.msg != "Invalid HTTP request received."


class WebWorker(UvicornWorker):  # type: ignore[misc]
    """uvicorn as gunicorn runs it."""

    CONFIG_KWARGS: ClassVar[dict[str, Any]] = {
        "loop": "triggers_project.web_loop:WebLoop",
        "http": BoundedProtocol,
        "ws": "none",
        "lifespan": "on",
        "access_log": False,  # the application logs each request
        "server_header": False,
        "proxy_headers": False,  # core.client_address decides, by TRUSTED_PROXIES
    }

    def init_process(self) -> None:
        """Let the process have as many connections as the system allows it, and its share of them."""
        counts.choose_place(self.age)
        served_lately.choose_place(self.age)
        # Threads share the interpreter: switching more often keeps the event loop responsive beside Django's.
        sys.setswitchinterval(0.001)
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        logging.getLogger("uvicorn.error").addFilter(_is_not_malformed_request)
        super().init_process()
