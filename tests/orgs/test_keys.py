"""API keys: found by prefix, compared by hash, refused from the moment that they end."""

from __future__ import annotations

import datetime
import hashlib
import threading
from typing import Any

import pytest
from django.db import IntegrityError, connection, transaction
from django.utils import timezone

from orgs import audit, keys
from orgs.keys import ScopeError, authenticate, create_api_key, require_within, revoke, rotate
from orgs.models import ApiKey, AuditEntry, Organization
from orgs.scopes import Scope

HOUR = datetime.timedelta(hours=1)


def test_a_key_has_a_public_prefix_and_256_bits_that_only_their_hash_is_kept_of(organization: Organization) -> None:
    row, text = create_api_key(organization, name="shop")
    start, prefix, secret = text.split("_", 2)
    assert (start, prefix) == ("trk", row.prefix)
    assert len(secret) == 43  # 32 bytes in base64
    row.refresh_from_db()
    assert bytes(row.secret_hash) == hashlib.sha256(text.encode()).digest()
    assert secret not in str(ApiKey.objects.values().get())
    assert str(row) == f"{prefix}… shop"


def test_an_organization_has_as_many_keys_as_it_likes_and_no_two_are_alike(organization: Organization) -> None:
    made = [create_api_key(organization)[1] for _ in range(20)]
    assert len(set(made)) == len({text.split("_")[1] for text in made}) == 20
    assert all(authenticate(text) is not None for text in made)


def test_a_key_speaks_for_its_organization_with_its_scopes(organization: Organization) -> None:
    row, text = create_api_key(organization, scopes=["events:write"])
    caller = authenticate(text)
    assert caller is not None
    assert (caller.key_id, caller.prefix, caller.actor) == (row.id, row.prefix, f"key:{row.prefix}")
    assert (caller.organization_id, caller.organization_name) == (organization.id, "Acme")
    assert (caller.scopes, caller.events_per_minute) == (frozenset(["events:write"]), 60000)


def test_a_key_without_scopes_may_do_nothing_and_none_means_all(organization: Organization) -> None:
    assert create_api_key(organization, scopes=[])[0].scopes == []
    assert create_api_key(organization)[0].scopes == [scope.value for scope in Scope]


def test_a_text_that_is_nearly_a_key_is_none(organization: Organization) -> None:
    text = create_api_key(organization)[1]
    _, prefix, secret = text.split("_", 2)
    other = create_api_key(organization)[1].split("_", 2)[2]
    for wrong in ("", "trk", text[:-1], text + "x", text.upper(), text.swapcase(), f"{prefix}_{secret}",
                  f"trk_{prefix}_{other}", f"trk_{prefix}_", f"trk__{secret}", f"TRK_{prefix}_{secret}", text + "\n",
                  f"trk_{prefix}'_{secret}", f"trk_{prefix}_{secret}é", "trk_%_%", "x" * 1000):  # fmt: skip
        assert authenticate(wrong) is None, wrong
    assert authenticate(text) is not None


def test_a_revoked_key_is_refused_by_the_next_request(api: Any, organization: Organization) -> None:
    row, text = create_api_key(organization)
    assert api.get("/api/me", **{"X-API-Key": text}).status_code == 200
    assert revoke(row) is True
    assert api.get("/api/me", **{"X-API-Key": text}).status_code == 401
    first = row.revoked_at
    assert revoke(row) is False
    assert row.revoked_at == first


@pytest.mark.django_db(transaction=True)
def test_a_revocation_is_seen_by_connections_that_used_the_key_before(organization: Organization) -> None:
    row, text = create_api_key(organization)
    used, revoked = threading.Event(), threading.Event()
    seen: list[bool] = []

    def another_process_s_thread() -> None:
        try:
            seen.append(authenticate(text) is not None)
            used.set()
            revoked.wait(30)
            seen.append(authenticate(text) is not None)
        finally:
            connection.close()

    thread = threading.Thread(target=another_process_s_thread)
    thread.start()
    assert used.wait(30)
    revoke(row)
    revoked.set()
    thread.join()
    assert seen == [True, False]


