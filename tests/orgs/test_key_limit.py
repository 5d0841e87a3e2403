"""An organization has at most MAX_API_KEYS keys that work, whichever way they are made."""

from __future__ import annotations

import datetime
import io
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.management import CommandError, call_command
from django.db import connection
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from orgs.keys import TooManyKeys, create_api_key, revoke, rotate
from orgs.models import ApiKey, AuditEntry, Organization
from tests.api.helpers import assert_problem
from tests.webhooks.helpers import in_threads
from tests.webhooks.transactions import another_transaction, wait_until_held_up

HOUR = datetime.timedelta(hours=1)


def test_a_key_too_many_is_a_409_that_names_the_limit(api: Any, organization: Organization, settings: Any) -> None:
    settings.MAX_API_KEYS = 3  # one is the caller's
    made = [api.post("/api/keys", {}).json() for _ in range(2)]
    problem = assert_problem(api.post("/api/keys", {}), 409)
    assert (problem["code"], problem["limit_keys"]) == ("too_many_keys", 3)
    assert "3 API keys" in problem["detail"]
    assert assert_problem(api.post(f"/api/keys/{made[0]['id']}/rotate", {}), 409)["code"] == "too_many_keys"
    assert ApiKey.objects.count() == 3
    assert AuditEntry.objects.filter(action__startswith="key.").count() == 2
    # A leaked key can be replaced at once all the same.
    assert api.post(f"/api/keys/{made[0]['id']}/rotate", {"overlap_seconds": 0}).status_code == 201
    # Revoked and expired ones don't count, nor do other organizations'.
    api.delete(f"/api/keys/{made[1]['id']}")
    create_api_key(Organization.objects.create(name="Other"))
    last = api.post("/api/keys", {})
    assert last.status_code == 201
    ApiKey.objects.filter(pk=last.json()["id"]).update(expires_at=timezone.now())
    assert api.post("/api/keys", {}).status_code == 201
    assert_problem(api.post("/api/keys", {}), 409)


def test_the_command_says_so(organization: Organization, settings: Any) -> None:
    settings.MAX_API_KEYS = 1
    call_command("create_api_key", "Acme", stdout=io.StringIO())
    with pytest.raises(CommandError, match="has 1 API keys, which is the limit"):
        call_command("create_api_key", "Acme", stdout=io.StringIO())
    assert ApiKey.objects.count() == AuditEntry.objects.count() == 1


def test_the_admins_form_says_so_also_when_it_would_revive_an_expired_key(
    organization: Organization, settings: Any
) -> None:
    settings.MAX_API_KEYS = 1
    client = Client()
    client.force_login(User.objects.create_superuser("root"), backend="django.contrib.auth.backends.ModelBackend")
    new = {"organization": str(organization.pk), "name": "new", "scopes": ["events:write"]}
    add = reverse("admin:orgs_apikey_add")
    expired, _ = create_api_key(organization)
    ApiKey.objects.filter(pk=expired.pk).update(expires_at=timezone.now() - HOUR)
    assert client.post(add, new).status_code == 200
    assert ApiKey.objects.count() == 2
    refused = client.post(add, new)
    assert b"has 1 API keys, which is the limit" in refused.content
    assert ApiKey.objects.count() == 2
    change = reverse("admin:orgs_apikey_change", args=[expired.pk])
    revived = client.post(change, {"name": "x", "scopes": ["events:write"], "expires_at_0": "", "expires_at_1": ""})
    assert b"has 1 API keys, which is the limit" in revived.content
    # Anything else of a key may change, of one that works, too.
    live = ApiKey.objects.exclude(pk=expired.pk).get()
    page = reverse("admin:orgs_apikey_change", args=[live.pk])
    assert client.post(page, {"name": "renamed", "scopes": ["events:write"]}).status_code == 302
    live.refresh_from_db()
    assert live.name == "renamed"
    old = {"expires_at_0": "2020-01-01", "expires_at_1": "00:00:00"}
    assert client.post(change, {"name": "old", "scopes": ["events:write"], **old}).status_code == 302


@pytest.mark.django_db(transaction=True)
def test_the_limit_holds_for_callers_at_once(organization: Organization, settings: Any) -> None:
    settings.MAX_API_KEYS = 4
    first, _ = create_api_key(organization)

    def make(number: int) -> bool:
        try:
            if number % 2:
                create_api_key(organization)
            else:
                rotate(first, HOUR)
        except TooManyKeys:
            return False
        finally:
            connection.close()
        return True

    with ThreadPoolExecutor(8) as threads:
        made = list(threads.map(make, range(8)))
    assert sum(made) == 3
    assert ApiKey.objects.count() == 4
    assert revoke(first)
    create_api_key(organization)
    with pytest.raises(TooManyKeys):
        create_api_key(organization)


@pytest.mark.django_db(transaction=True)
def test_two_that_count_at_once_don_t_both_find_room_for_one_more(organization: Organization, settings: Any) -> None:
    settings.MAX_API_KEYS = 1
    spare, _ = create_api_key(organization)
    revoke(spare)
    revive = "UPDATE orgs_apikey SET revoked_at = NULL"

    with another_transaction() as other:
        other.execute("SELECT 1 FROM orgs_organization FOR NO KEY UPDATE")  # as whoever creates a key does
        other.execute(revive)

        def work(number: int) -> str:
            if number:
                wait_until_held_up(other)
                other.commit()
                return ""
            try:
                create_api_key(organization)
            except TooManyKeys:
                return "refused"
            return "created"

        assert sorted(in_threads(2, work)) == ["", "refused"]
    assert ApiKey.objects.count() == 1
