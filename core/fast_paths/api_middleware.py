"""Saves a POST a tenth of its processor time: the middleware that does nothing for /api/; `make bench SCENARIO=single`.

A request to the API has no session, no cookie, no form and no static file.  One layer does for it what is needed of
all the others.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured, SuspiciousOperation
from django.core.handlers.exception import response_for_exception
from django.http import HttpRequest, HttpResponse
from django.middleware.clickjacking import XFrameOptionsMiddleware
from django.middleware.security import SecurityMiddleware

from core.fast_paths.content_security_policy import PolicyMiddleware

Handler = Callable[[HttpRequest], Any]

API_PREFIX = "/api/"

# The middleware whose work ApiMiddleware does itself.  The site's alone are listed in settings.SITE_ONLY_MIDDLEWARE.
REPLACED = {
    "django.middleware.security.SecurityMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
    "core.fast_paths.content_security_policy.PolicyMiddleware",
}


def _check_skipped(middleware: list[str]) -> None:
    """Raise ImproperlyConfigured if /api/ would skip a middleware that isn't known to be of no use to it."""
    own = f"{__name__}.{ApiMiddleware.__name__}"
    skipped = middleware[middleware.index(own) + 1 :] if own in middleware else []
    unknown = [name for name in skipped if name not in REPLACED and name not in settings.SITE_ONLY_MIDDLEWARE]
    if unknown:
        raise ImproperlyConfigured(
            f"Requests to {API_PREFIX} would skip {', '.join(unknown)}. Move it before ApiMiddleware in MIDDLEWARE, or "
            "add it to SITE_ONLY_MIDDLEWARE if the API doesn't need it."
        )


def _behind_every_middleware(handler: Any) -> Handler:
    """Return what the last middleware calls.  handler: what Django gives a middleware as `get_response`."""
    while True:
        middleware = getattr(handler, "__wrapped__", handler)  # Django's conversion of exceptions to responses
        following = getattr(middleware, "get_response", None)
        if following is None:
            return handler  # type: ignore[no-any-return]
        handler = following


class ApiMiddleware:
    """Takes requests to the API past the middleware that is listed after it; requests to the site pass through.

    For the API it rejects unknown hosts, redirects to https, and adds Content-Length and the headers that Django's and
    django-csp's middleware would add.  A response that asks for something else, such as one that is exempt from
    X-Frame-Options, goes through theirs.

    Raises ImproperlyConfigured when MIDDLEWARE lists one after it that the API might need.
    """

    def __init__(self, get_response: Handler) -> None:
        _check_skipped(settings.MIDDLEWARE)
        self.get_response = get_response
        self._view = _behind_every_middleware(get_response)
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
            for middleware in self._decorators:
                middleware.process_response(request, response)
            return response
        for name, value in self._secure_headers if request.is_secure() else self._plain_headers:
            headers.setdefault(name, value)
        return response

    @cached_property
    def _plain_headers(self) -> list[tuple[str, str]]:
        return self._headers_of_an_empty_response("http")

    @cached_property
    def _secure_headers(self) -> list[tuple[str, str]]:
        return self._headers_of_an_empty_response("https")

    def _headers_of_an_empty_response(self, scheme: str) -> list[tuple[str, str]]:
        request = HttpRequest()
        request._get_scheme = lambda: scheme  # type: ignore[attr-defined]
        response = HttpResponse()
        own = set(response.headers)
        for middleware in self._decorators:
            middleware.process_response(request, response)
        return [(name, value) for name, value in response.headers.items() if name not in own]
