"""The ASGI application: its own routes, and Django for everything else."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Hashable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from functools import lru_cache
from typing import Protocol, cast

import orjson
import structlog
from csp.middleware import CSPMiddleware
from django.conf import settings
from django.core.exceptions import DisallowedHost
from django.http import HttpRequest, HttpResponse
from django.middleware.clickjacking import XFrameOptionsMiddleware
from django.middleware.security import SecurityMiddleware

from core.cors import cors_headers
from core.deprecations import deprecation_headers, registry
from core.exceptions import problem_for
from core.front_door.http import ASGIScope, ClientGone, Receive, Request, Response, Send, Stream
from core.front_door.wsgi_bridge import WSGIApplication, WSGIBridge
from core.giving_way import Rests
from core.ids import new_request_id
from core.logs import current_request_id, output
from core.metrics.requests import OTHER, PROBLEMS, count_request
from core.middleware import MAX_URL_CHARACTERS, REQUEST_ID
from core.problems import MEDIA_TYPE, Problem, document
from core.shared_threads import SharedThreads
from core.url_prefix import path_below

log = structlog.get_logger()

Handler = Callable[[Request], Awaitable[Response | Stream]]

# The largest body that is passed to Django: a form of the admin, or an object of the API.
MAX_SITE_BODY_BYTES = 1_048_576
# How often it is noted whose requests are served: at a thousand of them a second, each note would cost 2 %.
NOTE_SECONDS = 0.01


class Served(Protocol):
    """Remembers whose requests are served, for all web processes."""

    def note(self, who: Hashable) -> None:
        """Note that somebody is served."""

    def another_than(self, who: Hashable) -> bool:
        """Return whether somebody else was served lately."""


class FrontDoor:
    """Serves `routes`, by method and path, on the event loop, and everything else with Django.

    A route gets what Django's middleware provides: a request id, a line in the log, and the security headers.  A
    request on which Django has to decide (its host isn't allowed, https is required, the URL is too long) goes to
    Django.

    services: entered when the server starts and left when it stops, such as connections. whose: returns who makes a
    request; those who wait for one of Django's threads take turns. served: remembers whose requests the routes serve;
    Django's give way to those of others, with `rests`.
    """

    def __init__(
        self,
        routes: Mapping[tuple[str, str], Handler],
        site: WSGIApplication,
        threads: int,
        services: Sequence[AbstractAsyncContextManager[object]] = (),
        whose: Callable[[Request], Hashable] = lambda request: None,
        served: Served | None = None,
        rests: Rests | None = None,
    ) -> None:
        self._routes = routes
        self._whose = whose
        self._served = served
        self._next_note_at = 0.0
        self._site = WSGIBridge(
            site,
            SharedThreads(threads, "site", served.another_than if served else lambda who: False, rests),
            whose,
        )
        self._services = services
        self._is_allowed = lru_cache(1000)(_is_allowed)
        self._security_headers = _security_headers()

    async def __call__(self, scope: ASGIScope, receive: Receive, send: Send) -> None:
        """Serve a request, or the lifespan of the server."""
        if scope["type"] == "http":
            await self._serve(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._live(receive, send)
        else:
            raise ValueError(f"{scope['type']} is not served here")

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        with output.together_each_turn(asyncio.get_running_loop()):
            await self._run_services(receive, send)
        await send({"type": "lifespan.shutdown.complete"})

    async def _run_services(self, receive: Receive, send: Send) -> None:
        async with AsyncExitStack() as stack:
            for service in self._services:
                await stack.enter_async_context(service)
            await send({"type": "lifespan.startup.complete"})
            await receive()
        await asyncio.to_thread(self._site.shutdown)

    async def _serve(self, scope: ASGIScope, receive: Receive, send: Send) -> None:
        path = path_below(scope["path"])
        if path.startswith("/api/"):
            path = path.rstrip("/")
        handler = self._routes.get((scope["method"], path))
        request = Request(scope, receive)
        given = request.header(b"x-request-id")
        request.request_id = given if REQUEST_ID.fullmatch(given) else new_request_id()
        try:
            if handler is not None and self._is_ordinary(request):
                await self._handle(handler, path, request, send)
            else:
                await self._pass_on(request, send)
        except ClientGone:
            return

    def _note(self, request: Request) -> None:
        """Note whose request is served; of those that come within NOTE_SECONDS, one stands for all."""
        if self._served is not None and time.monotonic() >= self._next_note_at:
            self._next_note_at = time.monotonic() + NOTE_SECONDS
            self._served.note(self._whose(request))

    async def _handle(self, handler: Handler, route: str, request: Request, send: Send) -> None:
        started = time.perf_counter()
        current_request_id.set(request.request_id)
        response: Response | Stream
        try:
            response = await handler(request)
            self._note(request)  # whose key has been found to work
        except ClientGone:
            raise
        except Exception as error:
            problem = problem_for(error, request.scope["path"])
            PROBLEMS.inc(route, problem.code)
            response = _problem_response(request, problem)
        if isinstance(response, Stream):
            await self._send_stream(request, route, response, send, started)
        else:
            await self._respond(request, route, response, send, started)

    async def _pass_on(self, request: Request, send: Send) -> None:
        """Let Django serve the request; a body that is too large for any of its pages is refused here."""
        started = time.perf_counter()
        try:
            body = await request.read(MAX_SITE_BODY_BYTES)
        except Problem as problem:
            PROBLEMS.inc(OTHER, problem.code)
            await self._respond(request, OTHER, _problem_response(request, problem), send, started)
        else:
            await self._site(request, body, send)

    async def _respond(self, request: Request, route: str, response: Response, send: Send, started: float) -> None:
        keep_alive = await request.drain()
        seconds = time.perf_counter() - started
        elapsed_ms = seconds * 1000
        headers = [
            (b"content-type", response.media_type.encode()),
            (b"content-length", b"%d" % len(response.body)),
            (b"x-request-id", request.request_id.encode()),
            (b"x-response-time", b"%.2fms" % elapsed_ms),
            (b"cache-control", b"no-store"),
            *self._security_headers,
            *_cors_headers(request),
            *_deprecation_headers(request, route),
            *((name.lower().encode(), value.encode("latin-1")) for name, value in response.headers.items()),
        ]
        if not keep_alive:
            headers.append((b"connection", b"close"))
        # Before the response, as Django's middleware does: once a client has the response, the count is there, and the
        # line in a moment (`core.logs`).
        count_request(request.scope["method"], route, response.status, seconds)
        log.info(
            "request",
            method=request.scope["method"],
            path=request.scope["path"],
            status=response.status,
            duration_ms=round(elapsed_ms, 2),
        )
        await send({"type": "http.response.start", "status": response.status, "headers": headers})
        await send({"type": "http.response.body", "body": response.body})

    async def _send_stream(self, request: Request, route: str, stream: Stream, send: Send, started: float) -> None:
        """Send chunks until there are no more, the client goes, or the server stops."""
        headers = [
            (b"content-type", stream.media_type.encode()),
            (b"x-request-id", request.request_id.encode()),
            (b"cache-control", b"no-store"),
            (b"x-accel-buffering", b"no"),  # nginx would buffer them
            *self._security_headers,
            *_cors_headers(request),
            *_deprecation_headers(request, route),
        ]
        count_request(request.scope["method"], route, stream.status, time.perf_counter() - started)
        log.info(
            "request",
            method=request.scope["method"],
            path=request.scope["path"],
            status=stream.status,
            duration_ms=round((time.perf_counter() - started) * 1000, 2),
        )
        await send({"type": "http.response.start", "status": stream.status, "headers": headers})
        gone = asyncio.create_task(request.gone())
        try:
            while not gone.done():
                following = asyncio.ensure_future(anext(stream.chunks, None))
                try:
                    await asyncio.wait({following, gone}, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    if not following.done():
                        following.cancel()
                        await asyncio.wait({following})
                chunk = None if following.cancelled() else following.result()
                if chunk is None:
                    break
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        except Exception as error:
            problem_for(error, request.scope["path"])  # which logs it; the client will connect again
        finally:
            gone.cancel()
            await stream.chunks.aclose()
        await send({"type": "http.response.body", "body": b""})

    def _is_ordinary(self, request: Request) -> bool:
        """Return whether Django's checks of a request's host, scheme, and URL would let it pass."""
        if settings.USE_HTTPS:
            forwarded = request.headers.get(b"x-forwarded-proto")
            scheme = request.scope.get("scheme") if forwarded is None else forwarded.decode("latin-1")
            if scheme != "https":
                return False
        if len(request.scope["raw_path"]) + len(request.scope["query_string"]) >= MAX_URL_CHARACTERS:
            return False
        return self._is_allowed(request.headers.get(b"host", b""))


def _is_allowed(host: bytes) -> bool:
    request = HttpRequest()
    request.META = {"HTTP_HOST": host.decode("latin-1"), "SERVER_NAME": "", "SERVER_PORT": "80"}
    try:
        request.get_host()
    except DisallowedHost:
        return False
    return True


def _security_headers() -> list[tuple[bytes, bytes]]:
    """Return what Django's and django-csp's middleware add to every response."""
    own = set(HttpResponse().headers)
    handler = SecurityMiddleware(XFrameOptionsMiddleware(CSPMiddleware(lambda request: HttpResponse())))
    request = HttpRequest()
    request.META = {"HTTP_X_FORWARDED_PROTO": "https"}  # believed if USE_HTTPS, and then the only way to get here
    response = cast(HttpResponse, handler(request))
    return [
        (name.lower().encode(), value.encode("latin-1")) for name, value in response.headers.items() if name not in own
    ]


def _cors_headers(request: Request) -> list[tuple[bytes, bytes]]:
    if not settings.CORS_ALLOWED_ORIGINS:
        return []
    headers = cors_headers(request.header(b"origin"))
    return [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]


def _deprecation_headers(request: Request, route: str) -> list[tuple[bytes, bytes]]:
    if not registry:
        return []
    query = request.scope["query_string"].decode("latin-1")
    headers = deprecation_headers(request.scope["method"], route, query, request.body_so_far)
    return [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]


def _problem_response(request: Request, problem: Problem) -> Response:
    return Response(problem.status_code, orjson.dumps(document(request, problem)), MEDIA_TYPE, problem.headers)
