"""Arrays as text: PostgreSQL reads exactly what was given."""

from __future__ import annotations

import uuid

import pytest
from django.db import connection

from core.arrays import bytes_array, number_array, plain_array, text_array

pytestmark = pytest.mark.django_db

TEXTS = [
    "", "null", "NULL", None, " ", "a,b", "{}", "{", '"', "\\", '\\"', '"quoted"', "\\\\x00", "tab\tand\nnewline\r",
    "'; DROP TABLE events_event; --", "ünïcödé \U0001f600", '{"a": "b\\\\n", "c": ["\\u0000"]}', "%s %(x)s",
]  # fmt: skip


def read(literal: str, kind: str) -> list[object]:
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT %s::{kind}[]", [literal])
        found: list[object] = cursor.fetchone()[0]
    return found


def test_texts() -> None:
    assert read(text_array(TEXTS), "text") == TEXTS


def test_bytes() -> None:
    values = [b"", None, bytes(range(256)), b'\\"{},']
    assert [None if v is None else bytes(v) for v in read(bytes_array(values), "bytea")] == values  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("values", "kind"), [([uuid.uuid4() for _ in range(3)], "uuid"), ([-1, 0, 5], "int"), ([], "uuid")]
)
def test_plain(values: list[object], kind: str) -> None:
    assert read(plain_array(values), kind) == values


def test_numbers() -> None:
    values = [None, 0, -1, 200, 1.5, 1e-7, 1764000000.123456, 2.0**60, float("inf")]
    assert read(number_array(values), "float8") == values
    assert read(number_array([None, 200]), "int") == [None, 200]
