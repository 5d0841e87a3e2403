"""Where the application is mounted is a setting; no header of a request has a say.  All of it through gunicorn."""

from __future__ import annotations

import http.client
import itertools
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urljoin, urlsplit

import orjson
import pytest
from django.conf import LazySettings
from django.contrib.auth.models import User
from django.db import connection

from core.url_prefix import full_path, path_below, serve_below_prefix
from devstack import processes
from devstack.sockets import free_port
from orgs.keys import create_api_key
from orgs.models import Organization
from tests.servers import postgres

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.end_to_end]

PREFIX = "/triggers"
PASSWORD = "correct horse battery staple"


class Answer:
    """A response, read to its end."""

    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers = response.headers
        self.body = response.read()

    def json(self) -> Any:
        """Return the body's JSON."""
        return orjson.loads(self.body)


class Browser:
    """Sends requests to a port, with cookies as a browser keeps them: by their path."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.cookies: dict[str, tuple[str, str]] = {}

    def send(self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None) -> Answer:
        """Send a request and keep the cookies of the response."""
        given = {name: value for name, (value, below) in self.cookies.items() if path.startswith(below)}
        cookie = "; ".join(f"{name}={value}" for name, value in given.items())
        sent = {**({"Cookie": cookie} if cookie else {}), **(headers or {})}
        connected = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connected.request(method, path, body, sent)
            answer = Answer(connected.getresponse())
        finally:
            connected.close()
        for line in answer.headers.get_all("Set-Cookie") or []:
            found = re.match(r"([^=]+)=([^;]*).*?Path=([^;]+)", line)
            assert found is not None, line
            self.cookies[found[1]] = (found[2], found[3])
        return answer

    def log_in(self, path: str) -> Answer:
        """Send the log-in form of the page at `path`."""
        self.send("GET", path)
        form = {"username": "olga", "password": PASSWORD, "csrfmiddlewaretoken": self.cookies["csrftoken"][0]}
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        return self.send("POST", path, urlencode(form).encode(), headers)


def start(log: Path, *, command: list[str] | None = None, **env: str) -> tuple[processes.Process, int]:
    """Start gunicorn, or what `command` says, on the test's database."""
    given = {"DATABASE_URL": postgres.url(connection.settings_dict["NAME"]), **env}
    if command is None:
        process, base = processes.web(log, env=given, workers=1)
        return process, int(base.rsplit(":", 1)[1])
    port = int(command[-1].rsplit(":", 1)[1])
    process = processes.Process("runserver", command, log, given).start()
    process.wait_for_url(f"http://127.0.0.1:{port}/api/health")
    return process, port


