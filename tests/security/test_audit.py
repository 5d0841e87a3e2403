"""Who did what: complete, and append-only by the database's own word."""

from __future__ import annotations

import io
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.management import call_command
from django.db import DatabaseError, connection, transaction
from django.test import Client

from orgs import audit
from orgs.models import AuditEntry, Organization
from tests.webhooks.helpers import fan_out_batch
from webhooks.models import Delivery


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE orgs_auditentry SET actor = 'nobody'",
        "UPDATE orgs_auditentry SET actor = 'nobody' WHERE false",
        "DELETE FROM orgs_auditentry",
        "TRUNCATE orgs_auditentry",
        "INSERT INTO orgs_auditentry SELECT * FROM orgs_auditentry ON CONFLICT (id) DO UPDATE SET actor = 'nobody'",
        "MERGE INTO orgs_auditentry a USING orgs_auditentry b ON a.id = b.id WHEN MATCHED THEN DELETE",
    ],
)
def test_the_database_refuses_to_change_or_remove_entries(organization: Organization, statement: str) -> None:
    audit.record("key.create", actor="key:a", organization_id=organization.id)
    with connection.cursor() as cursor:
        # Only in the tests' database it is off, for their clean-up; this transaction is rolled back.
        cursor.execute("ALTER TABLE orgs_auditentry ENABLE TRIGGER orgs_auditentry_no_truncate")
        with pytest.raises(DatabaseError, match=r"the audit log is append-only: \w+ refused"), transaction.atomic():
            cursor.execute(statement)
    assert AuditEntry.objects.get().actor == "key:a"


def test_everything_that_a_key_does_is_in_the_log_with_who_and_where_from(
    organization: Organization, api: Any, other_api: Any
) -> None:
    key = api.post("/api/keys", {"scopes": ["events:read"]}).json()
    api.post(f"/api/keys/{key['id']}/rotate", {"overlap_seconds": 60})
    api.delete(f"/api/keys/{key['id']}?reason=it leaked")
    made = api.post("/api/subscriptions", {"url": "https://a.example/", "event_types": ["*"]}).json()
    path = f"/api/subscriptions/{made['id']}"
    api.patch(path, {"headers": {"X-Token": "hidden-value"}})
    api.post(f"{path}/rotate-secret", {})
    api.post("/api/events", {"type": "a", "data": 1})
    fan_out_batch(10)
    delivery = Delivery.objects.get()
    assert api.post(f"/api/deliveries/{delivery.id}/retry").status_code == 202
    api.post(f"{path}/recover", {"since": "2026-01-01T00:00:00Z"})
    api.post(f"{path}/disable", {"reason": "we move"})
    api.post(f"{path}/enable")
    api.delete(path)
    listed = api.get("/api/audit").json()["data"]
    assert [(entry["action"], entry["target"]) for entry in reversed(listed)] == [
        ("key.create", key["id"]),
        ("key.rotate", key["id"]),
        ("key.revoke", key["id"]),
        ("subscription.create", made["id"]),
        ("subscription.change", made["id"]),
        ("subscription.rotate_secret", made["id"]),
        ("delivery.retry", str(delivery.id)),
        ("subscription.recover", made["id"]),
        ("subscription.disable", made["id"]),
        ("subscription.enable", made["id"]),
        ("subscription.delete", made["id"]),
    ]
    assert {entry["actor"] for entry in listed} == {f"key:{api.key.split('_')[1]}"}
    assert all(entry["request_id"] for entry in listed)
    # For people: what each was done to by its name, and why, if that was said.
    names = {entry["action"].partition(".")[0]: entry["target_name"] for entry in listed}
    assert names["subscription"] == "https://a.example/"
    assert names["key"].startswith(key["prefix"])
    assert names["delivery"] == "a to https://a.example/"
    reasons = {entry["action"]: entry["reason"] for entry in listed if entry["reason"]}
    assert reasons == {"key.revoke": "it leaked", "subscription.disable": "we move"}
    assert AuditEntry.objects.filter(action="key.create").get().address == "127.0.0.1"
    assert "hidden-value" not in str(list(AuditEntry.objects.values()))
    assert other_api.get("/api/audit").json()["data"] == []


def test_what_is_refused_leaves_no_entry(api: Any, organization: Organization) -> None:
    assert api.post("/api/keys", {"scopes": ["nonsense"]}).status_code == 400
    assert api.post("/api/subscriptions", {"url": "http://127.0.0.1:22/", "event_types": ["*"]}).status_code == 400
    assert not AuditEntry.objects.exists()


def test_commands_and_log_ins_are_in_the_log(organization: Organization, settings: Any) -> None:
    call_command("purge_expired", stdout=io.StringIO())
    call_command("create_api_key", str(organization.id), stdout=io.StringIO())
    call_command("rotate_encryption_keys", stdout=io.StringIO())
    User.objects.create_superuser("root", password="a-good-long-passphrase")
    browser = Client()
    login = f"/{settings.ADMIN_PATH}/login/"
    browser.post(login, {"username": "root", "password": "wrong-passphrase"})
    browser.post(login, {"username": "root", "password": "a-good-long-passphrase"})
    browser.post(f"/{settings.ADMIN_PATH}/logout/")
    entries = list(AuditEntry.objects.order_by("created_at", "id").values_list("action", "actor"))
    assert entries == [
        ("purge.start", "command:purge_expired"),
        ("purge", "command:purge_expired"),
        ("key.create", "command:create_api_key"),
        ("encryption_key.rotate.start", "command:rotate_encryption_keys"),
        ("encryption_key.rotate", "command:rotate_encryption_keys"),
        ("login.failed", "user:root"),
        ("login", "user:root"),
        ("logout", "user:root"),
    ]
    assert "passphrase" not in str(list(AuditEntry.objects.values()))
