"""What an answer means and when to try again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from webhooks.schedule import (
    Answer,
    Failure,
    Verdict,
    asks_to_stop,
    decide,
    judge_status,
    looks_overloaded,
    retry_after_seconds,
    retry_delay,
)

PLAN = (0.0, 5.0, 300.0)
NOW = 1_700_000_000.0


@given(st.integers(100, 999))
def test_only_2xx_is_a_success(status: int) -> None:
    assert (judge_status(status) is None) is (200 <= status <= 299)


@pytest.mark.parametrize("status", [300, 301, 302, 303, 307, 308])
def test_a_redirect_is_a_failure_of_its_own_class(status: int) -> None:
    assert judge_status(status) is Failure.REDIRECT


def test_a_failure_is_retried_until_the_schedule_is_used_up() -> None:
    failure = Answer(500, Failure.HTTP_STATUS)
    assert [decide(failure, used, PLAN) for used in (1, 2, 3)] == [Verdict.RETRY, Verdict.RETRY, Verdict.FAILED]


def test_a_success_is_delivered_at_any_try() -> None:
    assert decide(Answer(204), 3, PLAN) is Verdict.DELIVERED


@given(st.integers(1, 2), st.floats(0, 0.5), st.floats(-1, 1))
def test_jitter_stays_within_its_share(used: int, jitter: float, spread: float) -> None:
    delay = retry_delay(used, PLAN, jitter, spread)
    assert PLAN[used] * (1 - jitter) <= delay <= PLAN[used] * (1 + jitter)


@pytest.mark.parametrize(
    ("status", "text", "expected"),
    [
        (429, "120", 120.0),
        (503, "120", 120.0),
        (429, " 7 ", 7.0),
        (429, "0", None),
        (429, "-5", None),
        (429, "soon", None),
        (429, "1e3", None),
        (429, "9" * 500, 3600.0),
        (429, "99999999", 3600.0),
        (429, "Tue, 14 Nov 2023 22:14:20 GMT", 60.0),
        (429, "Tue, 14 Nov 2023 22:12:20 GMT", None),
        (429, "Tue, 99 Nov 2023 99:99:99 GMT", None),
        (500, "120", None),
        (429, None, None),
    ],
)
def test_retry_after_is_read_in_both_forms_and_capped(status: int, text: str | None, expected: float | None) -> None:
    answer = Answer(status, Failure.HTTP_STATUS, retry_after=text)
    assert retry_after_seconds(answer, NOW, 3600.0) == expected


def test_410_asks_to_stop_and_404_does_not() -> None:
    assert asks_to_stop(Answer(410, Failure.HTTP_STATUS))
    assert not asks_to_stop(Answer(404, Failure.HTTP_STATUS))


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (Answer(400, Failure.HTTP_STATUS), False),
        (Answer(422, Failure.HTTP_STATUS), False),
        (Answer(429, Failure.HTTP_STATUS), True),
        (Answer(500, Failure.HTTP_STATUS), True),
        (Answer(None, Failure.TIMEOUT), True),
        (Answer(None, Failure.CONNECTION_REFUSED), True),
    ],
)
def test_only_failures_of_load_or_reach_count_against_the_window(answer: Answer, expected: bool) -> None:
    assert looks_overloaded(answer) is expected
