"""A subscription's window and circuit breaker."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from webhooks.dispatch.breaker import BreakerPolicy, EndpointHealth, after_failure, after_success

POLICY = BreakerPolicy(initial_window=4, threshold=3, base_delay=5.0, max_delay=60.0)
FRESH = EndpointHealth(window=4, consecutive_failures=0, breaker_trips=0)


def test_successes_open_the_window_up_to_its_bound() -> None:
    health = FRESH
    for _ in range(100):
        health = after_success(health, POLICY, max_window=10)
    assert health.window == 10


def test_a_failure_of_load_halves_the_window_and_a_dislike_does_not() -> None:
    wide = replace(FRESH, window=64)
    assert after_failure(wide, POLICY, is_overload=True).window == 32
    assert after_failure(wide, POLICY, is_overload=False).window == 64


def test_the_circuit_opens_at_the_threshold_and_leaves_one_probe() -> None:
    health = FRESH
    for _ in range(2):
        health = after_failure(health, POLICY, is_overload=True)
        assert not health.pause
    health = after_failure(health, POLICY, is_overload=True)
    assert (health.window, health.breaker_trips, health.pause) == (1, 1, 5.0)


def test_late_failures_of_the_same_outage_do_not_lengthen_the_pause() -> None:
    open_breaker = EndpointHealth(window=1, consecutive_failures=3, breaker_trips=1, pause=5.0)
    later = after_failure(open_breaker, POLICY, is_overload=True)
    assert (later.breaker_trips, later.pause) == (1, 5.0)


def test_each_failed_probe_doubles_the_pause_up_to_its_bound() -> None:
    health = FRESH
    pauses = []
    for _ in range(10):
        health = after_failure(replace(health, pause=0.0), POLICY, is_overload=True)
        if health.pause:
            pauses.append(health.pause)
    assert pauses[:4] == [5.0, 10.0, 20.0, 40.0]
    assert set(pauses[4:]) == {60.0}


def test_a_probe_that_succeeds_closes_the_circuit() -> None:
    open_breaker = EndpointHealth(window=1, consecutive_failures=9, breaker_trips=4)
    assert after_success(open_breaker, POLICY, max_window=256) == FRESH
    assert after_success(open_breaker, POLICY, max_window=2).window == 2, "not more than the subscription allows"


def test_a_threshold_of_zero_never_opens_the_circuit() -> None:
    health = FRESH
    for _ in range(1000):
        health = after_failure(health, replace(POLICY, threshold=0), is_overload=True)
    assert (health.breaker_trips, health.pause) == (0, 0.0)


@given(st.lists(st.sampled_from(["ok", "load", "dislike"]), max_size=200), st.integers(1, 300))
def test_whatever_happens_the_window_stays_between_one_and_its_bound(steps: list[str], most: int) -> None:
    health = replace(FRESH, window=min(4, most))
    for step in steps:
        health = (
            after_success(health, POLICY, most)
            if step == "ok"
            else after_failure(replace(health, pause=0.0), POLICY, is_overload=step == "load")
        )
        assert 1 <= health.window <= max(most, 1)
