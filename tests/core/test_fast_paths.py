"""The shortcuts of a POST do what they stand in for, and the private parts of libraries that they use are there."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from csp.constants import HEADER
from csp.decorators import csp, csp_exempt, csp_replace, csp_update
from csp.middleware import CSPMiddleware
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.handlers.wsgi import WSGIHandler
from django.core.signals import request_finished
from django.db import close_old_connections
from django.http import HttpRequest, HttpResponse
from django.test import Client, RequestFactory, override_settings
from django.views.decorators.clickjacking import xframe_options_exempt
from django_redis import get_redis_connection
from redis.exceptions import ResponseError

from core.fast_paths.api_middleware import REPLACED, ApiMiddleware
from core.fast_paths.content_security_policy import PolicyMiddleware
from core.fast_paths.redis_connection import ThreadConnection

View = Callable[[HttpRequest], HttpResponse]
API_MIDDLEWARE = "core.fast_paths.api_middleware.ApiMiddleware"


# --- api_middleware -------------------------------------------------------------------------------------

passed: list[str] = []


class Noting:
    """A middleware that notes the path of each request that it gets."""

    def __init__(self, get_response: Callable[[HttpRequest], Any]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> Any:
        passed.append(request.path)
        return self.get_response(request)


NOTING = f"{__name__}.Noting"


def test_only_requests_to_the_site_pass_what_is_listed_after_the_api_s_middleware(db: None) -> None:
    passed.clear()
    with override_settings(
        MIDDLEWARE=[*settings.MIDDLEWARE, NOTING], SITE_ONLY_MIDDLEWARE=[*settings.SITE_ONLY_MIDDLEWARE, NOTING]
    ):
        client = Client()
        assert client.get("/api/health").status_code == 200
        assert client.get("/api/me").status_code == 401
        assert client.get("/").status_code == 302
    assert passed == ["/"]


def test_a_middleware_that_the_api_would_skip_unknown_to_us_stops_the_start() -> None:
    with (
        override_settings(MIDDLEWARE=[*settings.MIDDLEWARE, NOTING]),
        pytest.raises(ImproperlyConfigured, match=r"would skip tests\.core\.test_fast_paths\.Noting\."),
    ):
        WSGIHandler()
    with override_settings(MIDDLEWARE=[NOTING, *settings.MIDDLEWARE]):
        WSGIHandler()  # one that /api/ passes is nobody's concern


def test_the_lists_of_skipped_middleware_name_nothing_that_is_not_there() -> None:
    skipped = settings.MIDDLEWARE[settings.MIDDLEWARE.index(API_MIDDLEWARE) + 1 :]
    assert sorted(skipped) == sorted([*REPLACED, *settings.SITE_ONLY_MIDDLEWARE])


def test_django_links_middleware_as_the_shortcut_follows_it() -> None:
    handler = WSGIHandler()
    found: Any = handler._middleware_chain
    while not isinstance(getattr(found, "__wrapped__", None), ApiMiddleware):
        found = found.__wrapped__.get_response
    assert found.__wrapped__._view.__wrapped__ == handler._get_response


@pytest.mark.parametrize("secure", [False, True])
@pytest.mark.parametrize("path", ["/api/health", "/api/me", "/api/nothing", "/api/docs"])
def test_a_response_of_the_api_has_the_headers_that_every_middleware_together_would_give_it(
    db: None, path: str, secure: bool
) -> None:
    every = [name for name in settings.MIDDLEWARE if name != API_MIDDLEWARE]
    headers = []
    for middleware in (settings.MIDDLEWARE, every):
        with override_settings(MIDDLEWARE=middleware, SECURE_HSTS_SECONDS=3600):
            response = Client().get(path, secure=secure)
        changing = {"X-Request-Id", "X-Response-Time"}
        headers.append({name: value for name, value in response.items() if name not in changing})
    assert headers[0] == headers[1]
    assert ("Strict-Transport-Security" in headers[0]) is secure
    assert {"Content-Security-Policy", "X-Frame-Options", "X-Content-Type-Options"} <= set(headers[0])


def test_a_foreign_host_is_refused_and_plain_http_redirected() -> None:
    assert Client().get("/api/me", headers={"Host": "foreign.example"}).status_code == 400
    with override_settings(SECURE_SSL_REDIRECT=True):
        response = Client().get("/api/me")
    assert (response.status_code, response["Location"]) == (301, "https://testserver/api/me")


def respond(request: HttpRequest) -> HttpResponse:
    return HttpResponse("x")


def test_a_response_that_asks_for_headers_of_its_own_gets_them() -> None:
    request = RequestFactory().get("/api/x")
    assert ApiMiddleware(respond)(request)["X-Frame-Options"] == "DENY"
    assert "X-Frame-Options" not in ApiMiddleware(xframe_options_exempt(respond))(request)
    assert HEADER not in ApiMiddleware(csp_exempt()(respond))(request)


# --- content_security_policy ------------------------------------------------------------------------------


def with_nonce(request: HttpRequest) -> HttpResponse:
    return HttpResponse(str(request.csp_nonce))  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "view",
    [
        respond,
        csp_exempt()(respond),
        csp_update({"img-src": ["https://example.com"]})(respond),
        csp_replace({"default-src": ["'none'"]})(respond),
        csp({"default-src": ["'none'"]})(respond),
    ],
    ids=["plain", "exempt", "update", "replace", "own"],
)
def test_the_policy_is_the_one_of_django_csp(view: View) -> None:
    request = RequestFactory().get("/x")
    shortcut = PolicyMiddleware(view)
    for _ in range(2):  # built, then recalled
        assert shortcut(request).headers.get(HEADER) == CSPMiddleware(view)(request).headers.get(HEADER)


# --- redis_connection -------------------------------------------------------------------------------------


def test_a_thread_s_connection_replies_as_the_client_does() -> None:
    connection = ThreadConnection()
    assert connection.execute("SET", "a", 1) == b"OK"
    assert connection.execute("GET", "a") == get_redis_connection("default").get("a") == b"1"
    with pytest.raises(ResponseError):
        connection.execute("LPUSH", "a", "x")
    assert connection.execute("GET", "a") == b"1"


def test_a_connection_that_the_server_closed_is_opened_again_before_it_is_used() -> None:
    connection = ThreadConnection()
    own = connection.execute("CLIENT", "ID")
    assert connection.execute("CLIENT", "ID") == own
    assert get_redis_connection("default").client_kill_filter(_id=own) == 1
    assert connection.execute("CLIENT", "ID") != own


def test_redis_py_has_the_socket_that_the_shortcut_watches() -> None:
    connection = ThreadConnection()
    connection.execute("PING")
    assert connection._connection._sock.fileno() >= 0
    assert connection._connection.is_connected
    connection._connection.disconnect()
    assert connection._connection._sock is None
    assert not connection._connection.is_connected


# --- request_signals --------------------------------------------------------------------------------------


def test_the_receivers_that_django_connects_and_we_do_not_need_are_disconnected() -> None:
    program = (
        "import django.db, django.core.cache\n"
        "from django.core.signals import request_finished, request_started\n"
        "assert request_started.disconnect(django.db.close_old_connections)\n"
        "assert request_started.disconnect(django.db.reset_queries)\n"
        "assert request_finished.disconnect(django.core.cache.close_caches)\n"
    )
    # In processes of their own: Django's test client connects some of them again.
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
    ours = "import django\ndjango.setup()\n" + program.replace("assert ", "assert not ")
    subprocess.run([sys.executable, "-c", ours], check=True, timeout=60)


def test_a_connection_goes_back_to_the_pool_when_its_request_is_over() -> None:
    assert request_finished.disconnect(close_old_connections)
    request_finished.connect(close_old_connections)
    assert settings.DATABASES["default"]["CONN_MAX_AGE"] == 0
