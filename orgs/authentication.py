"""DRF authentication by API key: `X-API-Key: <key>` or `Authorization: Bearer <key>`."""

from __future__ import annotations

from typing import Any, cast

from drf_spectacular.extensions import OpenApiAuthenticationExtension
from rest_framework.authentication import BaseAuthentication
from rest_framework.request import Request

from core.client_address import client_address
from core.problems import Problem
from core.ratelimits import RateLimitDecision
from orgs import key_cache, throttle
from orgs.keys import Caller, authenticate
from orgs.models import Scope

_CHALLENGE = {"WWW-Authenticate": 'Bearer realm="triggers"'}


_RECALLED = object()  # what DRF keeps as `request.auth` for a caller that was only recalled


def _presented_key(request: Request) -> str:
    """Return the key that a request presents; empty when there is none."""
    key: str = request.META.get("HTTP_X_API_KEY", "").strip()
    if not key:
        scheme, _, credentials = request.META.get("HTTP_AUTHORIZATION", "").partition(" ")
        if scheme.lower() == "bearer":
            key = credentials.strip()
    return key


class ApiKeyAuthentication(BaseAuthentication):
    """Set `request.user` to the Caller.  No endpoint that uses this is open to nobody.

    recall_for: the scope of a view that does one thing in one statement, with `keys.HOLDS` in it. There a caller is
    recalled, if this process can, instead of asking the database. Before the view refuses anything, and when its
    statement did nothing, it calls `ask_again`: only then is certain what the key may do.
    """

    def __init__(self, recall_for: Scope | None = None) -> None:
        self._recall_for = recall_for

    def authenticate(self, request: Request) -> tuple[Caller, object]:
        key = _presented_key(request)
        if self._recall_for is not None:
            recalled = key_cache.recall(key)
            if recalled is not None and self._recall_for.value in recalled.scopes:
                return recalled, _RECALLED
        if not key:
            raise self._refusal(
                request, "not_authenticated", "Give an API key in `X-API-Key` or `Authorization: Bearer`."
            )
        early = throttle.refuse_early(client_address(request._request), key)
        if early is not None:
            raise self._too_many(early)
        caller = authenticate(key)
        if caller is None:
            raise self._refusal(request, "invalid_api_key", "The API key is not valid.")
        key_cache.note(key, caller)
        return caller, None

    def authenticate_header(self, request: Request) -> str:
        return _CHALLENGE["WWW-Authenticate"]

    def _refusal(self, request: Request, code: str, detail: str) -> Problem:
        """Return the 401, or a 429 for an address that keeps failing."""
        verdict = throttle.failed(client_address(request._request))
        return Problem(401, code, detail, headers=_CHALLENGE) if verdict.allowed else self._too_many(verdict)

    @staticmethod
    def _too_many(verdict: RateLimitDecision) -> Problem:
        return Problem(
            429,
            "too_many_failures",
            "Too many failed authentications from this address.",
            headers=verdict.headers(throttle.POLICY),
        )


def caller_of(request: Request) -> Caller:
    """Return who makes an authenticated request."""
    return cast(Caller, request.user)


def recalled_caller_of(request: Request) -> Caller | None:
    """Return the caller if it was only recalled."""
    return caller_of(request) if request.auth is _RECALLED else None


def ask_again(request: Request, view: Any) -> bool:
    """Find out whose the key of a recalled caller is now; tell whether anything about it has changed.

    Raises Problem 401, 403 or 429 when it may no longer do what `view` does. Without effect on a caller that the
    database was asked for.
    """
    recalled = recalled_caller_of(request)
    if recalled is None:
        return False
    caller, request.auth = ApiKeyAuthentication().authenticate(request)
    request.user = caller  # type: ignore[assignment]
    view.check_permissions(request)
    return caller_of(request) != recalled


class ApiKeyScheme(OpenApiAuthenticationExtension):  # type: ignore[no-untyped-call]
    """How the OpenAPI schema describes the two ways to give a key."""

    target_class = "orgs.authentication.ApiKeyAuthentication"
    name = ["ApiKey", "Bearer"]  # noqa: RUF012

    def get_security_definition(self, auto_schema: object) -> list[dict[str, str]]:
        return [
            {"type": "apiKey", "in": "header", "name": "X-API-Key"},
            {"type": "http", "scheme": "bearer", "description": "The same key, as `Authorization: Bearer …`."},
        ]

    def get_security_requirement(self, auto_schema: object) -> list[dict[str, list[str]]]:
        return [{"ApiKey": []}, {"Bearer": []}]  # either, not both
