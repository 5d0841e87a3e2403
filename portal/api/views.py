"""`/api/portal-links`."""

from __future__ import annotations

from typing import ClassVar

from django.conf import settings
from django.db import transaction
from django.urls import reverse
from drf_spectacular.utils import OpenApiExample, extend_schema
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from core.json_body import read_object
from core.problems import Problem
from orgs import audit
from orgs.authentication import caller_of
from orgs.idempotency import idempotent
from orgs.scopes import Scope
from portal import sessions
from portal.api.serializers import PortalLinkCreate, PortalLinkOut
from portal.models import all_portal_scopes


class PortalLinkListView(APIView):
    """Links to the portal."""

    scopes: ClassVar = {"POST": Scope.PORTAL_LINKS}

    @extend_schema(
        operation_id="createPortalLink",
        tags=["Portal"],
        summary="Create a link to the portal",
        request=PortalLinkCreate,
        responses={201: PortalLinkOut},
        examples=[OpenApiExample("a link", {"name": "ana@shop.example", "session_seconds": 3600}, request_only=True)],
    )
    @idempotent()
    def post(self, request: Request) -> Response:
        """Create a link that opens the portal for the key's organization, once.

        In the portal, people manage the organization's endpoints and read its deliveries without an account and without
        this key. The session ends at its time, when the key is revoked or expires, and when the organization is
        deactivated.
        """
        serializer = PortalLinkCreate(data=read_object(request))
        serializer.is_valid(raise_exception=True)
        wanted = serializer.validated_data
        with transaction.atomic():
            try:
                row, token = sessions.create_link(
                    caller_of(request), link_seconds=wanted["link_seconds"], session_seconds=wanted["session_seconds"],
                    is_read_only=wanted["read_only"], name=wanted["name"].strip(),
                    scopes=[one for one in all_portal_scopes() if one in wanted["scopes"]],
                )  # fmt: skip
            except sessions.TooManyLinks as error:
                headers = {"Retry-After": str(error.retry_after)}
                raise Problem("too_many_portal_links", str(error), headers=headers) from None
            audit.record_for_caller(
                request, "portal.link", row.id,
                {"read_only": row.is_read_only, "scopes": row.scopes, "session_seconds": row.session_seconds},
                name=row.name,
            )  # fmt: skip
        # In the fragment, which browsers keep to themselves: no proxy and no log on the way sees the token.
        path = f"{reverse('portal:open')}#{token}"
        url = f"{settings.PORTAL_URL}{path}" if settings.PORTAL_URL else request.build_absolute_uri(path)
        return Response(PortalLinkOut(context={"url": url}).to_representation(row), status=201)