class _Proxy(BaseHTTPRequestHandler):
    """A reverse proxy that takes requests below a path: passes it on, or strips it."""

    upstream = 0
    strip = False
    protocol_version = "HTTP/1.1"

    def _forward(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        inside = self.path.startswith(f"{PREFIX}/") or self.path == PREFIX
        path = self.path[len(PREFIX) :] or "/" if self.strip else self.path
        if inside:
            connected = http.client.HTTPConnection("127.0.0.1", self.upstream, timeout=30)
            connected.request(self.command, path, body, dict(self.headers.items()))
            answer = Answer(connected.getresponse())
            connected.close()
            status, headers, content = answer.status, answer.headers.items(), answer.body
        else:
            status, headers, content = 404, [], b"another application"
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in {"connection", "transfer-encoding", "content-length"}:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_DELETE = do_HEAD = _forward

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def user(db: None, settings: Any) -> User:
    """Return a superuser with a password."""
    return User.objects.create_superuser("olga", password=PASSWORD)


@pytest.fixture
def api_key(organization: Organization) -> dict[str, str]:
    """Return the headers of a request with a key."""
    return {"X-API-Key": create_api_key(organization)[1], "Content-Type": "application/json"}


# --- no prefix: the header is ignored ---------------------------------------------------------------


def test_a_script_name_in_a_header_is_ignored(tmp_path: Path, api_key: dict[str, str], user: User) -> None:
    process, port = start(tmp_path / "web.log")
    browser = Browser(port)
    names, values = (
        ("SCRIPT_NAME", "Script-Name", "script_name"),
        ("/evil", "/api", "//evil.example", "http://evil.example"),
    )
    try:
        for name, value in itertools.product(names, values):
            forged = {name: value}
            event = browser.send("POST", "/api/events", b'{"type":"a","data":1}', {**api_key, **forged})
            assert (event.status, event.headers["Location"][:12]) == (202, "/api/events/")
            # A part of the path can't be declared to be the prefix, which would get around a proxy's rules.
            assert browser.send("GET", "/evil/api/health/detailed", headers=forged).status == 404
            assert browser.send("GET", "/", headers=forged).headers["Location"] == "/api/docs"
            assert browser.send("GET", "/admin/", headers=forged).headers["Location"] == "/admin/login/?next=/admin/"
            page = browser.send("GET", "/admin/login/", headers=forged).body
            assert b"evil" not in page
            assert b"evil" not in browser.send("GET", "/api/docs", headers=forged).body
            assert all(path == "/" for _, path in browser.cookies.values())
        assert browser.send("GET", "/api/me", headers={**api_key, "PATH_INFO": "/api/keys"}).json()["organization"]
    finally:
        process.stop()


# --- with a prefix ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def behind_proxies(django_db_setup: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Return the port of a gunicorn that serves below PREFIX, behind each of the proxies in turn."""
    process, port = start(tmp_path_factory.mktemp("web") / "web.log", URL_PREFIX=PREFIX)
    yield port
    process.stop()


@pytest.fixture(
    params=[
        pytest.param("runserver", marks=pytest.mark.slow),
        "proxy that passes the full path",
        "proxy that strips the prefix",
    ]
)
def mounted(request: Any, tmp_path: Path, db: None) -> Iterator[Browser]:
    """Return a browser that sees the application below PREFIX."""
    if request.param == "runserver":
        port = free_port()
        command = [processes.web_command()[0], "manage.py", "runserver", "--noreload", f"127.0.0.1:{port}"]
        process, port = start(tmp_path / "web.log", command=command, URL_PREFIX=PREFIX, DEBUG="true")
        yield Browser(port)
        process.stop()
        return
    upstream = request.getfixturevalue("behind_proxies")
    handler = type("Handler", (_Proxy,), {"upstream": upstream, "strip": "strips" in request.param})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield Browser(server.server_address[1])
        server.shutdown()


def links_of(page: bytes, base: str) -> set[str]:
    """Return the paths that a page's links, scripts, forms and styles name."""
    found = re.findall(rb'(?:href|src|action)="([^"#]+)"', page)
    urls = {urljoin(base, link.decode().replace("&amp;", "&")) for link in found if not link.startswith(b"data:")}
    return {url for url in urls if not urlsplit(url).scheme}


def test_everything_is_served_below_the_prefix(mounted: Browser, api_key: dict[str, str], user: User) -> None:
    # The API: its Location headers lead back to it, with and without a slash at the end.
    for path, body in (
        ("/api/events", b'{"type":"a","data":1}'),
        ("/api/subscriptions", b'{"url":"http://127.0.0.1:8080/","event_types":["*"]}'),
        ("/api/keys", b"{}"),
    ):
        made = mounted.send("POST", PREFIX + path, body, api_key)
        assert made.status in {201, 202}, made.body
        assert made.headers["Location"].startswith(f"{PREFIX}{path}/")
        assert mounted.send("GET", made.headers["Location"], headers=api_key).status == 200
    # The path around the site's middleware is taken: no cookie, no Vary, and the API's headers.
    me = mounted.send("GET", f"{PREFIX}/api/me", headers=api_key)
    assert (me.status, me.headers["Cache-Control"], me.headers["Vary"]) == (200, "no-store", None)
    assert mounted.send("GET", f"{PREFIX}/api/me/", headers=api_key).status == 200
    refused = mounted.send("GET", f"{PREFIX}/api/me")
    assert (refused.status, refused.headers["Content-Type"]) == (401, "application/problem+json")
    assert mounted.send("GET", f"{PREFIX}/api/health").json()["status"] == "healthy"
    assert mounted.send("GET", f"{PREFIX}/api/health/detailed").status in {200, 503}
    # The documentation, with what it loads, and the schema, which says where the API is.
    assert mounted.send("GET", f"{PREFIX}/").headers["Location"] == f"{PREFIX}/api/docs"
    schema = mounted.send("GET", f"{PREFIX}/api/schema").json()
    assert [server["url"] for server in schema["servers"]] == [PREFIX]
    assert "/api/events" in schema["paths"]
    docs = mounted.send("GET", f"{PREFIX}/api/docs")
    assert_links_work(mounted, f"{PREFIX}/api/docs", docs.body)
    # The admin: log in, follow what its pages link to.
    entry = mounted.send("GET", f"{PREFIX}/admin/")
    assert entry.headers["Location"] == f"{PREFIX}/admin/login/?next={PREFIX}/admin/"
    assert mounted.log_in(entry.headers["Location"]).headers["Location"] == f"{PREFIX}/admin/"
    assert {path for _, path in mounted.cookies.values()} == {f"{PREFIX}/"}
    for page in (
        "/admin/",
        "/admin/webhooks/delivery/",
        "/admin/events/event/",
        "/admin/orgs/apikey/add/",
        "/admin/rq/",
    ):
        answer = mounted.send("GET", PREFIX + page)
        assert answer.status == 200, page
        assert_links_work(mounted, PREFIX + page, answer.body)
    # A page without its slash, which Django redirects.
    assert mounted.send("GET", f"{PREFIX}/admin/events/event").headers["Location"] == f"{PREFIX}/admin/events/event/"


def assert_links_work(browser: Browser, path: str, page: bytes) -> None:
    """Check that each link of the page stays below the prefix and leads to something."""
    links = links_of(page, path)
    assert links
    for link in links:
        assert (link + "/").startswith(f"{PREFIX}/"), (path, link)
        if "logout" not in link:
            assert browser.send("GET", link).status in {200, 302}, (path, link)


def test_https_redirects_keep_the_prefix_and_spare_the_health_page(tmp_path: Path, db: None) -> None:
    process, port = start(tmp_path / "web.log", URL_PREFIX=PREFIX, USE_HTTPS="true")
    browser = Browser(port)
    try:
        assert browser.send("GET", f"{PREFIX}/api/health").status == 200
        assert browser.send("GET", "/api/health").status == 200
        moved = browser.send("GET", f"{PREFIX}/api/me", headers={"Host": "localhost"})
        assert (moved.status, moved.headers["Location"]) == (301, f"https://localhost{PREFIX}/api/me")
    finally:
        process.stop()


@pytest.mark.parametrize(
    ("prefix", "path", "below"),
    [
        ("", "/api/events", "/api/events"),
        ("", "", ""),
        ("/triggers", "/triggers/api/events", "/api/events"),
        ("/triggers", "/triggers", "/"),
        ("/triggers", "/triggers/", "/"),
        ("/triggers", "/triggersome/api/events", "/triggersome/api/events"),
        ("/triggers", "/triggers/triggers/api", "/triggers/api"),
        ("/a/b", "/a/b/api/me", "/api/me"),
        ("/a/b", "/a/api/me", "/a/api/me"),
    ],
)
def test_the_prefix_is_taken_off_once_and_as_whole_segments(
    settings: LazySettings, prefix: str, path: str, below: str
) -> None:
    settings.URL_PREFIX = prefix
    assert path_below(path) == below
    assert full_path("/api/me") == f"{prefix}/api/me"


@pytest.mark.parametrize("prefix", ["", "/triggers"])
def test_the_application_is_told_the_prefix_and_nothing_that_a_server_took_for_it(
    settings: LazySettings, prefix: str
) -> None:
    settings.URL_PREFIX = prefix
    seen: dict[str, Any] = {}

    def application(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        seen.update(environ)
        return []

    serve_below_prefix(application)({"SCRIPT_NAME": "/evil", "PATH_INFO": f"{prefix}/api/me"}, None)
    assert (seen["SCRIPT_NAME"], seen["PATH_INFO"]) == (prefix, "/api/me")
