"""Safe by default in production: settings, headers, dependencies, suppressed warnings."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import connection
from django.test import Client, override_settings
from django.test.utils import CaptureQueriesContext
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.servers import ENVIRONMENT, postgres, valkey
from triggers_project.options import read_options

ROOT = Path(__file__).resolve().parents[2]
PRODUCTION = {
    "ENVIRONMENT": "production",
    "SECRET_KEY": "q7XkS2vV9bW4nR8mT1zL6cP3hY5jD0gFaE-uNiOq2wAx7sB4tMd9KfZ",
    "SECRETS_ENCRYPTION_KEYS": ENVIRONMENT["SECRETS_ENCRYPTION_KEYS"],
    "ALLOWED_HOSTS": "triggers.example.com",
    "DATABASE_URL": "postgres://nobody@localhost/none",
    "REDIS_URL": "redis://localhost:1",
}


def _run(*command: str, **env: str | None) -> subprocess.CompletedProcess[str]:
    """Run Python with the production settings and nothing of ours from the environment."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    given = {**kept, **PRODUCTION, **env}
    return subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env={name: value for name, value in given.items() if value is not None},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


# --- settings -----------------------------------------------------------------------------------------


def test_the_deployment_check_is_clean_with_warnings_as_errors() -> None:
    done = _run("manage.py", "check", "--deploy", "--fail-level", "WARNING")
    assert done.returncode == 0, done.stderr
    assert "no issues" in done.stdout


def test_the_deployment_check_fails_when_https_is_off() -> None:
    done = _run("manage.py", "check", "--deploy", "--fail-level", "WARNING", USE_HTTPS="false")
    assert done.returncode != 0
    assert "security.W" in done.stderr


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("SECRET_KEY", None),
        ("SECRET_KEY", ""),
        ("SECRET_KEY", "short"),
        ("SECRET_KEY", "django-insecure-0123456789abcdefghijklmnopqrstuvwxyz0123456789"),
        ("SECRET_KEY", "a" * 60),
        ("SECRET_KEY", "only-for-tests-0123456789abcdefghijklmnop"),
        ("SECRET_KEY", "only-for-this-build-step-0123456789abcdef"),
        ("SECRETS_ENCRYPTION_KEYS", None),
        ("SECRETS_ENCRYPTION_KEYS", ""),
        ("SECRETS_ENCRYPTION_KEYS", " , "),
        ("SECRETS_ENCRYPTION_KEYS", "hunter2"),
        ("SECRETS_ENCRYPTION_KEYS", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="),
        ("DEBUG", "true"),
    ],
)
def test_production_refuses_to_start(name: str, value: str | None) -> None:
    given = {**PRODUCTION, name: value}
    with pytest.raises(ImproperlyConfigured) as refusal:
        read_options({option: text for option, text in given.items() if text is not None})
    assert re.search(rf"^{name} ", str(refusal.value), re.M)
    if value and len(value) > 6:
        assert value not in str(refusal.value), "the message shows no secret"


def test_a_real_process_refuses_to_start_and_says_why_in_one_line() -> None:
    done = _run("manage.py", "check", SECRET_KEY="a" * 60)
    assert done.returncode != 0
    assert done.stderr.strip() == "SECRET_KEY is public or can be guessed: give at least 32 random characters."


def test_production_is_the_default() -> None:
    given = {name: value for name, value in PRODUCTION.items() if name != "ENVIRONMENT"}
    # Not in a process: `make run` may have left a `.local/env` here, which says otherwise.
    assert read_options(given)["ENVIRONMENT"] == "production"
    done = _run(
        "-c",
        "from django.conf import settings as s; print(s.ENVIRONMENT, s.DEBUG, s.SESSION_COOKIE_SECURE)",
        ENVIRONMENT="production",
        DJANGO_SETTINGS_MODULE="triggers_project.settings",
    )
    assert done.stdout == "production False True\n", done.stderr


# --- what a browser gets ------------------------------------------------------------------------------


