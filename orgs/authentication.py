"""DRF authentication by API key: `X-API-Key: <key>` or `Authorization: Bearer <key>`."""

from __future__ import annotations

from typing import cast

from drf_spectacular.extensions import OpenApiAuthenticationExtension
from rest_framework.authentication import BaseAuthentication
from rest_framework.request import Request

from core.client_address import client_address
from core.problems import Problem
from core.ratelimits import RateLimitDecision
from orgs.failed_authentications import POLICY, failed_authentications
from orgs.keys import Caller, authenticate
from orgs.verified_keys import verified_keys

SEND_A_KEY = "Send an API key as `X-API-Key: <key>` or `Authorization: Bearer <key>`."
_CHALLENGE = {"WWW-Authenticate": 'Bearer realm="triggers"'}


def key_in(x_api_key: str, authorization: str) -> str:
    """Return the key in the values of the two headers that may carry one; empty when there is none."""
    key = x_api_key.strip()
    if not key:
        scheme, _, credentials = authorization.partition(" ")
        if scheme.lower() == "bearer":
            key = credentials.strip()
    return key


def authenticate_key(key: str, address: str) -> Caller:
    """Return whose key a client at `address` gave.

    Raises Problem: 401 for a missing or wrong key; 429 for an address that fails too often.
    """
    if not key:
        raise _refusal(address, "not_authenticated", SEND_A_KEY)
    early = failed_authentications.refuse_early(address, key)
    if early is not None:
        raise _too_many(early)
    caller = authenticate(key)
    if caller is None:
        raise _refusal(address, "invalid_api_key", "The API key is not valid.")
    verified_keys.add(key, caller.organization_id)
    return caller


def _refusal(address: str, code: str, detail: str) -> Problem:
    """Return the 401, or a 429 for an address that keeps failing."""
    decision = failed_authentications.count(address)
    return Problem(code, detail, headers=_CHALLENGE) if decision.allowed else _too_many(decision)


def _too_many(decision: RateLimitDecision) -> Problem:
    return Problem(
        "too_many_failures",
        "Too many failed authentications from this address.",
        headers=decision.headers(POLICY),
    )


class ApiKeyAuthentication(BaseAuthentication):
    """Set `request.user` to the Caller.  Every endpoint that uses this requires a key."""

    def authenticate(self, request: Request) -> tuple[Caller, object]:
        key = key_in(request.META.get("HTTP_X_API_KEY", ""), request.META.get("HTTP_AUTHORIZATION", ""))
        return authenticate_key(key, client_address(request._request)), None

    def authenticate_header(self, request: Request) -> str:
        return _CHALLENGE["WWW-Authenticate"]


def caller_of(request: Request) -> Caller:
    """Return who makes an authenticated request."""
    return cast(Caller, request.user)


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
