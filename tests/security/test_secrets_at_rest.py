"""Secrets at rest: a dump of the database tells none, each is shown once, and a rotation overlaps."""

from __future__ import annotations

import base64
import datetime
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.utils import timezone
from standardwebhooks import Webhook, WebhookVerificationError

from core.encryption import decrypt
from devstack.http_receiver import Receiver
from orgs.models import Organization
from tests.api.helpers import assert_problem
from tests.security.egress import deliver
from webhooks import subscriptions
from webhooks.models import Subscription


def dump() -> str:
    """Return every table as text, as `pg_dump --data-only` writes it, with bytes shown as they are."""
    text = []
    with connection.cursor() as cursor:
        cursor.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY 1")
        tables = [row[0] for row in cursor.fetchall()]
    assert "webhooks_subscription" in tables
    connection.ensure_connection()
    with connection.connection.cursor() as cursor:
        for table in tables:
            with cursor.copy(f'COPY (SELECT * FROM "{table}") TO STDOUT') as copy:
                text += [bytes(block).decode("utf-8", "replace") for block in copy]
    return "".join(text)


def forms(secret: str) -> list[str]:
    """Return the secret as it would look in a dump: plain, without its prefix, in base64, in hexadecimal."""
    bare = secret.removeprefix("whsec_")
    raw = secret.encode()
    return [secret, bare, base64.b64encode(raw).decode().rstrip("=")[:-2], raw.hex()]


@pytest.mark.django_db(transaction=True)
def test_a_dump_of_the_database_reveals_no_secret(organization: Organization, api: Any, receiver: Receiver) -> None:
    secrets = [api.key, api.key.split("_", 2)[2]]
    made = api.post("/api/keys", {"name": "second"}).json()
    secrets += [made["key"], api.post(f"/api/keys/{made['id']}/rotate", {}).json()["key"]]
    body = {
        "url": receiver.url(),
        "event_types": ["*"],
        "headers": {"Authorization": "Bearer receiver-token-0123456789", "X-Second": "another-hidden-value"},
    }
    subscription = api.post("/api/subscriptions", body).json()
    secrets += ["receiver-token-0123456789", "another-hidden-value", subscription["secret"]]
    path = f"/api/subscriptions/{subscription['id']}"
    secrets.append(api.post(f"{path}/rotate-secret", {"overlap_seconds": 3600}).json()["secret"])
    api.patch(path, {"headers": {"X-Second": "changed-hidden-value"}})
    secrets.append("changed-hidden-value")
    User.objects.create_superuser("root", password="a-good-long-passphrase")
    secrets.append("a-good-long-passphrase")
    api.post("/api/events", {"type": "a", "data": {"visible": "payload-is-kept"}})
    deliver()
    assert receiver.requests[0].headers["x-second"] == "changed-hidden-value"
    text = dump()
    assert "payload-is-kept" in text, "the dump shows what is stored"
    for secret in secrets:
        for form in forms(secret):
            assert form not in text, f"{secret} is in the dump"


def test_secrets_and_header_values_are_shown_once(api: Any) -> None:
    body = {"url": "https://a.example/", "event_types": ["*"], "headers": {"X-Token": "hidden-value"}}
    created = api.post("/api/subscriptions", body)
    assert "hidden-value" not in created.content.decode(), "even its own answer doesn't repeat it"
    made = created.json()
    path = f"/api/subscriptions/{made['id']}"
    rotated = api.post(f"{path}/rotate-secret", {}).json()["secret"]
    assert rotated != made["secret"]
    answers = [
        api.get(path),
        api.get("/api/subscriptions"),
        api.patch(path, {"description": "x"}),
        api.post(f"{path}/disable"),
        api.post(f"{path}/enable"),
        api.get("/api/audit"),
    ]
    for answer in answers:
        text = answer.content.decode()
        assert answer.status_code == 200
        for secret in (made["secret"], rotated, "hidden-value"):
            assert secret not in text
    assert answers[0].json()["header_names"] == ["X-Token"]


