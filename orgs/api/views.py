"""`/api/me`, `/api/keys` and `/api/audit`."""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import ClassVar

from django.conf import settings
from django.db import transaction
from drf_spectacular.utils import OpenApiExample, OpenApiResponse, extend_schema
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from core.json_body import read_object
from core.openapi import PAGE, SINCE, UNTIL, conflict, location, query
from core.problems import Problem, no_such
from core.query import PAGE_PARAMETERS, moment, page, parse_parameters, text
from core.url_prefix import full_path
from orgs import audit, keys
from orgs.api.serializers import (
    ApiKeyCreate,
    ApiKeyOut,
    ApiKeyRotate,
    ApiKeyWithSecret,
    AuditEntryOut,
    AuditPage,
    KeyPage,
    Me,
)
from orgs.authentication import caller_of
from orgs.idempotency import idempotent
from orgs.models import ApiKey, AuditEntry
from orgs.scopes import Scope

KEY_EXAMPLE = {"name": "shop backend", "scopes": ["events:write"], "expires_at": "2027-01-31T12:00:00Z"}


class MeView(APIView):
    """Who the key is and what it may do."""

    scopes: ClassVar = {"GET": None}

    @extend_schema(operation_id="getCaller", tags=["Account"], summary="Get the calling key", responses=Me)
    def get(self, request: Request) -> Response:
        """Return the organization and the key of the request."""
        return Response(Me().to_representation(caller_of(request)))


def _own_key(request: Request, key_id: uuid.UUID) -> ApiKey:
    key = ApiKey.objects.filter(organization_id=caller_of(request).organization_id, id=key_id).first()
    if key is None:
        raise no_such("key")
    return key


def _created(key: ApiKey, text: str) -> Response:
    """Return the 201 for a new key, with its full text."""
    shown = ApiKeyWithSecret().to_representation((key, text))
    return Response(shown, status=201, headers={"Location": full_path(f"/api/keys/{key.id}")})


def _require_within(request: Request, scopes: list[str]) -> None:
    try:
        keys.require_within(scopes, caller_of(request).scopes)
    except keys.ScopeError as error:
        raise Problem("missing_scope", f"{str(error).capitalize()}.", errors=[("/scopes", str(error))]) from None


def _require_no_longer(request: Request, expires_at: datetime.datetime | None) -> None:
    try:
        keys.require_no_longer(expires_at, caller_of(request).expires_at)
    except keys.ExpiryError as error:
        raise Problem(
            "outlives_caller",
            "A key can't create one that expires later than itself.",
            errors=[("/expires_at", str(error))],
        ) from None


@contextmanager
def _limited() -> Iterator[None]:
    """Turn a key too many into a 409."""
    try:
        yield
    except keys.TooManyKeys as error:
        raise Problem("too_many_keys", str(error), extra={"limit_keys": settings.MAX_API_KEYS}) from None


class KeyListView(APIView):
    """The organization's keys."""

    scopes: ClassVar = {"GET": Scope.KEYS_MANAGE, "POST": Scope.KEYS_MANAGE}

    @extend_schema(operation_id="listKeys", tags=["Keys"], summary="List keys", parameters=PAGE, responses=KeyPage)
    def get(self, request: Request) -> Response:
        """List keys, newest first."""
        parameters = parse_parameters(request, PAGE_PARAMETERS)
        rows = ApiKey.objects.filter(organization_id=caller_of(request).organization_id)
        return Response(page(rows, parameters, ApiKeyOut().to_representation))

    @extend_schema(
        operation_id="createKey",
        tags=["Keys"],
        summary="Create a key",
        parameters=[location(201)],
        request=ApiKeyCreate,
        responses={201: ApiKeyWithSecret, **conflict("too_many_keys")},
        examples=[OpenApiExample("key", KEY_EXAMPLE, request_only=True)],
    )
    @idempotent()
    def post(self, request: Request) -> Response:
        """Create a key. Its text is in this response and can't be read again."""
        serializer = ApiKeyCreate(data=read_object(request))
        serializer.is_valid(raise_exception=True)
        wanted = serializer.validated_data
        scopes = wanted.get("scopes") or sorted(caller_of(request).scopes)
        _require_within(request, scopes)
        expires_at = wanted.get("expires_at", caller_of(request).expires_at)
        _require_no_longer(request, expires_at)
        with _limited(), transaction.atomic():
            key, secret = keys.create_api_key(
                caller_of(request).organization_id,
                name=wanted["name"],
                scopes=set(scopes),
                expires_at=expires_at,
            )
            audit.record_for_caller(request, "key.create", key.id, {"scopes": key.scopes}, name=str(key))
        key.refresh_from_db()
        return _created(key, secret)