@pytest.fixture
def production(db: None, settings: Any) -> Client:
    """Return a browser before the settings that USE_HTTPS makes."""
    settings.SESSION_COOKIE_SECURE = settings.CSRF_COOKIE_SECURE = settings.SECURE_SSL_REDIRECT = True
    settings.SECURE_HSTS_SECONDS, settings.SECURE_HSTS_INCLUDE_SUBDOMAINS = 31536000, True
    return Client(raise_request_exception=False)


def test_plain_http_is_redirected_and_https_bears_hsts(production: Client, settings: Any) -> None:
    login = f"/{settings.ADMIN_PATH}/login/"
    plain = production.get(login)
    assert plain.status_code == 301
    assert plain["Location"].startswith("https://")
    assert production.get("/api/health").status_code == 200, "load balancers ask inside"
    secure = production.get(login, secure=True)
    assert secure["Strict-Transport-Security"] == "max-age=31536000; includeSubDomains"


def test_so_is_the_api(production: Client) -> None:
    plain = production.post("/api/events", b"{}", content_type="application/json")
    assert plain.status_code == 301
    assert plain["Location"] == "https://testserver/api/events"
    assert "Strict-Transport-Security" not in production.get("/api/health")
    for path in ("/api/health", "/api/me", "/api/nothing"):
        secure = production.get(path, secure=True)
        assert secure["Strict-Transport-Security"] == "max-age=31536000; includeSubDomains"
        assert secure["Content-Length"] == str(len(secure.content))


def test_the_api_answers_a_foreign_host_with_the_same_headers_and_leaves_sessions_alone(db: None) -> None:
    client = Client(raise_request_exception=False)
    client.cookies["sessionid"] = "x" * 32
    for host, status in (("testserver", 401), ("evil.example", 400)):
        with CaptureQueriesContext(connection) as queries:
            response = client.get("/api/me", headers={"Host": host})
        assert response.status_code == status
        assert "frame-ancestors 'none'" in response["Content-Security-Policy"]
        assert response["X-Frame-Options"] == "DENY"
        assert response["X-Content-Type-Options"] == "nosniff"
        assert not queries.captured_queries
        assert "Vary" not in response
        assert not response.cookies


@pytest.mark.parametrize("path", ["/api/docs", "/{admin}/login/", "/nothing", "/api/nothing", "/api/me", "/api/health"])
def test_every_page_forbids_inline_scripts_frames_and_sniffing(db: None, settings: Any, path: str) -> None:
    response = Client().get(path.format(admin=settings.ADMIN_PATH))
    policy = response["Content-Security-Policy"]
    directives = dict(part.strip().partition(" ")[::2] for part in policy.split(";"))
    assert "unsafe" not in policy
    assert directives["default-src"] == directives["script-src"] == directives["style-src"] == "'self'"
    assert directives["frame-ancestors"] == directives["object-src"] == directives["base-uri"] == "'none'"
    assert "http:" not in policy
    assert response["X-Frame-Options"] == "DENY"
    assert response["X-Content-Type-Options"] == "nosniff"
    assert response["Referrer-Policy"] == "same-origin"
    if response["Content-Type"].startswith("text/html"):
        html = response.content.decode()
        assert not re.search(r"<script(?![^>]*\bsrc=)|\son\w+=|<style|javascript:|\sstyle=", html), (
            "inline code or style"
        )


def test_answers_of_the_api_are_not_kept_by_caches(api: Any) -> None:
    assert api.get("/api/me")["Cache-Control"] == "no-store"


def test_cookies_are_secure_and_out_of_scripts_reach(production: Client, settings: Any, django_user_model: Any) -> None:
    django_user_model.objects.create_superuser("root", password="a-good-long-passphrase")
    response = production.post(
        f"/{settings.ADMIN_PATH}/login/", {"username": "root", "password": "a-good-long-passphrase"}, secure=True
    )
    assert response.status_code == 302
    session = response.cookies["sessionid"]
    assert session["secure"]
    assert session["httponly"]
    assert session["samesite"] == "Lax"
    assert response.cookies["csrftoken"]["secure"]


def test_the_api_ignores_the_admin_s_cookies(admin_client: Client) -> None:
    assert admin_client.get("/api/me").status_code == 401
    assert admin_client.post("/api/events", b"{}", content_type="application/json").status_code == 401


