"""Which subscriptions an event goes to."""

from __future__ import annotations

import uuid

import pytest

from events.payload import pattern_error
from webhooks.routing.matching import Matcher, SubscribedTypes


def _matches(patterns: list[str], event_type: str) -> bool:
    return bool(Matcher([SubscribedTypes(uuid.uuid4(), tuple(patterns), True)]).match(event_type))


@pytest.mark.parametrize(
    ("pattern", "event_type", "expected"),
    [
        ("order.created", "order.created", True),
        ("order.created", "order.created.late", False),
        ("order.created", "order.updated", False),
        ("order.*", "order.created", True),
        ("order.*", "order.line.added", True),
        ("order.*", "order", False),
        ("order.*", "orders.created", False),
        ("order.line.*", "order.created", False),
        ("*", "anything", True),
        ("*", "order.line.added", True),
    ],
)
def test_exact_prefix_and_everything_match_as_documented(pattern: str, event_type: str, expected: bool) -> None:
    assert _matches([pattern], event_type) is expected


def test_a_subscription_that_matches_in_several_ways_gets_the_event_once() -> None:
    subscription = SubscribedTypes(uuid.uuid4(), ("*", "order.*", "order.created"), True)
    assert Matcher([subscription]).match("order.created") == [subscription]


def test_each_of_several_subscriptions_is_found() -> None:
    exact, prefix, other = (
        SubscribedTypes(uuid.uuid4(), (pattern,), True) for pattern in ("order.created", "order.*", "invoice.*")
    )
    assert set(Matcher([exact, prefix, other]).match("order.created")) == {exact, prefix}


@pytest.mark.parametrize("good", ["*", "a", "order.created", "order.*", "a_1.B2.c.*"])
def test_good_patterns_are_accepted(good: str) -> None:
    assert pattern_error(good) is None


@pytest.mark.parametrize(
    "bad", ["", ".", "order.", "order..x", "*.created", "order.*.x", "or der", "order*", "a" * 300, 5, None]
)
def test_bad_patterns_are_named(bad: object) -> None:
    assert pattern_error(bad)
