"""`manage.py rotate_encryption_keys`: a key can be replaced while everything runs."""

from __future__ import annotations

import datetime
import io
from concurrent.futures import ThreadPoolExecutor

import pytest
from cryptography.fernet import Fernet
from django.conf import LazySettings
from django.core.management import CommandError, call_command
from django.db import connection, transaction

from core.encryption import DecryptionError, decrypt, encrypt
from devstack.waiting import wait_until
from orgs.models import AuditEntry, Organization
from tests.servers import ENVIRONMENT
from webhooks import subscriptions
from webhooks.destinations.http.endpoint import open_endpoint, open_headers
from webhooks.models import Subscription
from webhooks.upkeep import key_rotation

OLD = ENVIRONMENT["SECRETS_ENCRYPTION_KEYS"]
NEW = Fernet.generate_key().decode()


def _rotate() -> tuple[str, str]:
    out, err = io.StringIO(), io.StringIO()
    call_command("rotate_encryption_keys", stdout=out, stderr=err)
    return out.getvalue(), err.getvalue()


def _make(organization: Organization, headers: dict[str, str] | None = None) -> tuple[Subscription, str]:
    return subscriptions.create(organization.id, url="https://a.example/", event_types=["*"], headers=headers)


def test_every_secret_moves_to_the_newest_key_and_the_old_key_can_go(
    organization: Organization, settings: LazySettings
) -> None:
    made = [_make(organization, {"X-Token": f"value {number}"}) for number in range(3)]
    new_secret = subscriptions.rotate_secret(made[0][0], datetime.timedelta(hours=1))
    before = Subscription.objects.get(pk=made[1][0].pk)
    settings.SECRETS_ENCRYPTION_KEYS = [NEW, OLD]
    out, err = _rotate()
    assert out == "3 subscriptions seen, 7 values encrypted with the newest key.\n"
    assert err == ""
    settings.SECRETS_ENCRYPTION_KEYS = [NEW]
    for number, (subscription, secret) in enumerate(made):
        subscription.refresh_from_db()
        assert decrypt(subscription.encrypted_secret) == (new_secret if number == 0 else secret)
        assert open_headers(subscription.encrypted_headers) == {"X-Token": f"value {number}"}
    assert decrypt(made[0][0].encrypted_previous_secrets[0]) == made[0][1]
    assert made[1][0].updated_at == before.updated_at, "nothing changed for the tenant"


def test_the_run_stands_in_the_audit_log_without_any_secret(organization: Organization, settings: LazySettings) -> None:
    _make(organization)
    settings.SECRETS_ENCRYPTION_KEYS = [NEW, OLD]
    _rotate()
    entry = AuditEntry.objects.get(action="encryption_key.rotate")
    assert entry.actor == "command:rotate_encryption_keys"
    assert entry.detail == {"subscriptions": 1, "values": 1, "unreadable": 0}


def test_every_earlier_secret_moves_too_and_one_that_cant_be_read_stays(
    organization: Organization, settings: LazySettings
) -> None:
    subscription, first = _make(organization)
    secrets = [first, *(subscriptions.rotate_secret(subscription, datetime.timedelta(hours=1)) for _ in range(3))]
    ends = subscription.previous_secrets_expire_at
    foreign = Fernet(Fernet.generate_key()).encrypt(b"whsec_gone").decode()
    newest, _, oldest = subscription.encrypted_previous_secrets
    Subscription.objects.filter(pk=subscription.pk).update(encrypted_previous_secrets=[newest, foreign, oldest])
    settings.SECRETS_ENCRYPTION_KEYS = [NEW, OLD]
    out, err = io.StringIO(), io.StringIO()
    with pytest.raises(CommandError, match=r"^1 values could not be encrypted anew"):
        call_command("rotate_encryption_keys", stdout=out, stderr=err)
    assert err.getvalue() == f"Subscription {subscription.pk}: no key decrypts encrypted_previous_secrets.\n"
    assert AuditEntry.objects.get(action="encryption_key.rotate").detail["values"] == 3
    settings.SECRETS_ENCRYPTION_KEYS = [NEW]
    subscription.refresh_from_db()
    newest, kept, oldest = subscription.encrypted_previous_secrets
    assert [decrypt(token) for token in (subscription.encrypted_secret, newest, oldest)] == [
        secrets[3],
        secrets[2],
        secrets[0],
    ]
    assert kept == foreign
    assert subscription.previous_secrets_expire_at == ends


def test_a_second_run_writes_nothing(organization: Organization, settings: LazySettings) -> None:
    subscription, _ = _make(organization)
    settings.SECRETS_ENCRYPTION_KEYS = [NEW, OLD]
    _rotate()
    token = Subscription.objects.get(pk=subscription.pk).encrypted_secret
    assert _rotate()[0] == "1 subscriptions seen, 0 values encrypted with the newest key.\n"
    assert Subscription.objects.get(pk=subscription.pk).encrypted_secret == token


