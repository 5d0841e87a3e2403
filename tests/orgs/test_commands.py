"""`create_org` and `create_api_key`: what a script captures is alone on stdout, errors are on stderr."""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import connection
from django.utils import timezone

from orgs.keys import authenticate
from orgs.models import ApiKey, AuditEntry, Organization
from orgs.scopes import Scope
from tests.servers import postgres

ROOT = Path(__file__).resolve().parents[2]


def run(*arguments: str, **options: Any) -> str:
    """Run a command in this process and return its stdout."""
    out = StringIO()
    call_command(*arguments, stdout=out, **options)
    return out.getvalue()


@pytest.mark.django_db
def test_create_org_prints_the_id_alone(settings: Any) -> None:
    settings.DEFAULT_EVENTS_PER_MINUTE = 77
    out = run("create_org", " Acme ")
    organization = Organization.objects.get()
    assert out == f"{organization.id}\n"
    assert (organization.name, organization.is_active) == ("Acme", True)
    assert (organization.events_per_minute, organization.retention_days) == (77, 30)
    entry = AuditEntry.objects.get()
    assert (entry.action, entry.actor, entry.organization_id) == (
        "organization.create",
        "command:create_org",
        organization.id,
    )


@pytest.mark.django_db
def test_create_org_takes_limits() -> None:
    run("create_org", "Acme", "--events-per-minute", "0", "--retention-days", "3650")
    organization = Organization.objects.get()
    assert (organization.events_per_minute, organization.retention_days) == (0, 3650)


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ([""], "NAME"),
        (["   "], "NAME"),
        (["x" * 201], "NAME"),
        (["a\nb"], "NAME"),
        (["a\x00"], "NAME"),
        (["Acme", "--events-per-minute", "-1"], "--events-per-minute"),
        (["Acme", "--events-per-minute", "3000000000"], "--events-per-minute"),
        (["Acme", "--retention-days", "0"], "--retention-days"),
        (["Acme", "--retention-days", "3651"], "--retention-days"),
    ],
)
def test_create_org_refuses_what_is_wrong_and_makes_nothing(arguments: list[str], word: str) -> None:
    with pytest.raises(CommandError, match=word):
        run("create_org", *arguments)
    assert not Organization.objects.exists()
    assert not AuditEntry.objects.exists()


def test_create_org_names_the_organization_that_is_there(organization: Organization) -> None:
    with pytest.raises(CommandError, match=str(organization.id)):
        run("create_org", organization.name)
    assert Organization.objects.count() == 1


def test_create_api_key_prints_the_key_alone(organization: Organization) -> None:
    for spelling in (organization.name, str(organization.id)):
        out = run("create_api_key", spelling)
        assert out.count("\n") == 1
        caller = authenticate(out.strip())
        assert caller is not None
        assert caller.organization_id == organization.id
        assert caller.scopes == frozenset(Scope.values)
    entry = AuditEntry.objects.earliest("created_at")
    assert (entry.action, entry.actor) == ("key.create", "command:create_api_key")
    assert out.strip() not in str(AuditEntry.objects.values_list())


def test_create_api_key_takes_a_name_scopes_and_an_expiry(organization: Organization) -> None:
    run("create_api_key", "Acme", "--name", "shop", "--scope", "events:write", "--scope", "events:read",
        "--expires-in-days", "0.5")  # fmt: skip
    key = ApiKey.objects.get()
    assert (key.name, key.scopes) == ("shop", ["events:read", "events:write"])
    assert key.expires_at is not None
    assert 11 < (key.expires_at - timezone.now()).total_seconds() / 3600 <= 12


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["Nobody"], "Nobody"),
        ([str(uuid.UUID(int=0))], "no organization"),
        (["Acme", "--scope", "root"], "root"),
        (["Acme", "--expires-in-days", "0"], "--expires-in-days"),
        (["Acme", "--expires-in-days", "nan"], "--expires-in-days"),
        (["Acme", "--expires-in-days", "1e9"], "--expires-in-days"),
        (["Acme", "--name", "x" * 201], "--name"),
        (["Acme", "--name", "a\nb"], "--name"),
    ],
)
def test_create_api_key_refuses_what_is_wrong_and_makes_nothing(
    organization: Organization, arguments: list[str], word: str
) -> None:
    with pytest.raises(CommandError, match=word):
        run("create_api_key", *arguments)
    assert not ApiKey.objects.exists()


def test_an_organization_whose_name_is_another_s_id_is_not_mistaken_for_it(organization: Organization) -> None:
    Organization.objects.create(name=str(organization.id))
    run("create_api_key", str(organization.id))
    assert ApiKey.objects.get().organization == organization


@pytest.mark.django_db(transaction=True)
def test_a_script_captures_the_key_from_a_real_process_and_errors_go_to_stderr() -> None:
    environment = {**os.environ, "DATABASE_URL": postgres.url(connection.settings_dict["NAME"])}

    def manage(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "manage.py", *arguments],
            cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    made = manage("create_org", "Acme")
    assert (made.returncode, made.stdout) == (0, f"{Organization.objects.get().id}\n")
    key = manage("create_api_key", "Acme")
    assert key.returncode == 0
    assert authenticate(key.stdout.removesuffix("\n")) is not None
    for wrong in (("create_org", "Acme"), ("create_api_key", "Nobody"), ("create_api_key", "Acme", "--scope", "x")):
        failed = manage(*wrong)
        assert failed.returncode != 0
        assert failed.stdout == ""
        assert failed.stderr.strip()
        assert "Traceback" not in failed.stderr
