"""The slow parser: what is JSON by RFC 8259 is read as it is written, and nothing else is."""

from __future__ import annotations

import pytest

from core import json_text

HUGE = b"9" * 5000  # more digits than Python converts


@pytest.mark.parametrize(
    ("body", "value"),
    [
        (HUGE, 0),
        (b"-" + HUGE + b".5e400", 0.0),
        (b"[1e400, -1E-400]", [0.0, 0.0]),
        (b'"\\ud800"', "\ud800"),
        (b' {"a" :\t[ ]\r\n} ', {"a": []}),
        (b'{"a": 1, "a": {}}', {"a": {}}),
    ],
)
def test_what_others_cannot_represent_is_parsed(body: bytes, value: object) -> None:
    assert json_text.parse(body) == value


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"\xef\xbb\xbf{}", "byte order mark"),
        (b"NaN", "NaN is not a JSON value"),
        (b"[-Infinity]", "-Infinity is not a JSON value"),
        (b"\xff", "utf-8"),
        (b'"\xed\xa0\x80"', "utf-8"),
        (b"{}\xc2\xa0", "Extra data"),  # white space to Python, not to JSON
        (b"[1\x0c]", "Expecting ','"),
        (b"[01]", "Expecting ','"),
        (b"[1,]", "Expecting|Illegal"),
        (b'{"a":1,}', "Expecting|Illegal"),
        (b"", "Expecting"),
    ],
)
def test_what_is_not_json_is_refused_with_what_is_wrong(body: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        json_text.parse(body)


def test_members_are_given_as_they_are_written() -> None:
    body = b' { "a" : 1e400 ,\r\n\t"b":{"a": [ 1 , 2 ]}, "c" :"\\u00e9\xc3\xa9" , "a":  ' + HUGE + b" } "
    assert json_text.members(body) == {"a": HUGE.decode(), "b": '{"a": [ 1 , 2 ]}', "c": '"\\u00e9é"'}
    assert json_text.members(b"{ }") == {}


def test_items_are_given_as_they_are_written() -> None:
    assert json_text.items(b' [ 1e400 , [1 ,2],\n{ "a":1 } ] ') == [b"1e400", b"[1 ,2]", b'{ "a":1 }']
    assert json_text.items(b"[ ]") == []


@pytest.mark.parametrize("body", [b'{"a"\x0b: 1}', b'\xc2\xa0{"a": 1}', b'{"a"\xc2\xa0: 1}', b"[]", b"1"])
def test_members_of_what_is_no_object_are_refused(body: bytes) -> None:
    with pytest.raises(ValueError, match="Expecting"):
        json_text.members(body)


@pytest.mark.parametrize("body", [b"\x0c[1]", b"[\xc2\xa01]", b"{}", b"1"])
def test_items_of_what_is_no_array_are_refused(body: bytes) -> None:
    with pytest.raises(ValueError, match="Expecting"):
        json_text.items(body)
