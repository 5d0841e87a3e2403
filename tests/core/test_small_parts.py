"""Ids, encryption, strict serializers, transactions that are repeated, and addresses behind proxies."""

from __future__ import annotations

import datetime
import json
import threading
import uuid
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
from cryptography.fernet import Fernet
from django.db import OperationalError, connection, transaction
from pytest_django import Settings
from rest_framework import serializers

from core import db, encryption, ids
from core.json_response import JSONRenderer
from core.serializers import (
    OutputSerializer,
    RawJSONField,
    StrictCharField,
    StrictFloatField,
    StrictIntegerField,
    StrictSerializer,
    validate_plain_text,
)
from orgs.models import Organization


def test_ids_are_uuid_7_unique_and_in_the_order_of_time() -> None:
    made = [ids.new_id() for _ in range(1000)]
    assert all(one.version == 7 for one in made)
    assert len(set(made)) == 1000
    assert made == sorted(made)
    many = [uuid.UUID(text) for text in ids.new_ids(1000)]
    assert many == sorted(many)
    assert made[-1] < many[0]


def test_a_derived_id_is_always_the_same_and_has_the_time_of_its_origin() -> None:
    origin, other, part = ids.new_id(), ids.new_id(), ids.new_id()
    derived = ids.derive_id(origin, part)
    assert derived == ids.derive_id(origin, part)
    assert (derived.version, derived.variant) == (7, uuid.RFC_4122)
    assert derived.int >> 64 == origin.int >> 64
    assert len({derived, origin, ids.derive_id(other, part), ids.derive_id(origin, other)}) == 4
    assert len({ids.derive_id(origin, ids.new_id()) for _ in range(10_000)}) == 10_000


@pytest.mark.parametrize(
    "text", ["", "x", "x" * 36, "0198f2d06d3c7a529b1e2f4c8a7d1e90", "{0198f2d0-6d3c-7a52-9b1e-2f4c8a7d1e}"]
)
def test_what_is_no_id_in_its_usual_form_is_none(text: str) -> None:
    assert ids.parse_id(text) is None


def test_an_id_is_read_back() -> None:
    one = ids.new_id()
    assert ids.parse_id(str(one)) == one


def test_what_is_encrypted_comes_back_and_is_never_twice_the_same() -> None:
    for plain in ("whsec_x", "", "é😀", "x" * 10_000):
        first, second = encryption.encrypt(plain), encryption.encrypt(plain)
        assert first != second
        assert not plain or plain not in first
        assert encryption.decrypt(first) == encryption.decrypt(second) == plain


def test_keys_are_rotated_by_putting_a_new_one_first(settings: Settings) -> None:
    old, new = Fernet.generate_key().decode(), Fernet.generate_key().decode()
    settings.SECRETS_ENCRYPTION_KEYS = [old]
    token = encryption.encrypt("secret")
    settings.SECRETS_ENCRYPTION_KEYS = [new, old]
    assert encryption.decrypt(token) == "secret"
    again = encryption.reencrypt(token)
    settings.SECRETS_ENCRYPTION_KEYS = [new]
    assert encryption.decrypt(again) == "secret"
    for damaged in (token, "", "x", again[:-2], again[:-5] + "AAAA="):
        with pytest.raises(encryption.DecryptionError, match="SECRETS_ENCRYPTION_KEYS"):
            encryption.decrypt(damaged)
        with pytest.raises(encryption.DecryptionError):
            encryption.reencrypt(damaged)


class Strict(StrictSerializer):
    """One field of each kind."""

    text = StrictCharField(required=False, validators=[validate_plain_text])
    number = StrictIntegerField(required=False)
    real = StrictFloatField(required=False)


@pytest.mark.parametrize("data", [{"text": 1}, {"text": None}, {"text": "a\x1fb"}, {"text": "a\x7f"}, {"number": True},
                                  {"number": "1"}, {"number": 1.0}, {"real": "1"}, {"real": False}, {"real": None},
                                  {"other": 1}, {"": 1}])  # fmt: skip