def _verifies(secret: str, request: Any) -> bool:
    try:
        Webhook(secret).verify(request.body, request.headers)
    except WebhookVerificationError:
        return False
    return True


@pytest.mark.django_db(transaction=True)
def test_old_and_new_secret_sign_during_the_overlap_and_the_new_one_alone_after_it(
    api: Any, receiver: Receiver
) -> None:
    made = api.post("/api/subscriptions", {"url": receiver.url(), "event_types": ["*"]}).json()
    path = f"/api/subscriptions/{made['id']}"

    def receive() -> Any:
        api.post("/api/events", {"type": "a", "data": 1})
        deliver()
        return receiver.requests[-1]

    first = receive()
    assert _verifies(made["secret"], first)
    rotated = api.post(f"{path}/rotate-secret", {}).json()
    until = datetime.datetime.fromisoformat(rotated["previous_secret_expires_at"]) - timezone.now()
    assert datetime.timedelta(hours=23) < until <= datetime.timedelta(hours=24), "24 h is the default"
    during = receive()
    assert _verifies(made["secret"], during)
    assert _verifies(rotated["secret"], during)
    assert len(during.headers["webhook-signature"].split()) == 2
    Subscription.objects.filter(pk=made["id"]).update(previous_secrets_expire_at=[timezone.now()])
    after = receive()
    assert not _verifies(made["secret"], after)
    assert _verifies(rotated["secret"], after)
    at_once = api.post(f"{path}/rotate-secret", {"overlap_seconds": 0}).json()
    assert at_once["previous_secret_expires_at"] is None
    last = receive()
    assert not _verifies(rotated["secret"], last)
    assert _verifies(at_once["secret"], last)
    assert len({request.headers["webhook-id"] for request in receiver.requests}) == 4


@pytest.mark.django_db(transaction=True)
def test_each_earlier_secret_signs_until_its_own_overlap_ends(api: Any, receiver: Receiver) -> None:
    made = api.post("/api/subscriptions", {"url": receiver.url(), "event_types": ["*"]}).json()
    path = f"/api/subscriptions/{made['id']}/rotate-secret"

    def receive() -> Any:
        api.post("/api/events", {"type": "a", "data": 1})
        deliver()
        return receiver.requests[-1]

    def end(position: int) -> None:
        row = Subscription.objects.get(pk=made["id"])
        row.previous_secrets_expire_at[position] = timezone.now()
        row.save(update_fields=["previous_secrets_expire_at"])

    secrets = [made["secret"], *(api.post(path, {"overlap_seconds": 3600}).json()["secret"] for _ in range(3))]
    request = receive()
    assert all(_verifies(secret, request) for secret in secrets)
    signatures = request.headers["webhook-signature"].split()
    assert len(signatures) == 4
    assert signatures[0] == Webhook(secrets[-1]).sign(
        request.headers["webhook-id"],
        datetime.datetime.fromtimestamp(int(request.headers["webhook-timestamp"]), datetime.UTC),
        request.body.decode(),
    ).split()[0], "the current secret signs first"  # fmt: skip
    end(1)  # newest first: the second secret
    request = receive()
    assert [_verifies(secret, request) for secret in secrets] == [True, False, True, True]
    # A rotation without an overlap ends the secret that it replaces, and no other one's overlap.
    answer = api.post(path, {"overlap_seconds": 0}).json()
    assert answer["previous_secret_expires_at"] is None
    assert len(answer["previous_secrets_expire_at"]) == 2
    secrets.append(answer["secret"])
    request = receive()
    assert [_verifies(secret, request) for secret in secrets] == [True, False, True, False, True]
    # After a leak, all earlier secrets can be ended.
    answer = api.post(path, {"overlap_seconds": 0, "end_earlier_secrets": True}).json()
    assert answer["previous_secrets_expire_at"] == []
    secrets.append(answer["secret"])
    request = receive()
    assert [_verifies(secret, request) for secret in secrets] == [False] * 5 + [True]
    row = Subscription.objects.get(pk=made["id"])
    assert (row.encrypted_previous_secrets, row.previous_secrets_expire_at) == ([], [])


