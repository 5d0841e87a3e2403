"""JSON in and out: bounds that hold exactly, values that survive, pointers that lead to the fault."""

from __future__ import annotations

import contextlib
import datetime
import json
import uuid
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pytest_django import Settings
from rest_framework.parsers import BaseParser
from rest_framework.request import Request
from rest_framework.test import APIRequestFactory

from core.drf import JSONBody, JSONOnlyNegotiation, NDJSONBody
from core.json_body import parse_json, read_object, require_media_type
from core.json_response import Fragment, JSONRenderer
from core.problems import Problem

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_characters="\x00", exclude_categories=("Cs",))),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(
        st.text(st.characters(exclude_characters="\x00", exclude_categories=("Cs",)), max_size=8), inner, max_size=4
    ),
    max_leaves=20,
)  # fmt: skip


@given(JSON_VALUES)
def test_every_value_that_can_be_stored_is_read_as_it_is(value: Any) -> None:
    assert parse_json(json.dumps(value).encode()) == value


@given(st.binary(max_size=200))
@settings(max_examples=300)
def test_no_bytes_make_the_parser_fail_in_another_way(body: bytes) -> None:
    with contextlib.suppress(Problem):
        parse_json(body)


def nested(depth: int, opening: bytes, closing: bytes) -> bytes:
    return opening * depth + b"1" + closing * depth


@pytest.mark.parametrize(("opening", "closing"), [(b"[", b"]"), (b'{"a":', b"}"), (b'[{"a":', b"}]")])
def test_nesting_is_bounded_exactly(settings: Settings, opening: bytes, closing: bytes) -> None:
    settings.MAX_JSON_DEPTH = 10
    levels = opening.count(b"[") + opening.count(b"{")
    assert parse_json(nested(10 // levels, opening, closing)) is not None
    with pytest.raises(Problem, match="not valid") as caught:
        parse_json(nested(10 // levels + 1, opening, closing))
    assert caught.value.errors == [{"pointer": "", "detail": "nested more than 10 levels deep"}]


def test_brackets_in_strings_and_side_by_side_are_no_nesting(settings: Settings) -> None:
    settings.MAX_JSON_DEPTH = 3
    assert parse_json(b'["[[[[[[{{{{{{"]')
    assert parse_json(b"[[1],[2],[3],[4],[5],{},{}]")
    assert parse_json(b'{"a":[1],"b":{"c":[]}}')


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        (b'"\\u0000"', ""),
        (b'{"a":["x","\\u0000"]}', "/a/1"),
        (b'{"a/b":{"c~d":"\\u0000"}}', "/a~1b/c~0d"),
        (b'{"a":{"\\u0000":1}}', "/a"),
        (b'[[{"a":"\\u0000"}]]', "/0/0/a"),
    ],
)
def test_the_pointer_leads_to_the_zero_character(body: bytes, pointer: str) -> None:
    with pytest.raises(Problem) as caught:
        parse_json(body)
    assert [error["pointer"] for error in caught.value.errors] == [pointer]


def test_an_escaped_backslash_before_u0000_is_no_zero_character() -> None:
    assert parse_json(b'"\\\\u0000"') == "\\u0000"


def request(body: bytes, content_type: str = "application/json") -> Request:
    return Request(APIRequestFactory().generic("POST", "/", body, content_type=content_type))


def test_an_object_is_read_and_nothing_is_an_empty_one() -> None:
    assert read_object(request(b'{"a":1}')) == {"a": 1}
    assert read_object(request(b"")) == {}
    for body, status in ((b"[]", 400), (b"x", 400), (b'{"a":"%s"}' % (b"x" * 70_000), 413)):
        with pytest.raises(Problem) as caught:
            read_object(request(body))
        assert caught.value.status_code == status
    with pytest.raises(Problem) as caught:
        read_object(request(b"{}", "text/plain"))
    assert caught.value.status_code == 415


def test_a_media_type_is_compared_without_case_and_parameters() -> None:
    assert require_media_type("Application/JSON; charset=x", "text/plain", "application/json")
    with pytest.raises(Problem, match="text/plain or application/json"):
        require_media_type("image/png", "text/plain", "application/json")


def test_a_parser_is_chosen_by_the_media_type_and_never_parses() -> None:
    parsers: list[BaseParser] = [JSONBody(), NDJSONBody()]
    choose = JSONOnlyNegotiation().select_parser
    assert choose(request(b"", "application/x-ndjson; a=b"), parsers) is parsers[1]
    assert choose(request(b"", "text/plain"), parsers) is None
    with pytest.raises(NotImplementedError):
        parsers[0].parse(None)


def test_values_are_rendered_as_json_says_and_fragments_as_they_are() -> None:
    at = datetime.datetime(2026, 1, 31, 13, tzinfo=datetime.timezone(datetime.timedelta(hours=1)))
    rendered = JSONRenderer().render(
        {
            "utc": at.astimezone(datetime.UTC),
            "id": uuid.UUID(int=1),
            "raw": Fragment('{"n":12345678901234567890123,  "x":1.0}'),
            "span": datetime.timedelta(minutes=1),
            "other": Problem,
        }
    )
    assert b'"raw":{"n":12345678901234567890123,  "x":1.0}' in rendered
    shown = json.loads(rendered)
    assert (shown["utc"], shown["id"]) == ("2026-01-31T12:00:00Z", str(uuid.UUID(int=1)))
    assert shown["span"] == 60
    assert JSONRenderer().render(None) == b""