class KeyView(APIView):
    """One key."""

    scopes: ClassVar = {"GET": Scope.KEYS_MANAGE, "DELETE": Scope.KEYS_MANAGE}

    @extend_schema(operation_id="getKey", tags=["Keys"], summary="Get a key", responses=ApiKeyOut)
    def get(self, request: Request, key_id: uuid.UUID) -> Response:
        """Return the key without its secret."""
        return Response(ApiKeyOut().to_representation(_own_key(request, key_id)))

    @extend_schema(
        operation_id="revokeKey",
        tags=["Keys"],
        summary="Revoke a key",
        parameters=[query("reason", "Why, for those who read the audit log later; at most 255 characters.")],
        responses={204: OpenApiResponse(None, "Revoked.")},
    )
    def delete(self, request: Request, key_id: uuid.UUID) -> Response:
        """Revoke the key. It is refused from the next request on."""
        reason = parse_parameters(request, {"reason": text}).get("reason", "")
        key = _own_key(request, key_id)
        with transaction.atomic():
            if keys.revoke(key):
                audit.record_for_caller(request, "key.revoke", key.id, name=str(key), reason=reason)
        return Response(status=204)


class KeyRotateView(APIView):
    """Replacing a key."""

    scopes: ClassVar = {"POST": Scope.KEYS_MANAGE}

    @extend_schema(
        operation_id="rotateKey",
        tags=["Keys"],
        summary="Rotate a key",
        parameters=[location(201)],
        request=ApiKeyRotate,
        responses={
            201: ApiKeyWithSecret,
            **conflict("key_revoked", "key_expired", "too_many_keys"),
        },
        examples=[OpenApiExample("an hour of overlap", {"overlap_seconds": 3600}, request_only=True)],
    )
    @idempotent()
    def post(self, request: Request, key_id: uuid.UUID) -> Response:
        """Create a key with the same scopes and expiry. The old key keeps working for `overlap_seconds`."""
        serializer = ApiKeyRotate(data=read_object(request))
        serializer.is_valid(raise_exception=True)
        old = _own_key(request, key_id)
        _require_within(request, old.scopes)
        _require_no_longer(request, old.expires_at)
        overlap = datetime.timedelta(seconds=serializer.validated_data["overlap_seconds"])
        try:
            with _limited(), transaction.atomic():
                key, secret = keys.rotate(old, overlap)
                audit.record_for_caller(
                    request,
                    "key.rotate",
                    old.id,
                    {"successor": key.prefix, "overlap_seconds": overlap.total_seconds()},
                    name=str(old),
                )
        except keys.KeyEnded as ended:
            raise Problem(f"key_{ended}", f"The key is {ended}; create a new one instead.") from None
        key.refresh_from_db()
        return _created(key, secret)


class AuditListView(APIView):
    """Who did what in the organization."""

    scopes: ClassVar = {"GET": Scope.KEYS_MANAGE}

    @extend_schema(
        operation_id="listAuditEntries",
        tags=["Account"],
        summary="List audit entries",
        parameters=[query("action", "Only this action, such as `key.create`."), SINCE, UNTIL, *PAGE],
        responses=AuditPage,
    )
    def get(self, request: Request) -> Response:
        """List audit entries, newest first."""
        parameters = parse_parameters(request, {"action": text, "since": moment, "until": moment, **PAGE_PARAMETERS})
        rows = AuditEntry.objects.filter(organization_id=caller_of(request).organization_id)
        if "action" in parameters:
            rows = rows.filter(action=parameters["action"])
        if "since" in parameters:
            rows = rows.filter(created_at__gte=parameters["since"])
        if "until" in parameters:
            rows = rows.filter(created_at__lt=parameters["until"])
        return Response(page(rows, parameters, AuditEntryOut().to_representation))
