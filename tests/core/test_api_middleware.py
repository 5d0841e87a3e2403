"""The API passes one layer of middleware, the site all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.conf import settings
from django.http import HttpRequest
from django.test import Client, override_settings

passed: list[str] = []


def noting(get_response: Callable[[HttpRequest], Any]) -> Callable[[HttpRequest], Any]:
    """Note the path of each request that passes."""

    class Noting:
        def __init__(self) -> None:
            self.get_response = get_response

        def __call__(self, request: HttpRequest) -> Any:
            passed.append(request.path)
            return get_response(request)

    return Noting()


def test_only_the_site_s_requests_pass_what_is_listed_behind_the_api_s_layer(db: None) -> None:
    passed.clear()
    with override_settings(MIDDLEWARE=[*settings.MIDDLEWARE, f"{__name__}.noting"]):
        client = Client()
        assert client.get("/api/health").status_code == 200
        assert client.get("/api/me").status_code == 401
        assert client.get("/").status_code == 302
    assert passed == ["/"]