def test_a_value_that_no_key_opens_is_named_and_stops_no_other(
    organization: Organization, settings: LazySettings
) -> None:
    _make(organization)
    lost, _ = _make(organization, {"X-Token": "v"})
    last, secret = _make(organization)
    foreign = Fernet(Fernet.generate_key()).encrypt(b"whsec_gone").decode()
    Subscription.objects.filter(pk=lost.pk).update(encrypted_secret=foreign)
    settings.SECRETS_ENCRYPTION_KEYS = [NEW, OLD]
    err = io.StringIO()
    with pytest.raises(CommandError, match=r"^1 values could not be encrypted anew"):
        call_command("rotate_encryption_keys", stdout=io.StringIO(), stderr=err)
    assert err.getvalue() == f"Subscription {lost.pk}: no key decrypts encrypted_secret.\n"
    assert AuditEntry.objects.get(action="encryption_key.rotate").detail == {
        "subscriptions": 3,
        "values": 3,
        "unreadable": 1,
    }
    settings.SECRETS_ENCRYPTION_KEYS = [NEW]
    last.refresh_from_db()
    lost.refresh_from_db()
    assert decrypt(last.encrypted_secret) == secret
    assert open_headers(lost.encrypted_headers) == {"X-Token": "v"}, "its other values are safe"
    assert lost.encrypted_secret == foreign, "what can't be read is kept as it is"


def test_a_run_that_was_cut_short_goes_on_where_it_stopped(organization: Organization, settings: LazySettings) -> None:
    for _ in range(5):
        _make(organization)
    settings.SECRETS_ENCRYPTION_KEYS = [NEW, OLD]
    done = key_rotation.Rekeyed()

    class Interrupted(Exception):
        pass

    def stop_after_one_batch(seen: int) -> None:
        raise Interrupted

    with pytest.raises(Interrupted):
        key_rotation.rekey(done, print, stop_after_one_batch, batch=2)
    assert done.values == 2
    assert _rotate()[0] == "5 subscriptions seen, 3 values encrypted with the newest key.\n"


def test_deleted_subscriptions_have_nothing_to_encrypt(organization: Organization, settings: LazySettings) -> None:
    subscriptions.delete(_make(organization, {"X-Token": "v"})[0])
    settings.SECRETS_ENCRYPTION_KEYS = [NEW, OLD]
    assert _rotate()[0].startswith("0 subscriptions seen")


def _wait_until_blocked() -> None:
    """Wait until a statement waits for a row that we hold."""

    def is_blocked() -> bool:
        with connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM pg_locks WHERE NOT granted")
            return bool(cursor.fetchone()[0])

    wait_until(is_blocked, "nothing waits for a lock")


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("change", ["rotate", "delete"])
def test_a_secret_that_changes_under_its_hands_is_not_undone(
    organization: Organization, settings: LazySettings, change: str
) -> None:
    subscription, _ = _make(organization, {"X-Token": "v"})
    settings.SECRETS_ENCRYPTION_KEYS = [NEW, OLD]

    def command() -> str:
        try:
            return _rotate()[0]
        finally:
            connection.close()

    secret = ""
    with ThreadPoolExecutor(1) as threads:
        with transaction.atomic():
            if change == "rotate":
                secret = subscriptions.rotate_secret(subscription, datetime.timedelta(hours=1))
            else:
                subscriptions.delete(subscription)
            running = threads.submit(command)
            _wait_until_blocked()  # it has read the old row and is about to write
        assert running.result(60).startswith("1 subscriptions seen")
    settings.SECRETS_ENCRYPTION_KEYS = [NEW]
    subscription.refresh_from_db()
    if change == "rotate":
        assert decrypt(subscription.encrypted_secret) == secret
        assert open_headers(subscription.encrypted_headers) == {"X-Token": "v"}, "the rest moved all the same"
    else:
        assert not subscription.encrypted_secret
        assert not subscription.encrypted_headers


def test_a_process_with_both_keys_reads_what_either_wrote(settings: LazySettings) -> None:
    under_old = encrypt("whsec_a")
    settings.SECRETS_ENCRYPTION_KEYS = [NEW, OLD]
    assert decrypt(under_old) == "whsec_a"
    under_new = encrypt("whsec_b")
    settings.SECRETS_ENCRYPTION_KEYS = [OLD, NEW]
    assert decrypt(under_new) == "whsec_b"
    settings.SECRETS_ENCRYPTION_KEYS = [OLD]
    with pytest.raises(DecryptionError) as refusal:
        decrypt(under_new)
    assert under_new not in str(refusal.value)


def test_what_is_in_memory_shows_no_secret(organization: Organization) -> None:
    subscription, secret = _make(organization, {"X-Token": "very hidden"})
    receiver = open_endpoint(subscription.url, subscription.encrypted_headers, subscription.encrypted_secret)
    assert "very hidden" not in repr(receiver)
    assert secret not in repr(receiver)
