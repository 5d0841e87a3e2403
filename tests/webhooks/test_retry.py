"""What a response means, and when the next attempt is made."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from webhooks.destinations.outcome import Failure, Outcome, classify_response
from webhooks.dispatch.retry import NextStep, decide_next_step, retry_after_seconds, retry_delay

PLAN = (0.0, 5.0, 300.0)
NOW = 1_700_000_000.0


@given(st.integers(100, 999))
def test_only_2xx_is_a_success(status: int) -> None:
    assert (classify_response(status) is None) is (200 <= status <= 299)


@pytest.mark.parametrize("status", [300, 301, 302, 303, 307, 308])
def test_a_redirect_is_a_failure_of_its_own_class(status: int) -> None:
    assert classify_response(status) is Failure.REDIRECT


def test_a_failure_is_retried_until_the_schedule_is_used_up() -> None:
    failure = Outcome(500, Failure.HTTP_STATUS)
    assert [decide_next_step(failure, used, PLAN) for used in (1, 2, 3)] == [
        NextStep.RETRY,
        NextStep.RETRY,
        NextStep.FAILED,
    ]


def test_what_every_attempt_would_repeat_is_not_retried() -> None:
    assert decide_next_step(Outcome(None, Failure.TRANSFORM_FAILED), 1, [0, 5, 300]) is NextStep.FAILED


def test_a_success_is_delivered_at_any_try() -> None:
    assert decide_next_step(Outcome(204), 3, PLAN) is NextStep.DELIVERED


@pytest.mark.parametrize("jitter", [0.1, 0.5])
def test_jitter_spreads_delays_both_ways_within_its_share(jitter: float) -> None:
    delays = [retry_delay(2, PLAN, jitter) for _ in range(500)]
    assert PLAN[2] * (1 - jitter) <= min(delays) < PLAN[2] * (1 - jitter / 2)
    assert PLAN[2] * (1 + jitter / 2) < max(delays) <= PLAN[2] * (1 + jitter)
    assert len(set(delays)) > 400  # drawn anew each time, not once


def test_without_jitter_the_delay_is_the_schedule_s() -> None:
    assert [retry_delay(used, PLAN, 0.0) for used in range(3)] == list(PLAN)


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
    outcome = Outcome(status, Failure.HTTP_STATUS, retry_after=text)
    assert retry_after_seconds(outcome, NOW, 3600.0) == expected


def test_410_asks_to_stop_and_404_does_not() -> None:
    assert Outcome(410, Failure.HTTP_STATUS).is_gone
    assert not Outcome(404, Failure.HTTP_STATUS).is_gone


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        (Outcome(400, Failure.HTTP_STATUS), False),
        (Outcome(422, Failure.HTTP_STATUS), False),
        (Outcome(429, Failure.HTTP_STATUS), True),
        (Outcome(500, Failure.HTTP_STATUS), True),
        (Outcome(None, Failure.TIMEOUT), True),
        (Outcome(None, Failure.CONNECTION_REFUSED), True),
    ],
)
def test_only_failures_of_load_or_reach_count_against_the_window(outcome: Outcome, expected: bool) -> None:
    assert outcome.is_overload is expected
