"""Query parameters: each parser takes what it says, names what is wrong, and never fails otherwise."""

from __future__ import annotations

import contextlib
import datetime
import uuid
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rest_framework.request import Request
from rest_framework.test import APIRequestFactory

from core import query
from core.problems import Problem
from core.query import PAGE_PARAMETERS, ParameterError, parse_parameters

UTC = datetime.UTC


def request(text: str) -> Request:
    return Request(APIRequestFactory().get(f"/?{text}"))


@pytest.mark.parametrize(
    ("raw", "moment"),
    [
        ("2026-01-31T12:00:00Z", datetime.datetime(2026, 1, 31, 12, tzinfo=UTC)),
        ("2026-01-31T12:00:00", datetime.datetime(2026, 1, 31, 12, tzinfo=UTC)),
        ("2026-01-31 12:00:00Z", datetime.datetime(2026, 1, 31, 12, tzinfo=UTC)),
        ("2026-01-31T12:00:00.123456Z", datetime.datetime(2026, 1, 31, 12, 0, 0, 123456, tzinfo=UTC)),
        ("2026-01-31T13:00:00+01:00", datetime.datetime(2026, 1, 31, 12, tzinfo=UTC)),
        ("2026-01-31T13:00:00 01:00", datetime.datetime(2026, 1, 31, 12, tzinfo=UTC)),
        ("2026-01-31T07:00:00-05:00", datetime.datetime(2026, 1, 31, 12, tzinfo=UTC)),
    ],
)
def test_a_time_is_read_in_every_usual_spelling(raw: str, moment: datetime.datetime) -> None:
    assert query.moment(raw) == moment


@given(st.text(max_size=60))
def test_no_text_makes_a_parser_fail_in_another_way(raw: str) -> None:
    for parse in (
        query.moment,
        query.identifier,
        query.boolean,
        query.text,
        query.one_of("a"),
        *PAGE_PARAMETERS.values(),
    ):
        with contextlib.suppress(ParameterError):
            parse(raw)


@given(st.datetimes(timezones=st.just(UTC)), st.uuids())
def test_a_cursor_comes_back_as_it_was_given_out(at: datetime.datetime, row_id: uuid.UUID) -> None:
    cursor = query._encode_cursor(SimpleNamespace(created_at=at, id=row_id))
    assert cursor.replace("-", "").replace("_", "").isalnum()
    assert query._cursor(cursor) == (at, row_id)


def test_parameters_are_parsed_by_name() -> None:
    parsers: dict[str, Any] = {"undelivered": query.boolean, "status": query.one_of("a", "b"), **PAGE_PARAMETERS}
    assert parse_parameters(request(""), parsers) == {}
    assert parse_parameters(request("undelivered=false&status=b&limit=7"), parsers) == {
        "undelivered": False, "status": "b", "limit": 7,
    }  # fmt: skip


def test_every_wrong_parameter_is_named_with_what_is_known() -> None:
    with pytest.raises(Problem) as caught:
        parse_parameters(request("a=1&limit=0&limit=1&b=x"), {"b": query.boolean, **PAGE_PARAMETERS})
    assert caught.value.errors == [
        {"pointer": "?a", "detail": "is not a parameter of this endpoint (it has: b, cursor, limit, order)"},
        {"pointer": "?limit", "detail": "is given more than once"},
        {"pointer": "?b", "detail": "must be true or false"},
    ]
