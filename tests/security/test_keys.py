"""API keys: no key gives more than it has, and a key that ended is refused at once, by every process."""

from __future__ import annotations

import base64
import datetime
import hashlib
import inspect
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from django.db import connection, transaction
from django.utils import timezone

from orgs import keys
from orgs.keys import authenticate, create_api_key
from orgs.models import ApiKey, AuditEntry, Organization
from orgs.scopes import Scope
from tests.api.helpers import assert_problem
from tests.conftest import ApiClient

HOUR = datetime.timedelta(hours=1)
MANAGE, READ, WRITE = Scope.KEYS_MANAGE.value, Scope.EVENTS_READ.value, Scope.EVENTS_WRITE.value


def _works(key: str) -> bool:
    status = ApiClient(key).get("/api/me").status_code
    assert status in {200, 401}
    return bool(status == 200)


def _client(organization: Organization, *scopes: str, ends: datetime.datetime | None = None) -> tuple[ApiKey, Any]:
    row, key = create_api_key(organization, scopes=scopes, expires_at=ends)
    return row, ApiClient(key)


# --- no more than it has --------------------------------------------------------------------------------


def test_a_key_gives_the_scopes_that_it_has_and_no_other(organization: Organization) -> None:
    _, client = _client(organization, MANAGE, READ)
    assert client.post("/api/keys", {"scopes": [READ]}).status_code == 201
    document = assert_problem(client.post("/api/keys", {"scopes": [READ, WRITE]}), 403, "/scopes")
    assert document["code"] == "missing_scope"
    assert ApiKey.objects.count() == 2


def test_a_key_that_names_no_scopes_gives_its_own(organization: Organization) -> None:
    _, client = _client(organization, MANAGE, READ)
    assert client.post("/api/keys", {}).json()["scopes"] == sorted([MANAGE, READ])


def test_a_key_can_t_rotate_one_with_more_scopes(organization: Organization) -> None:
    stronger, _ = create_api_key(organization)
    _, client = _client(organization, MANAGE, READ)
    assert_problem(client.post(f"/api/keys/{stronger.id}/rotate", {}), 403, "/scopes")
    stronger.refresh_from_db()
    assert stronger.expires_at is None
    assert ApiKey.objects.count() == 2


def test_a_key_that_ends_gives_none_that_outlives_it(organization: Organization) -> None:
    ends = timezone.now() + HOUR
    _, client = _client(organization, MANAGE, ends=ends)
    for later in (None, (ends + datetime.timedelta(seconds=1)).isoformat()):
        document = assert_problem(client.post("/api/keys", {"expires_at": later}), 403, "/expires_at")
        assert document["code"] == "outlives_caller"
    made = client.post("/api/keys", {}).json()
    assert datetime.datetime.fromisoformat(made["expires_at"]) == ends, "it ends with the key that made it"
    sooner = (ends - HOUR / 2).isoformat()
    assert client.post("/api/keys", {"expires_at": sooner}).status_code == 201


def test_a_key_that_ends_can_t_rotate_one_that_doesn_t(organization: Organization) -> None:
    endless, _ = create_api_key(organization, scopes=[MANAGE])
    _, client = _client(organization, MANAGE, ends=timezone.now() + HOUR)
    assert_problem(client.post(f"/api/keys/{endless.id}/rotate", {}), 403, "/expires_at")
    endless.refresh_from_db()
    assert endless.expires_at is None


def test_a_key_that_rotates_itself_gains_no_time(organization: Organization) -> None:
    ends = timezone.now() + HOUR
    row, client = _client(organization, MANAGE, ends=ends)
    made = client.post(f"/api/keys/{row.id}/rotate", {"overlap_seconds": 30 * 86400}).json()
    assert datetime.datetime.fromisoformat(made["expires_at"]) == ends
    row.refresh_from_db()
    assert row.expires_at == ends, "nor does its overlap give it any"


def test_a_key_that_never_ends_may_give_what_it_likes(organization: Organization) -> None:
    _, client = _client(organization, MANAGE)
    assert client.post("/api/keys", {}).json()["expires_at"] is None
    assert client.post("/api/keys", {"expires_at": None}).json()["expires_at"] is None


# --- the end of a key -----------------------------------------------------------------------------------


def test_fault_8_a_key_that_was_rotated_out_ends_with_its_overlap(organization: Organization, api: Any) -> None:
    row, old = create_api_key(organization)
    made = api.post(f"/api/keys/{row.id}/rotate", {"overlap_seconds": 3600}).json()
    assert _works(old)
    assert _works(made["key"])
    row.refresh_from_db()
    left = row.expires_at - timezone.now()
    assert HOUR - datetime.timedelta(minutes=5) < left <= HOUR
    ApiKey.objects.filter(pk=row.pk).update(expires_at=timezone.now() - datetime.timedelta(milliseconds=1))
    assert not _works(old), "nothing remembers it"
    at_once, key = create_api_key(organization)
    api.post(f"/api/keys/{at_once.id}/rotate", {"overlap_seconds": 0})
    assert not _works(key)


def test_fault_22_a_revoked_key_is_refused_on_the_next_request(organization: Organization, api: Any) -> None:
    row, key = create_api_key(organization)
    assert _works(key)
    assert api.delete(f"/api/keys/{row.id}").status_code == 204
    assert not _works(key)
    assert api.delete(f"/api/keys/{row.id}").status_code == 204, "again is no error"
    assert AuditEntry.objects.filter(action="key.revoke").count() == 1


