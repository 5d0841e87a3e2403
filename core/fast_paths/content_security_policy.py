"""The Content-Security-Policy header without building the same text for each answer."""

from __future__ import annotations

from csp.constants import HEADER
from csp.middleware import CSPMiddleware
from csp.utils import build_policy
from django.http import HttpRequest, HttpResponseBase


class PolicyMiddleware(CSPMiddleware):
    """django-csp's middleware for a site whose one policy stands in the settings.

    Building the text was an eighth of a POST's processor time.  An answer or request that asks for
    something of its own (a nonce, a decorator of django-csp) gets it the usual way.
    """

    _policy: str | None = None

    def process_response(self, request: HttpRequest, response: HttpResponseBase) -> HttpResponseBase:
        special = "_csp_nonce" in request.__dict__ or any(name.startswith("_csp") for name in response.__dict__)
        if special:
            return super().process_response(request, response)
        if self._policy is None:
            self._policy = build_policy()
        response.headers.setdefault(HEADER, self._policy)
        return response