def test_a_key_ends_at_its_expiry(organization: Organization) -> None:
    now = timezone.now()
    assert authenticate(create_api_key(organization, expires_at=now + HOUR)[1]) is not None
    assert authenticate(create_api_key(organization, expires_at=now - HOUR)[1]) is None


def test_the_keys_of_an_inactive_organization_are_refused(organization: Organization) -> None:
    text = create_api_key(organization)[1]
    Organization.objects.update(is_active=False)
    assert authenticate(text) is None
    Organization.objects.update(is_active=True)
    assert authenticate(text) is not None


def test_the_last_use_is_noted_at_most_once_a_minute(organization: Organization) -> None:
    row, text = create_api_key(organization)
    assert row.last_used_at is None
    authenticate(text)
    row.refresh_from_db()
    first = row.last_used_at
    assert first is not None
    authenticate(text)
    row.refresh_from_db()
    assert row.last_used_at == first
    ApiKey.objects.update(last_used_at=first - 2 * HOUR)
    authenticate(text)
    row.refresh_from_db()
    assert row.last_used_at is not None
    assert row.last_used_at >= first


def test_a_rotated_key_works_on_for_the_overlap_and_no_longer_than_it_would_have(organization: Organization) -> None:
    old, old_text = create_api_key(organization, name="shop", scopes=["events:write"])
    new, new_text = rotate(old, HOUR)
    assert (new.name, new.scopes) == ("shop", ["events:write"])
    assert authenticate(old_text) is not None
    assert authenticate(new_text) is not None
    assert old.expires_at is not None
    assert old.expires_at - timezone.now() <= HOUR
    ends = old.expires_at
    successor, _ = rotate(old, 10 * HOUR)
    assert old.expires_at == ends
    assert successor.expires_at == ends
    rotate(old, datetime.timedelta())
    assert authenticate(old_text) is None


def test_no_key_can_give_more_than_it_has() -> None:
    require_within(["events:read"], ["events:read", "events:write"])
    require_within([], [])
    with pytest.raises(ScopeError, match="events:write, keys:manage"):
        require_within(["keys:manage", "events:write", "events:read"], ["events:read"])


def test_an_organization_shows_its_name_and_an_entry_what_it_is_about(organization: Organization) -> None:
    audit.record("key.create", actor="key:x", organization_id=organization.id, target="y" * 300)
    entry = AuditEntry.objects.get()
    assert str(organization) == "Acme"
    assert str(entry) == f"key:x key.create {'y' * 200}"
    assert (entry.address, entry.request_id, entry.detail) == ("", "", {})


def test_the_audit_log_can_only_grow(organization: Organization) -> None:
    audit.record("key.create", actor="key:x", organization_id=organization.id)
    for change in (lambda: AuditEntry.objects.update(actor="nobody"), lambda: AuditEntry.objects.all().delete()):
        with pytest.raises(IntegrityError, match="append-only"), transaction.atomic():
            change()
    assert AuditEntry.objects.get().actor == "key:x"


def test_what_a_key_does_is_noted_with_its_address_and_request(api: Any, organization: Organization) -> None:
    api.post("/api/keys", {"name": "second"}, **{"X-Request-Id": "request-1"})
    entry = AuditEntry.objects.get()
    assert (entry.action, entry.address, entry.request_id) == ("key.create", "127.0.0.1", "request-1")
    assert entry.actor.startswith("key:")
    shown = api.get("/api/audit?action=key.create").json()["data"]
    assert [row["target"] for row in shown] == [entry.target]
    assert api.get("/api/audit?action=other").json()["data"] == []


def test_only_a_prefix_s_letters_are_looked_for(organization: Organization) -> None:
    assert set(create_api_key(organization)[0].prefix) <= set(keys._ALPHABET)
