"""The request id and the trace that are stored with an event, the same through both doors."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from events.origin import (
    MAX_TRACESTATE_CHARACTERS,
    origin_of,
    pack_request_id,
    parse_trace,
    trace_headers,
    unpack_request_id,
)

TRACE_ID = "4bf92f3577b34da6a3ce929d0e0e4736"
GOOD = f"00-{TRACE_ID}-00f067aa0ba902b7-01"


@pytest.mark.parametrize("size", [1, 15, 16, 17, 36, 128])
def test_a_request_id_comes_back(size: int) -> None:
    assert unpack_request_id(pack_request_id("a" * size)) == "a" * size


def test_a_uuid_takes_sixteen_bytes_and_another_spelling_of_it_stays_as_it_is() -> None:
    given = str(uuid.uuid4())
    assert len(pack_request_id(given)) == 16
    for text in (given, given.upper(), given.replace("-", "")):
        assert unpack_request_id(pack_request_id(text)) == text


@pytest.mark.parametrize(
    "header",
    [
        "", "00", GOOD.upper(), GOOD + "-", GOOD + "-x", GOOD + "0", "ff" + GOOD[2:], GOOD[:-1], GOOD + "," + GOOD,
        f"00-{'0' * 32}-00f067aa0ba902b7-01", f"00-{TRACE_ID}-{'0' * 16}-01", GOOD.replace("-", "_"), GOOD + "\n",
        "0" + GOOD, "01" + GOOD[2:] + "x",
    ],
)  # fmt: skip
def test_an_invalid_traceparent_is_ignored_with_its_tracestate(header: str) -> None:
    assert parse_trace(header, "a=1") is None


def test_a_later_version_and_unknown_flags_are_read_as_far_as_they_are_known() -> None:
    assert parse_trace(f"cc-{TRACE_ID}-00f067aa0ba902b7-ff-what.ever", None) == GOOD
    assert parse_trace(f"00-{TRACE_ID}-00f067aa0ba902b7-06", None) == f"{GOOD[:-2]}00"


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("a=1, b=2\t,,c@d=x y", "a=1,b=2,c@d=x y"),
        ("a=1,a=2", None),
        ("a", None),
        ("A=1", None),
        ("a=é", None),
        (",".join(f"k{n}=1" for n in range(33)), None),
        (",".join(f"k{n}={'v' * 60}" for n in range(20)), ...),
        (f"big={'v' * 200},a=1,{','.join(f'k{n}={chr(118) * 50}' for n in range(6))}", ...),
    ],
)
def test_a_tracestate_is_passed_on_whole_members_at_a_time(given: str, kept: Any) -> None:
    trace = parse_trace(GOOD, given)
    assert trace is not None
    state = trace[len(GOOD) + 1 :]
    if kept is ...:
        assert state
        assert len(state) <= MAX_TRACESTATE_CHARACTERS
        assert set(state.split(",")) <= set(given.split(","))
    else:
        assert state == (kept or "")


def test_each_attempt_gets_a_span_id_of_its_own() -> None:
    trace = parse_trace(GOOD, "a=1")
    assert trace is not None
    first, second = dict(trace_headers(trace)), dict(trace_headers(trace))
    assert first["traceparent"][:36] == second["traceparent"][:36] == GOOD[:36]
    assert len({first["traceparent"], second["traceparent"], GOOD}) == 3
    assert parse_trace(first["traceparent"], first["tracestate"]) is not None


def test_without_a_trace_only_the_request_id_is_kept() -> None:
    assert origin_of("r", None, "a=1").trace is None
    assert origin_of("r", "", None).request_id == b"r"
