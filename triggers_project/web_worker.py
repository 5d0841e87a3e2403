"""The gunicorn worker that serves the front door: uvicorn, with the limits that it lacks."""

from __future__ import annotations

import asyncio
import resource
from typing import Any, ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn_worker import UvicornWorker

from triggers_project.web_loop import counts

# How long a client may take from connecting, or from the first byte of a request, to the end of the request's head.
HEAD_SECONDS = 20.0
# How long an idle connection may still bring a request when the server stops.
LAST_REQUEST_SECONDS = 0.5
# The largest head of a request, the longest of its fields, and the most of them.
MAX_HEAD_BYTES = 65536
MAX_FIELD_BYTES = 8190
MAX_FIELDS = 100


class HeadTooLarge(ValueError):
    """The head of a request is over a limit; uvicorn responds with a 400."""


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol, which by itself bounds neither the size of a request's head nor the wait for it.

    A connection whose request's head is late is closed.  Between two requests, uvicorn's keep-alive limit counts.
    """

    _head_timer: asyncio.TimerHandle | None = None
    _is_last = False  # the next request is the connection's last one
    _awaits_head = True
    _head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start_timer()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._awaits_head and not self.transport.is_closing():
            self._start_timer()
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self.send_400_response("The request's head is too large.")

    def on_message_begin(self) -> None:
        self._awaits_head = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._awaits_head = False
        self._head_bytes = 0
        self._stop_timer()
        if len(self.url) > MAX_FIELD_BYTES or len(self.headers) > MAX_FIELDS:
            raise HeadTooLarge
        if max((len(value) for _, value in self.headers), default=0) > MAX_FIELD_BYTES:
            raise HeadTooLarge
        super().on_headers_complete()
        if self._is_last:
            self.cycle.keep_alive = False

    def shutdown(self) -> None:
        """Close the connection as the server stops, after LAST_REQUEST_SECONDS if it is idle.

        uvicorn would close an idle connection at once, and with it a request that is on its way.
        """
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
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        super().init_process()