def test_ten_earlier_secrets_may_sign_and_the_next_rotation_is_told_when_it_may_happen(api: Any) -> None:
    made = api.post("/api/subscriptions", {"url": "https://a.example/", "event_types": ["*"]}).json()
    path = f"/api/subscriptions/{made['id']}/rotate-secret"
    for number in range(10):
        answer = api.post(path, {"overlap_seconds": 3600 + number})
        assert answer.status_code == 200
    ends = answer.json()["previous_secrets_expire_at"]
    assert len(ends) == 10
    assert ends == sorted(ends, reverse=True)
    before = Subscription.objects.values("encrypted_secret", "encrypted_previous_secrets").get(pk=made["id"])
    refused = assert_problem(api.post(path, {"overlap_seconds": 60}), 409)
    assert refused["code"] == "too_many_previous_secrets"
    first_end = datetime.datetime.fromisoformat(ends[-1])
    told = datetime.datetime.fromisoformat(refused["next_rotation_at"])
    assert first_end < told <= first_end + datetime.timedelta(seconds=1)
    assert Subscription.objects.values("encrypted_secret", "encrypted_previous_secrets").get(pk=made["id"]) == before
    # Nothing is added without an overlap, and there is a way out of any state.
    assert api.post(path, {"overlap_seconds": 0}).status_code == 200
    row = Subscription.objects.get(pk=made["id"])
    row.previous_secrets_expire_at[-1] = timezone.now()
    row.save(update_fields=["previous_secrets_expire_at"])
    again = api.post(path, {"overlap_seconds": 60})
    assert again.status_code == 200
    assert len(again.json()["previous_secrets_expire_at"]) == 10
    assert len(Subscription.objects.get(pk=made["id"]).encrypted_previous_secrets) == 10, "an ended one is erased"
    assert api.post(path, {"end_earlier_secrets": True}).status_code == 200


@pytest.mark.parametrize("value", ["true", 1, None, []])
def test_ending_earlier_secrets_takes_true_or_false(api: Any, value: Any) -> None:
    made = api.post("/api/subscriptions", {"url": "https://a.example/", "event_types": ["*"]}).json()
    path = f"/api/subscriptions/{made['id']}/rotate-secret"
    assert_problem(api.post(path, {"end_earlier_secrets": value}), 400, "/end_earlier_secrets")


@pytest.mark.django_db(transaction=True)
def test_two_rotations_at_once_keep_both_promises(organization: Organization) -> None:
    subscription, first = subscriptions.create(organization.id, url="https://a.example/", event_types=["*"])
    hour = datetime.timedelta(hours=1)

    def rotate(_: int) -> str:
        try:
            return subscriptions.rotate_secret(Subscription.objects.get(pk=subscription.pk), hour)
        finally:
            connection.close()

    with ThreadPoolExecutor(4) as threads:
        made = list(threads.map(rotate, range(8)))
    row = Subscription.objects.get(pk=subscription.pk)
    held = {decrypt(token) for token in [row.encrypted_secret, *row.encrypted_previous_secrets]}
    assert held == {first, *made}


def test_a_deleted_subscription_s_secrets_are_erased(api: Any) -> None:
    body = {"url": "https://a.example/", "event_types": ["*"], "headers": {"X-Token": "hidden-value"}}
    made = api.post("/api/subscriptions", body).json()
    api.post(f"/api/subscriptions/{made['id']}/rotate-secret", {})
    api.delete(f"/api/subscriptions/{made['id']}")
    row = Subscription.objects.get(pk=made["id"])
    assert (row.encrypted_secret, row.encrypted_previous_secrets, row.encrypted_headers) == ("", [], "")
    with pytest.raises(Subscription.DoesNotExist):  # a rotation that read the row before it was deleted
        subscriptions.rotate_secret(row, datetime.timedelta(hours=1))
    row.refresh_from_db()
    assert row.encrypted_secret == ""
