"""Getting in, staying in and getting out of the admin."""

from __future__ import annotations

import importlib
import re
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.management import call_command
from django.db import connection
from django.test import Client
from django.urls import clear_url_caches, reverse

from devstack.processes import web
from orgs.models import AuditEntry
from tests.servers import postgres

PASSWORD = "correct horse battery staple"


@pytest.fixture
def user(db: None, settings: Any) -> User:
    """Return a member of staff with a password; hashing it is somebody else's speed test."""
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
    return User.objects.create_superuser("olga", password=PASSWORD)


def log_in(client: Client, password: str, name: str = "olga", **extra: Any) -> Any:
    """Send the log-in form."""
    return client.post(reverse("admin:login"), {"username": name, "password": password}, **extra)


def test_log_in_log_out_and_failures_are_written_down(user: User) -> None:
    client = Client()
    assert b"<h1>Log in</h1>" in client.get(reverse("admin:login")).content, "Django's page has no heading"
    assert b"Please enter the correct username" in log_in(client, "wrong").content
    assert log_in(client, PASSWORD).status_code == 302
    assert client.get(reverse("admin:index")).status_code == 200
    assert client.get(reverse("admin:logout")).status_code == 405
    assert client.post(reverse("admin:logout")).status_code == 200
    assert client.get(reverse("admin:index")).status_code == 302
    entries = AuditEntry.objects.order_by("created_at", "id").values_list("action", "actor", "address")
    assert list(entries) == [(word, "user:olga", "127.0.0.1") for word in ("login.failed", "login", "logout")]
    assert PASSWORD not in str(list(AuditEntry.objects.values()))


def test_too_many_failures_lock_a_name_at_an_address_until_an_operator_unlocks_it(user: User, settings: Any) -> None:
    settings.AXES_FAILURE_LIMIT = 3
    client = Client()
    for _ in range(2):
        assert log_in(client, "wrong").status_code == 200
    assert log_in(client, "wrong").status_code == 429
    locked = log_in(client, PASSWORD)
    assert locked.status_code == 429
    assert "<h1>Too many failed log-ins</h1>" in locked.content.decode()
    assert "_auth_user_id" not in client.session
    # Somebody else's address or name isn't shut out with it.
    assert log_in(Client(REMOTE_ADDR="10.1.1.1"), PASSWORD).status_code == 302
    assert log_in(client, "wrong", name="peter").status_code == 200
    call_command("axes_reset_username", "olga")
    assert log_in(client, PASSWORD).status_code == 302


def test_a_lock_ends_by_itself(user: User, settings: Any) -> None:
    settings.AXES_FAILURE_LIMIT = 1
    client = Client()
    assert log_in(client, "wrong").status_code == 429
    settings.AXES_COOLOFF_TIME = 0.0000001
    assert log_in(client, PASSWORD).status_code == 302


def test_who_is_not_staff_or_not_active_stays_out(user: User) -> None:
    for change in ({"is_staff": False}, {"is_staff": True, "is_active": False}):
        User.objects.filter(pk=user.pk).update(**change)
        assert log_in(Client(), PASSWORD).status_code == 200
    User.objects.filter(pk=user.pk).update(is_active=True)
    client = Client()
    log_in(client, PASSWORD)
    User.objects.filter(pk=user.pk).update(is_active=False)
    assert client.get(reverse("admin:index")).status_code == 302


def test_a_new_password_ends_the_other_sessions_and_weak_ones_are_refused(user: User) -> None:
    here, elsewhere = Client(), Client()
    log_in(here, PASSWORD)
    log_in(elsewhere, PASSWORD)
    change = reverse("admin:password_change")
    for weak in ("short", "password1234", "123456789012", "olga"):
        form = {"old_password": PASSWORD, "new_password1": weak, "new_password2": weak}
        assert here.post(change, form).status_code == 200
    new = {"old_password": PASSWORD, "new_password1": "another long phrase", "new_password2": "another long phrase"}
    assert here.post(change, {**new, "old_password": "wrong"}).status_code == 200
    assert here.post(change, new).status_code == 302
    assert here.get(reverse("admin:index")).status_code == 200
    assert elsewhere.get(reverse("admin:index")).status_code == 302


def test_sessions_end_and_their_cookies_are_out_of_scripts_reach(user: User, settings: Any) -> None:
    client = Client()
    log_in(client, PASSWORD)
    cookie = client.cookies["sessionid"]
    assert cookie["httponly"]
    assert cookie["samesite"] == "Lax"
    assert cookie["max-age"] == 12 * 3600
    assert settings.SESSION_COOKIE_SECURE == settings.USE_HTTPS
    anonymous = Client()
    anonymous.get(reverse("admin:login"))
    before = anonymous.cookies.get("sessionid")
    log_in(anonymous, PASSWORD)
    assert before is None or before.value != anonymous.cookies["sessionid"].value


def test_a_form_without_its_token_is_refused(user: User) -> None:
    client = Client(enforce_csrf_checks=True)
    assert log_in(client, PASSWORD).status_code == 403
    page = client.get(reverse("admin:login")).content.decode()
    token = re.search('name="csrfmiddlewaretoken" value="([^"]+)"', page)
    assert token is not None
    form = {"username": "olga", "password": PASSWORD, "csrfmiddlewaretoken": token[1]}
    assert client.post(reverse("admin:login"), form).status_code == 302
    assert client.post(reverse("admin:webhooks_delivery_changelist"), {"action": "retry"}).status_code == 403


def test_log_in_sends_nobody_to_another_site(user: User) -> None:
    answer = Client().post(
        reverse("admin:login") + "?next=https://evil.example/", {"username": "olga", "password": PASSWORD,
                                                                  "next": "https://evil.example/"},
    )  # fmt: skip
    assert answer.status_code == 302
    assert "evil" not in answer["Location"]


@pytest.mark.parametrize("name", ["\x00", "\u202eeve", "<script>", "x" * 10_000, "a\nb", "\U0001f600"])
def test_no_user_name_is_an_error_at_log_in(user: User, name: str) -> None:
    client = Client(raise_request_exception=False, headers={"User-Agent": "\u00e9" * 2000, "Accept": "x" * 5000})
    assert log_in(client, "wrong", name=name).status_code == 200


def test_the_admin_moves_with_its_setting_in_a_real_process(tmp_path: Path, db: None) -> None:
    migrated = postgres.url(connection.settings_dict["NAME"])
    process, base = web(tmp_path / "web.log", env={"ADMIN_PATH": "back-office", "DATABASE_URL": migrated}, workers=1)
    try:
        with urllib.request.urlopen(f"{base}/back-office/login/", timeout=30) as answer:
            assert b"Triggers API" in answer.read()
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{base}/admin/login/", timeout=30)
        assert refused.value.code == 404
    finally:
        process.stop()


def test_a_moved_admins_links_move_with_it(user: User, settings: Any) -> None:
    settings.ADMIN_PATH = "back-office"
    try:
        importlib.reload(sys.modules["triggers_project.urls"])
        clear_url_caches()
        assert reverse("admin:index") == "/back-office/"
        assert reverse("django_rq:home") == "/back-office/rq/"
        client = Client()
        assert log_in(client, PASSWORD)["Location"].startswith("/")
        assert b'href="/back-office/webhooks/delivery/' in client.get("/back-office/").content
        assert client.get("/admin/").status_code == 404
    finally:
        settings.ADMIN_PATH = "admin"
        importlib.reload(sys.modules["triggers_project.urls"])
        clear_url_caches()
