"""What a request to /api/ passes of the middleware: one layer that does what is needed of all the others.

It has no session, no cookie, no form and no static file. What Django's middleware did for it was a tenth of a POST's
processor time, most of it to find that there was nothing to do.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

from django.core.exceptions import SuspiciousOperation
from django.core.handlers.exception import response_for_exception
from django.http import HttpRequest, HttpResponse
from django.middleware.clickjacking import XFrameOptionsMiddleware
from django.middleware.security import SecurityMiddleware

from core.fast_paths.content_security_policy import PolicyMiddleware

Handler = Callable[[HttpRequest], Any]

API_PREFIX = "/api/"


def _behind_every_layer(handler: Any) -> Handler:
    """Return what the last middleware calls.  handler: what Django hands a middleware as `get_response`."""
    while True:
        layer = getattr(handler, "__wrapped__", handler)  # Django turns each layer's exceptions into answers
        following = getattr(layer, "get_response", None)
        if following is None:
            return handler  # type: ignore[no-any-return]
        handler = following


class ApiMiddleware:
    """Lets requests to the API by the middleware that is listed behind it; the site's pass through it.

    For the API it refuses foreign hosts, redirects to https, and adds Content-Length and the headers that Django's
    middleware and django-csp's add by the settings. An answer that asks for something of its own goes through theirs.
    """

    def __init__(self, get_response: Handler) -> None:
        self.get_response = get_response
        self._view = _behind_every_layer(get_response)
        self._security = SecurityMiddleware(get_response)
        self._decorators = (XFrameOptionsMiddleware(get_response), PolicyMiddleware(get_response), self._security)

    def __call__(self, request: HttpRequest) -> Any:
        if not request.path_info.startswith(API_PREFIX):
            return self.get_response(request)
        try:
            request.get_host()
            response = self._security.process_request(request) or self._view(request)
        except SuspiciousOperation as error:
            response = response_for_exception(request, error)
        headers = response.headers
        if not response.streaming and "Content-Length" not in headers:
            headers["Content-Length"] = str(len(response.content))
        if "xframe_options_exempt" in response.__dict__ or any(name.startswith("_csp") for name in response.__dict__):
            for layer in self._decorators:
                layer.process_response(request, response)
            return response
        for name, value in self._secure_headers if request.is_secure() else self._plain_headers:
            headers.setdefault(name, value)
        return response

    @cached_property
    def _plain_headers(self) -> list[tuple[str, str]]:
        return self._added_to_an_empty_answer("http")

    @cached_property
    def _secure_headers(self) -> list[tuple[str, str]]:
        return self._added_to_an_empty_answer("https")

    def _added_to_an_empty_answer(self, scheme: str) -> list[tuple[str, str]]:
        request = HttpRequest()
        request._get_scheme = lambda: scheme  # type: ignore[attr-defined]
        response = HttpResponse()
        own = set(response.headers)
        for layer in self._decorators:
            layer.process_response(request, response)
        return [(name, value) for name, value in response.headers.items() if name not in own]