def test_a_strict_field_takes_no_stand_in_and_an_unknown_one_is_named(data: Any) -> None:
    serializer = Strict(data=data)
    assert not serializer.is_valid()
    assert set(serializer.errors) == set(data)


class Inner(OutputSerializer):
    """The whole object again, as a member."""

    at = serializers.DateTimeField()


class Shown(OutputSerializer):
    """Members of every kind that a response has."""

    id = serializers.UUIDField()
    name = serializers.CharField(source="title")
    at = serializers.DateTimeField(allow_null=True)
    raw = RawJSONField()
    inner = Inner(source="*")
    several = Inner(many=True)


def test_what_an_output_serializer_shows_is_what_drf_would_have_made_of_it() -> None:
    one_id, at = ids.new_id(), datetime.datetime(2026, 1, 31, 12, 0, 0, 5, datetime.UTC)
    row = SimpleNamespace(id=one_id, title="é", at=at, raw='{"n": 1.0e2}')
    row.several = [row, SimpleNamespace(at=None)]
    written = JSONRenderer().render(Shown().to_representation(row))
    assert b'"raw":{"n": 1.0e2}' in written
    shown = json.loads(written)
    assert shown == {
        "id": str(one_id),
        "name": "é",
        "at": serializers.DateTimeField().to_representation(at),
        "raw": {"n": 100},
        "inner": {"at": "2026-01-31T12:00:00.000005Z"},
        "several": [{"at": "2026-01-31T12:00:00.000005Z"}, {"at": None}],
    }


def test_a_strict_serializer_takes_what_fits_and_nothing_but_objects() -> None:
    serializer = Strict(data={"text": "a", "number": 1, "real": 2})
    serializer.is_valid(raise_exception=True)
    assert serializer.validated_data == {"text": "a", "number": 1, "real": 2.0}
    assert not Strict(data=[1]).is_valid()


@pytest.mark.django_db(transaction=True)
def test_a_deadlock_is_tried_again_until_both_have_done_their_work() -> None:
    first, second = (Organization.objects.create(name=name) for name in ("a", "b"))
    both = threading.Barrier(2)
    attempts: list[str] = []

    def lock(name: str, order: list[Organization]) -> None:
        def work() -> None:
            attempts.append(name)
            Organization.objects.select_for_update().get(pk=order[0].pk)
            if attempts.count(name) == 1:
                both.wait(30)
            Organization.objects.select_for_update().get(pk=order[1].pk)
            Organization.objects.filter(pk=order[1].pk).update(retention_days=7)

        db.borrow_connection(lambda: db.in_transaction(work))

    threads = [
        threading.Thread(target=lock, args=("ab", [first, second])),
        threading.Thread(target=lock, args=("ba", [second, first])),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(attempts) >= 3  # PostgreSQL ended one of the two
    assert list(Organization.objects.values_list("retention_days", flat=True)) == [7, 7]


@pytest.mark.django_db(transaction=True)
def test_a_deadlock_that_does_not_end_is_raised_after_five_attempts() -> None:
    attempts: list[int] = []

    def always() -> None:
        attempts.append(1)
        with connection.cursor() as cursor:
            cursor.execute("DO $$ BEGIN RAISE EXCEPTION 'deadlock' USING ERRCODE = '40P01'; END $$")

    with pytest.raises(OperationalError, match="deadlock"):
        db.in_transaction(always)
    assert len(attempts) == db.MAX_ATTEMPTS


@pytest.mark.django_db
def test_other_faults_are_not_tried_again_and_leave_nothing() -> None:
    attempts: list[int] = []

    def fail() -> None:
        attempts.append(1)
        Organization.objects.create(name="half")
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"), transaction.atomic():
        db.in_transaction(fail)
    assert attempts == [1]
    assert not Organization.objects.exists()


def test_a_fault_of_the_connection_is_told_from_one_of_the_data() -> None:
    assert db.is_transient(OperationalError())
    assert db.is_transient(psycopg.errors.AdminShutdown())
    assert not db.is_transient(psycopg.errors.UniqueViolation())
    assert not db.is_transient(ValueError())
