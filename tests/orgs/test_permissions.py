"""A method whose scope was forgotten is refused, whatever the key may do."""

from __future__ import annotations

from typing import ClassVar

import pytest
from django.test import RequestFactory
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from orgs.keys import authenticate, create_api_key
from orgs.models import Organization
from orgs.permissions import HasScope
from orgs.scopes import Scope


class Forgetful(APIView):
    """A view that has a method for which it names no scope."""

    scopes: ClassVar = {"GET": Scope.EVENTS_READ, "PUT": None}

    def get(self, request: Request) -> Response:
        return Response({})

    put = post = delete = get


@pytest.mark.parametrize(
    ("method", "held", "status"),
    [
        ("GET", ["events:read"], 200),
        ("HEAD", ["events:read"], 200),
        ("GET", ["events:write"], 403),
        ("HEAD", [], 403),
        ("PUT", [], 200),
        ("OPTIONS", [], 200),
        ("POST", None, 405),
        ("DELETE", None, 405),
    ],
)
def test_a_method_needs_the_scope_that_its_view_names_and_one_without_is_refused(
    organization: Organization, method: str, held: list[str] | None, status: int
) -> None:
    _, key = create_api_key(organization, scopes=held)
    assert authenticate(key) is not None
    request = RequestFactory().generic(method, "/", headers={"X-API-Key": key})
    response = Forgetful.as_view(permission_classes=[HasScope])(request)
    assert response.status_code == status