def test_log_ins_are_throttled(db: None, settings: Any, django_user_model: Any) -> None:
    django_user_model.objects.create_superuser("root", password="a-good-long-passphrase")
    browser, login = Client(), f"/{settings.ADMIN_PATH}/login/"
    for _ in range(settings.LOGIN_FAILURE_LIMIT):
        browser.post(login, {"username": "root", "password": "wrong"})
    locked = browser.post(login, {"username": "root", "password": "a-good-long-passphrase"})
    assert locked.status_code == 429
    assert "sessionid" not in locked.cookies


@override_settings(ALLOWED_HOSTS=["triggers.example.com"])
def test_a_foreign_host_name_is_refused(db: None) -> None:
    response = Client(raise_request_exception=False).get("/api/docs", headers={"Host": "evil.example"})
    assert response.status_code in {200, 400}
    assert b"evil.example" not in response.content


def test_the_admin_s_path_is_the_operator_s_choice() -> None:
    code = "import django; django.setup()\nfrom django.urls import reverse; print(reverse('admin:index'))"
    done = _run("-c", code, ADMIN_PATH="back-office", DJANGO_SETTINGS_MODULE="triggers_project.settings")
    assert done.stdout == "/back-office/\n", done.stderr


# --- dependencies and lint ----------------------------------------------------------------------------


def _pinned(name: str) -> dict[str, str]:
    pins = {}
    for line in (ROOT / name).read_text().splitlines():
        text = line.split("#")[0].strip()
        if text and not text.startswith("-r "):
            requirement = Requirement(text)
            if requirement.marker is not None and not requirement.marker.evaluate():
                continue
            [clause] = requirement.specifier
            assert clause.operator == "==", f"{text} is not pinned"
            assert "*" not in clause.version
            assert not requirement.url, f"{text} comes from somewhere else"
            pins[canonicalize_name(requirement.name)] = clause.version
    return pins


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-otel.txt", "requirements-dev.txt"])
def test_every_dependency_is_pinned_and_what_is_installed_is_what_is_pinned(name: str) -> None:
    pins = _pinned(name)
    assert pins
    installed = {one: importlib.metadata.version(one) for one in pins}
    assert installed == pins


def test_production_s_dependencies_are_pinned_down_to_the_last() -> None:
    pins = _pinned("requirements.txt")
    extras = {
        canonicalize_name(requirement.name): requirement.extras
        for requirement in (
            Requirement(line.split("#")[0].strip())
            for line in (ROOT / "requirements.txt").read_text().splitlines()
            if line.split("#")[0].strip()
        )
    }
    missing = set()
    for name in pins:
        for text in importlib.metadata.requires(name) or []:
            requirement = Requirement(text)
            wanted = [{"extra": extra} for extra in ("", *extras[name])]
            if requirement.marker is None or any(requirement.marker.evaluate(one) for one in wanted):
                needed = canonicalize_name(requirement.name)
                if needed not in pins:
                    missing.add(f"{needed} (for {name})")
                else:
                    assert requirement.specifier.contains(pins[needed], prereleases=True), f"{name} wants {requirement}"
    assert not missing


PACKAGES = ("core", "orgs", "events", "webhooks", "portal", "console", "triggers_project")


def test_the_security_rules_of_the_linter_are_on_and_find_nothing() -> None:
    product = [*PACKAGES, "gunicorn.conf.py", "manage.py"]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "ruff",
            "check",
            "--select",
            "S",
            "--ignore",
            "S311",
            "--output-format",
            "concise",
            *product,
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    suppressed = {
        match[1]
        for path in ROOT.glob("*/**/*.py")
        if path.relative_to(ROOT).parts[0] in PACKAGES
        for match in re.finditer(r"noqa: *(S\d+)", path.read_text())
    }
    assert suppressed <= {"S101", "S105", "S108", "S608"}, "a new kind of suppression needs a reason in SECURITY.md"


def test_no_test_server_listens_on_the_network() -> None:
    assert "host=" in postgres.url() or "%2F" in postgres.url()
    assert valkey.url().startswith("unix://")
