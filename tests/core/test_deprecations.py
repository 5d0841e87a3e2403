"""What is deprecated is said in the responses that it concerns, in the OpenAPI document, and in the reference."""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
from django.test import Client
from django.urls import path
from drf_spectacular.generators import SchemaGenerator
from drf_spectacular.utils import extend_schema
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from core.deprecations import Deprecation, mark_deprecations, register, registry
from core.front_door import http
from core.front_door.app import FrontDoor
from core.json_body import read_object
from core.openapi.parameters import query
from core.serializers import StrictCharField, StrictSerializer
from scripts import reference_docs

SINCE, SUNSET = datetime.date(2027, 1, 31), datetime.date(2027, 7, 31)
SAID = {"Deprecation": "@1801353600", "Sunset": "Sat, 31 Jul 2027 00:00:00 GMT"}
LINK = '</api/docs>; rel="deprecation"; type="text/html"'


class Body(StrictSerializer):
    """What a request has."""

    name = StrictCharField(required=False)
    title = StrictCharField(required=False, help_text="How it is called.")


class Things(APIView):
    """Operations of an API with a past."""

    authentication_classes = ()
    permission_classes = ()
    scopes: ClassVar = {"GET": None, "POST": None, "DELETE": None}

    @extend_schema(tags=["Events"], summary="List", parameters=[query("sort", "The order.")], responses={200: Body})
    def get(self, request: Request) -> Response:
        return Response({}, headers={"Link": '</next>; rel="next"'})

    @extend_schema(tags=["Events"], summary="Create", request=Body, responses={200: Body})
    def post(self, request: Request) -> Response:
        return Response(read_object(request))

    @extend_schema(tags=["Events"], summary="Delete", responses={204: None})
    def delete(self, request: Request) -> Response:
        return Response(status=204)


urlpatterns = [path("api/things/<uuid:thing_id>", Things.as_view()), path("api/things", Things.as_view())]
ROUTE = "/api/things"


@pytest.fixture
def api(settings: Any) -> Iterator[Client]:
    """Return a client of the API above, in which an operation, a parameter, and a field are deprecated."""
    settings.ROOT_URLCONF = __name__
    before = dict(registry)
    registry.clear()
    register(
        Deprecation("GET", ROUTE, SINCE, "Use `order`.", SUNSET, parameter="sort"),
        Deprecation("POST", ROUTE, SINCE, "Use `name`.", SUNSET, field="title"),
        Deprecation("DELETE", ROUTE, SINCE, "Use PATCH."),
    )
    yield Client()
    registry.clear()
    registry.update(before)


def test_a_response_to_what_is_deprecated_says_so(api: Client) -> None:
    response = api.get(f"{ROUTE}?sort=asc")
    assert {name: response[name] for name in SAID} == SAID
    assert response["Link"] == f'</next>; rel="next", {LINK}'
    assert api.head(f"{ROUTE}?sort=asc")["Deprecation"] == SAID["Deprecation"]
    response = api.post(ROUTE, {"title": "A"}, content_type="application/json")
    assert {name: response[name] for name in SAID} == SAID
    assert response["Link"] == LINK
    response = api.delete(ROUTE)
    assert response["Deprecation"] == SAID["Deprecation"]
    assert not response.has_header("Sunset")  # which isn't decided


def test_a_response_to_anything_else_does_not(api: Client) -> None:
    body: dict[str, Any] = {"content_type": "application/json"}
    others = [
        api.get(ROUTE), api.get(f"{ROUTE}/00000000-0000-0000-0000-000000000000?sort=asc"),
        api.post(ROUTE, {"name": "title"}, **body), api.post(ROUTE, "title", **body),
    ]  # fmt: skip
    assert not [response for response in others if response.has_header("Deprecation")]


def test_the_front_door_says_so_too(api: Client) -> None:
    async def handler(request: http.Request) -> http.Response:
        return http.Response(202, await request.read_decompressed(1000))

    def ask(body: bytes) -> dict[bytes, bytes]:
        sent: list[http.Message] = []

        async def receive() -> http.Message:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: http.Message) -> None:
            sent.append(message)

        scope = {
            "type": "http", "method": "POST", "scheme": "http", "path": ROUTE, "raw_path": ROUTE.encode(),
            "query_string": b"", "headers": [(b"host", b"localhost")],
        }  # fmt: skip
        asyncio.run(FrontDoor({("POST", ROUTE): handler}, lambda *_: [b""], threads=1)(scope, receive, send))
        return dict(sent[0]["headers"])

    for body in (b'{"title": "A"}', b'[{"name": "A"}, {"title": "B"}]'):
        found = ask(body)
        assert {name: found[name.lower().encode()].decode() for name in SAID} == SAID
    assert b"deprecation" not in ask(b'{"name": "A"}')


def test_the_openapi_document_and_the_reference_say_what_to_use_instead(api: Client) -> None:
    document = SchemaGenerator(urlconf=__name__).get_schema(request=None, public=True)  # type: ignore[no-untyped-call]
    operations = document["paths"][ROUTE]
    said = "**Deprecated** since 2027-01-31, works until 2027-07-31."
    (parameter,) = [one for one in operations["get"]["parameters"] if one.get("name") == "sort"]
    assert (parameter["deprecated"], parameter["description"]) == (True, f"{said} Use `order`. The order.")
    field = document["components"]["schemas"]["BodyRequest"]["properties"]["title"]
    assert (field["deprecated"], field["description"]) == (True, f"{said} Use `name`. How it is called.")
    assert operations["delete"]["deprecated"]
    assert not {"deprecated"} & (operations["get"].keys() | operations["post"].keys())
    page = reference_docs.operations_page(document)
    assert "**Deprecated** since 2027-01-31. Use PATCH." in page
    assert f"| `sort` | query | string | {said} Use `order`. The order. |" in page
    assert f"{said} Use `name`. How it is called. |" in page


@pytest.mark.parametrize("wrong", [{"route": "/api/nothing"}, {"parameter": "nothing"}, {"field": "nothing"}])
def test_a_deprecation_of_nothing_is_noticed(api: Client, wrong: dict[str, str]) -> None:
    document = {"paths": {ROUTE: {"get": {"parameters": []}}}}
    register(Deprecation(**{"method": "GET", "route": ROUTE, "since": SINCE, "instead": "Don't.", **wrong}))  # type: ignore[arg-type]
    with pytest.raises(LookupError, match="nothing"):
        mark_deprecations(document)
