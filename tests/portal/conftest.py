"""A tenant's browser, in this process: opened by a link that the API made."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from django.test import Client
from django.utils import timezone

from core import wakeups
from orgs.keys import create_api_key
from orgs.models import Organization
from orgs.scopes import Scope
from portal import web
from tests.conftest import ApiClient
from tests.security.conftest import ids as ids  # a fixture
from webhooks.models import Delivery


class Visitor:
    """A browser with a session of the portal.  It fills in the form token as a page does."""

    def __init__(self) -> None:
        self.client = Client(raise_request_exception=False)

    @property
    def token(self) -> str:
        """Return the session's token."""
        return self.client.cookies[web.COOKIE].value if web.COOKIE in self.client.cookies else ""

    def open(self, url: str) -> Any:
        """Open a link as its page does."""
        response = self.client.post("/portal/open", {"token": url.partition("#")[2]})
        self.take_cookie(response)
        return response

    def take_cookie(self, response: Any) -> None:
        """Keep the cookie, which isn't among those that Django's client knows: its header is our own."""
        if match := re.match(rf"{web.COOKIE}=([^;]*)", response.headers.get("Set-Cookie", "")):
            self.client.cookies[web.COOKIE] = match[1]

    def get(self, path: str = "", **query: str) -> Any:
        """Open a page."""
        return self.client.get(f"/portal/{path}", query)

    def post(self, path: str, **fields: Any) -> Any:
        """Send a form."""
        response = self.client.post(f"/portal/{path}", {"form_token": web.form_token(self.token), **fields})
        assert wakeups.wait_until_woken(30)
        return response


def link_for(organization: Organization, **options: Any) -> str:
    """Return a link's URL, made through the API."""
    key = create_api_key(organization, scopes=[Scope.PORTAL_LINKS.value])[1]
    response = ApiClient(key).post("/api/portal-links", options)
    assert response.status_code == 201, response.content
    return str(response.json()["url"])


@pytest.fixture
def open_portal(organization: Organization) -> Callable[..., Visitor]:
    """Return a function that opens the portal for an organization."""

    def open_it(of: Organization = organization, **options: Any) -> Visitor:
        visitor = Visitor()
        assert visitor.open(link_for(of, **options)).status_code == 302
        return visitor

    return open_it


@pytest.fixture
def visitor(open_portal: Callable[..., Visitor]) -> Visitor:
    """Return a browser with a session of `organization`."""
    return open_portal()


@pytest.fixture
def looker(open_portal: Callable[..., Visitor]) -> Visitor:
    """Return a browser whose session of `organization` can only look."""
    return open_portal(read_only=True)


@pytest.fixture
def rows(ids: dict[str, Any]) -> dict[str, Any]:
    """Return the ids of one row of everything, of `organization`, by the names in the portal's routes."""
    # With an ordering key, so that it can be skipped.
    Delivery.objects.filter(pk=ids["delivery_id"]).update(ordering_key="a", ordered_at=timezone.now())
    return {**ids, "endpoint_id": ids["subscription_id"]}


def path_in(route: str, rows: dict[str, Any]) -> str:
    """Return the path of a route below /portal/, with the ids filled in."""
    path = re.sub(r"<uuid:(\w+)>", lambda match: str(rows[match[1]]), route)
    return path.removeprefix("portal/")
