"""Django, as a WSGI application, behind the front door.

The body is read before a thread is taken, so a client that sends slowly doesn't occupy one.  Unlike other packages, it
refuses header names with an underscore, as gunicorn does (`X_Forwarded_For` would pass for `X-Forwarded-For`), and it
takes no SCRIPT_NAME from a header or from the process's environment.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Any

from core.front_door.http import Request, Send
from core.shared_threads import SharedThreads

Environ = dict[str, Any]
WSGIApplication = Callable[[Environ, Callable[..., Any]], Iterable[bytes]]

PIECE_BYTES = 65536  # of a streamed response, sent at a time


def build_environ(request: Request, body: bytes) -> Environ:
    """Return the WSGI environment (PEP 3333) of a request."""
    scope = request.scope
    server = scope.get("server") or ("localhost", None)
    client = scope.get("client") or ("", 0)
    environ: Environ = {
        "REQUEST_METHOD": scope["method"],
        "SCRIPT_NAME": "",
        # PEP 3333 wants the bytes of the path as Latin-1.
        "PATH_INFO": scope["path"].encode("utf-8", "surrogateescape").decode("latin-1"),
        "QUERY_STRING": scope["query_string"].decode("latin-1"),
        "SERVER_PROTOCOL": f"HTTP/{scope['http_version']}",
        "SERVER_NAME": server[0],
        "SERVER_PORT": str(server[1] or 0),
        "REMOTE_ADDR": client[0],
        "REMOTE_PORT": str(client[1]),
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": scope.get("scheme", "http"),
        "wsgi.input": io.BytesIO(body),
        "wsgi.input_terminated": True,
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
    }
    for raw_name, raw_value in scope["headers"]:
        if b"_" in raw_name:
            continue
        name = raw_name.decode("latin-1").upper().replace("-", "_")
        key = name if name in {"CONTENT_TYPE", "CONTENT_LENGTH"} else f"HTTP_{name}"
        value = raw_value.decode("latin-1")
        if key in environ:
            value = f"{environ[key]}{'; ' if key == 'HTTP_COOKIE' else ','}{value}"
        environ[key] = value
    if environ.pop("HTTP_TRANSFER_ENCODING", None) is not None:  # the body is no longer in chunks
        environ["CONTENT_LENGTH"] = str(len(body))
    return environ


class _Reply:
    """A response of the application.  Everything here runs in a thread."""

    status = 500
    headers: list[tuple[bytes, bytes]]

    def __init__(self, application: WSGIApplication, environ: Environ) -> None:
        self._chunks = application(environ, self._start)
        self._iterator: Iterator[bytes] | None = iter(self._chunks)

    def _start(self, status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> None:
        self.status = int(status.split(" ", 1)[0])
        self.headers = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers]

    def read(self) -> tuple[bytes, bool]:
        """Return the next piece of the body, of about PIECE_BYTES, and whether more follows."""
        pieces: list[bytes] = []
        size = 0
        try:
            for piece in self._iterator or ():
                pieces.append(piece)
                size += len(piece)
                if size >= PIECE_BYTES:
                    return b"".join(pieces), True
        except BaseException:
            self.close()
            raise
        self.close()
        return b"".join(pieces), False

    def close(self) -> None:
        """End the response, which gives the database connection back."""
        if self._iterator is not None:
            self._iterator = None
            close = getattr(self._chunks, "close", None)
            if close is not None:
                close()


class WSGIBridge:
    """Calls a WSGI application in one of `threads` and sends its response.

    whose: returns who makes a request, for the turns.
    """

    def __init__(
        self, application: WSGIApplication, threads: SharedThreads, whose: Callable[[Request], Hashable]
    ) -> None:
        self._application = application
        self._threads = threads
        self._whose = whose

    async def __call__(self, request: Request, body: bytes, send: Send) -> None:
        """Serve a request whose body has been read."""
        environ = build_environ(request, body)

        def begin() -> tuple[_Reply, bytes, bool]:
            reply = _Reply(self._application, environ)
            return reply, *reply.read()

        who = self._whose(request)
        reply, piece, more = await self._threads.run(who, begin)
        await send({"type": "http.response.start", "status": reply.status, "headers": reply.headers})
        await send({"type": "http.response.body", "body": piece, "more_body": more})
        try:
            while more:
                piece, more = await self._threads.run(who, reply.read)
                await send({"type": "http.response.body", "body": piece, "more_body": more})
        finally:
            if more:
                await self._threads.run(who, reply.close)

    def shutdown(self) -> None:
        """Wait for the threads to finish.  Blocks."""
        self._threads.shutdown()