def test_fault_22_checking_a_key_costs_one_fast_hash(organization: Organization) -> None:
    row, key = create_api_key(organization)
    assert bytes(row.secret_hash) == hashlib.sha256(key.encode()).digest()
    assert len(base64.urlsafe_b64decode(key.split("_", 2)[2] + "=")) == 32, "256 random bits need no slow hash"


def test_an_expired_key_is_refused(organization: Organization) -> None:
    row, key = create_api_key(organization, expires_at=timezone.now() + HOUR)
    assert _works(key)
    ApiKey.objects.filter(pk=row.pk).update(expires_at=timezone.now() - datetime.timedelta(seconds=1))
    assert not _works(key)


@pytest.mark.parametrize(("column", "word"), [("revoked_at", "revoked"), ("expires_at", "expired")])
def test_a_key_that_ended_gets_no_successor(organization: Organization, api: Any, column: str, word: str) -> None:
    row, _ = create_api_key(organization)
    ApiKey.objects.filter(pk=row.pk).update(**{column: timezone.now() - datetime.timedelta(seconds=1)})
    before = ApiKey.objects.count()
    assert assert_problem(api.post(f"/api/keys/{row.id}/rotate", {}), 409)["code"] == f"key_{word}"
    assert ApiKey.objects.count() == before


@pytest.mark.django_db(transaction=True)
def test_a_rotation_that_meets_a_revocation_makes_no_successor(organization: Organization) -> None:
    row, _ = create_api_key(organization)

    def rotate() -> str:
        try:
            keys.rotate(row, HOUR)
        except keys.KeyEnded as ended:
            return str(ended)
        finally:
            connection.close()
        return "made"

    with ThreadPoolExecutor(1) as threads:
        with transaction.atomic():
            keys.revoke(row)
            running = threads.submit(rotate)
            assert not running.done()
        assert running.result(60) == "revoked"
    assert ApiKey.objects.count() == 1


def test_an_organization_that_is_switched_off_is_out_and_comes_back(organization: Organization, api: Any) -> None:
    Organization.objects.filter(pk=organization.pk).update(is_active=False)
    assert api.get("/api/me").status_code == 401
    Organization.objects.filter(pk=organization.pk).update(is_active=True)
    assert api.get("/api/me").status_code == 200


# --- what is stored and shown ---------------------------------------------------------------------------


def test_a_key_is_shown_once(organization: Organization, api: Any) -> None:
    made = api.post("/api/keys", {"name": "n"}).json()
    secret = made["key"].split("_", 2)[2]
    for answer in (api.get("/api/keys"), api.get(f"/api/keys/{made['id']}"), api.get("/api/audit"), api.get("/api/me")):
        assert secret not in answer.content.decode()
    assert made["prefix"] in api.get("/api/keys").content.decode()


def test_both_headers_take_a_key_and_a_wrong_one_is_not_rescued_by_the_other(organization: Organization) -> None:
    _, key = create_api_key(organization)
    client = ApiClient(None)
    assert client.get("/api/me", **{"X-API-Key": key}).status_code == 200
    assert client.get("/api/me", Authorization=f"Bearer {key}").status_code == 200
    assert client.get("/api/me", Authorization=f"bearer  {key} ").status_code == 200
    assert client.get("/api/me", Authorization=f"Basic {key}").status_code == 401
    assert client.get("/api/me", Authorization=f"Bearer {key}", **{"X-API-Key": "wrong"}).status_code == 401
    assert client.get(f"/api/me?api_key={key}").status_code == 401, "not in URLs, which end up in logs"


def test_the_secret_is_compared_in_constant_time_and_found_by_its_public_part(organization: Organization) -> None:
    _, key = create_api_key(organization)
    prefix, secret = key.split("_", 2)[1:]
    # The look-up can't depend on the secret: it names the prefix alone.
    assert "k.prefix = %s" in keys._FIND_KEY
    assert "secret_hash =" not in keys._FIND_KEY
    assert "hmac.compare_digest" in inspect.getsource(authenticate)
    for wrong in (secret[:-1], secret + "A", secret.swapcase(), secret[::-1]):
        assert authenticate(f"trk_{prefix}_{wrong}") is None
    assert authenticate(key) is not None


def test_the_last_use_is_noted_at_most_once_a_minute(organization: Organization) -> None:
    row, key = create_api_key(organization)
    assert _works(key)
    row.refresh_from_db()
    first = row.last_used_at
    assert first is not None
    assert _works(key)
    row.refresh_from_db()
    assert row.last_used_at == first
    ApiKey.objects.filter(pk=row.pk).update(last_used_at=first - datetime.timedelta(minutes=2))
    assert _works(key)
    row.refresh_from_db()
    assert row.last_used_at >= first


def test_a_refused_key_is_not_noted_as_used(organization: Organization) -> None:
    row, key = create_api_key(organization)
    keys.revoke(row)
    assert not _works(key)
    assert not _works(key[:-2] + "xx")
    row.refresh_from_db()
    assert row.last_used_at is None


@pytest.mark.django_db(transaction=True)
def test_keys_made_at_once_are_all_different(organization: Organization) -> None:
    made: list[str] = []

    def make() -> None:
        made.extend(create_api_key(organization)[1] for _ in range(20))
        connection.close()

    threads = [threading.Thread(target=make) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(made)) == 100
