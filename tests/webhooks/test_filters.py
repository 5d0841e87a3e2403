"""Payload filters: what they match, what is refused, and that nothing an event holds raises or takes long."""

from __future__ import annotations

import json
import re
import uuid
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from events.ingest import ingest
from events.payload import NewEvent
from orgs.models import Organization
from tests.conftest import ApiClient
from tests.webhooks.helpers import accept, fan_out, statuses, subscribe
from tests.webhooks.test_recovery import LONG_AGO
from webhooks.models import Delivery, Subscription
from webhooks.routing import selection
from webhooks.routing.claim_events import AcceptedEvent
from webhooks.routing.fan_out import FanOut
from webhooks.routing.filters import (
    MAX_CHARACTERS,
    MAX_CONDITIONS,
    MAX_DEPTH,
    MAX_INDEXED_VALUES,
    MAX_ITEMS,
    Filter,
    FilterError,
    parse_data,
    required,
)
from webhooks.routing.intervals import Intervals
from webhooks.routing.matching import Candidates, Matcher, SubscribedTypes
from webhooks.routing.selection import select
from webhooks.upkeep import recovery
from webhooks.upkeep.preview import preview_recovery

ORDER = {
    "customer": {"country": "DE", "vip": True, "note": None},
    "total": 120.5,
    "number": 9007199254740993,
    "placed": "2026-01-31T12:00:00Z",
    "tags": ["gift", "rush"],
    "lines": [{"sku": "A-1", "count": 1}, {"sku": "B-2", "count": 5}],
    "a.b": 1,
}


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        ({}, True),
        ({"customer": {"country": "DE"}}, True),
        ({"customer": {"country": "FR"}}, False),
        ({"customer.country": "DE"}, True),
        ({"a.b": 1}, True),
        ({"customer": {"country": {"$eq": "DE"}, "vip": True}}, True),
        ({"customer": {"vip": 1}}, False),
        ({"customer": {"note": None}}, True),
        ({"customer": {"absent": None}}, False),
        ({"number": 9007199254740993}, True),
        ({"number": 9007199254740992}, False),
        ({"total": {"$gt": 120.5}}, False),
        ({"total": {"$gte": 120.5, "$lt": 121}}, True),
        ({"total": {"$lte": "999"}}, False),
        ({"customer": {"vip": {"$gte": 0}}}, False),
        ({"placed": {"$gte": "2026-01-01", "$lt": "2026-02-01"}}, True),
        ({"customer": {"country": {"$in": ["FR", "DE"]}}}, True),
        ({"customer": {"vip": {"$in": [1, "true"]}}}, False),
        ({"customer": {"country": {"$nin": ["FR", "DE"]}}}, False),
        ({"customer": {"absent": {"$nin": ["FR"]}}}, True),
        ({"customer": {"country": {"$neq": "DE"}}}, False),
        ({"customer": {"absent": {"$neq": "DE"}}}, True),
        ({"customer": {"country": {"$startsWith": "D"}}}, True),
        ({"total": {"$startsWith": "1"}}, False),
        ({"placed": {"$endsWith": "Z"}}, True),
        ({"customer": {"note": {"$exist": True}}}, True),
        ({"customer": {"absent": {"$exists": False}}}, True),
        ({"absent.deeper": {"$exist": False}}, True),
        ({"tags": "gift"}, True),
        ({"tags": {"$neq": "gift"}}, False),
        ({"tags": {"$and": ["gift", "rush"]}}, True),
        ({"tags": {"$and": ["gift", "other"]}}, False),
        ({"tags": {"$not": "other"}}, True),
        ({"lines": {"sku": "B-2", "count": {"$gt": 2}}}, True),
        ({"lines": {"sku": "A-1", "count": {"$gt": 2}}}, False),
        ({"lines.sku": {"$startsWith": "B"}}, True),
        ({"$or": [{"total": {"$lt": 5}}, {"customer": {"vip": True}}]}, True),
        ({"$and": [{"total": {"$lt": 5}}, {"customer": {"vip": True}}]}, False),
        ({"$not": {"customer": {"country": "DE"}}}, False),
        ({"customer": {"country": {"$or": ["FR", {"$startsWith": "D"}]}}}, True),
        ({"customer": "DE"}, False),
        ({"total": {"deeper": 1}}, False),
    ],
)
def test_what_matches(conditions: Any, expected: bool) -> None:
    assert Filter(conditions).matches(parse_data(json.dumps(ORDER))) is expected


@pytest.mark.parametrize("data", ["7", "[1, 7]", '"x"', "null", "[]", "1e400", '"\\ud800"', "9" * 5000])
def test_data_that_is_no_object_is_compared_as_it_is(data: str) -> None:
    assert Filter({"$eq": 7}).matches(parse_data(data)) is (data in ("7", "[1, 7]"))
    assert Filter({"a": 1}).matches(parse_data(data)) is False
    assert Filter({"a": {"$exist": False}}).matches(parse_data(data)) is (data != "[]")
    assert Filter({"$gt": 10**18}).matches(parse_data(data)) is (data in ("1e400", "9" * 5000))


@pytest.mark.parametrize(
    ("conditions", "path", "reason"),
    [
        ([], (), "must be an object"),
        ({"a": {"$regex": ".*"}}, ("a", "$regex"), "is not an operator"),
        ({"a": {}}, ("a",), "must hold a condition"),
        ({"a": [1]}, ("a",), "must not be an array"),
        ({"a": {"$eq": {"b": 1}}}, ("a", "$eq"), "must be a text"),
        ({"a": {"$in": "x"}}, ("a", "$in"), "must be an array"),
        ({"a": {"$in": ["x", []]}}, ("a", "$in", "1"), "must not be an array"),
        ({"a": {"$gt": True}}, ("a", "$gt"), "must be a number"),
        ({"a": {"$startsWith": ""}}, ("a", "$startsWith"), "must be a text"),
        ({"a": {"$exist": 1}}, ("a", "$exist"), "must be true or false"),
        ({"$or": []}, ("$or",), "must be an array"),
        ({"$or": [{"a": 1}, {"b": {"$x": 1}}]}, ("$or", "1", "b", "$x"), "is not an operator"),
        ({"a": "\x00"}, ("a",), "can't be stored"),
        ({"a": "\ud800"}, ("a",), "can't be stored"),
        ({"a": {"b\x00": 1}}, ("a",), "can't be stored"),
        ({"a": float("nan")}, ("a",), "is not a JSON number"),
        ({f"m{n}": n for n in range(MAX_CONDITIONS + 1)}, (f"m{MAX_CONDITIONS}",), "one condition more"),
        ({"a": {"$or": [1] * 10_000}}, (), "characters"),
        ({"a": {"$in": ["x" * MAX_CHARACTERS]}}, (), "characters"),
        ({".".join("a" * (MAX_DEPTH + 1)): 1}, (".".join("a" * (MAX_DEPTH + 1)),), "nested more than"),
    ],
)
def test_what_is_refused_and_where(conditions: Any, path: tuple[str, ...], reason: str) -> None:
    with pytest.raises(FilterError) as caught:
        Filter(conditions)
    assert caught.value.path == path
    assert reason in caught.value.reason


def test_depth_is_bounded() -> None:
    conditions: Any = {"a": 1}
    for _ in range(MAX_DEPTH - 1):
        conditions = {"$not": conditions}
    Filter(conditions)
    with pytest.raises(FilterError, match="nested"):
        Filter({"$not": conditions})


def test_long_arrays_are_not_looked_through() -> None:
    assert Filter({"a": 1}).matches({"a": [0] * (MAX_ITEMS - 1) + [1]})
    for conditions in ({"a": 1}, {"a": {"$neq": 2}}, {"$not": {"a": 2}}, {"a": {"$or": [2, 3]}}):
        filter_ = Filter(conditions)
        assert not filter_.matches({"a": [1] * (MAX_ITEMS + 1)})
        assert "more than" in str(filter_.why_not({"a": [1] * (MAX_ITEMS + 1)}))
        assert filter_.matches({"a": [1]}) is (conditions != {"a": {"$or": [2, 3]}}), "the next event starts anew"


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from(["x", "y", "xy"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b"]), inner, max_size=2),
    max_leaves=8,
)
SCALARS = st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from(["x", "y"])
CONDITIONS = st.recursive(
    st.dictionaries(st.sampled_from(["a", "b", "$eq", "$neq", "a.b"]), SCALARS, min_size=1, max_size=2)
    | st.fixed_dictionaries({"$in": st.lists(SCALARS, min_size=1, max_size=3)})
    | st.fixed_dictionaries({"$gte": st.integers(-3, 3)}),
    lambda inner: (
        st.dictionaries(st.sampled_from(["a", "b", "$not"]), inner, min_size=1, max_size=2)
        | st.fixed_dictionaries({"$or": st.lists(inner, min_size=1, max_size=2)})
    ),
    max_leaves=5,
)


@example({"a.b": 1}, {"a": {"b": 1}})
@example({"$or": [{"a": 1}, {"b": 1}]}, {"b": 1})
@given(CONDITIONS, VALUES)
@settings(max_examples=200, deadline=None)
def test_looking_up_leaves_out_nobody_who_matches(conditions: Any, data: Any) -> None:
    """And evaluating never raises."""
    one = SubscribedTypes(uuid.uuid4(), ("a",), True, filter=Filter(conditions))
    found = Candidates([one]).by_data((), data, {})
    assert found == ([one] if one.filter and one.filter.matches(data) else [])


@given(
    st.lists(st.tuples(st.none() | st.integers(0, 9), st.none() | st.integers(0, 9)).filter(any), max_size=12),
    st.integers(-1, 10) | st.floats(-1, 10),
)
@settings(max_examples=200, deadline=None)
def test_intervals_find_what_holds_a_value(bounds: list[tuple[int | None, int | None]], value: float) -> None:
    found = Intervals((low, high, number) for number, (low, high) in enumerate(bounds)).holding(value)
    holding = [
        number
        for number, (low, high) in enumerate(bounds)
        if (low is None or low <= value) and (high is None or value <= high)
    ]
    assert sorted(found) == holding


def test_ranges_and_prefixes_are_found_without_a_look_at_each() -> None:
    evaluated = []

    class Noted(Filter):
        def matches(self, data: Any) -> bool:
            evaluated.append(self)
            return super().matches(data)

    def wanting(data: Any, *filters: Any) -> list[int]:
        evaluated.clear()
        given = [SubscribedTypes(uuid.uuid4(), ("a",), True, filter=Noted(one)) for one in filters]
        found = Candidates(given).by_data((), data, {})
        assert found is not None
        return [given.index(one) for one in found]

    hundred = range(100)
    assert wanting({"n": 7}, *[{"n": {"$gte": n}} for n in hundred]) == list(range(8))
    assert wanting({"n": 97.5}, *[{"n": {"$gt": n}} for n in hundred]) == list(range(98))
    assert wanting({"a": {"n": 50}}, *[{"a": {"n": {"$gte": n, "$lt": n + 2}}} for n in hundred]) == [49, 50]
    assert len(evaluated) <= 4
    assert wanting({"s": "key-42x"}, *[{"s": {"$startsWith": f"key-{n}"}} for n in hundred]) == [4, 42]
    assert len(evaluated) <= 4
    assert wanting({"s": "b"}, *[{"s": {"$gte": letter}} for letter in "abc"], {"s": {"$gt": 1}}) == [0, 1]
    assert wanting({"n": [1, 99]}, *[{"n": {"$gte": n, "$lte": n}} for n in hundred]) == [1, 99]
    assert len(evaluated) == 2
    assert wanting({"n": True}, {"n": {"$gte": 0}}) == []


def test_what_an_evaluation_does_with_arrays_is_bounded() -> None:
    every = {f"a{number}": {"$neq": 1} for number in range(45)}  # each item meets all of them but the last one
    filter_ = Filter({"lines": {**every, "z": 1}})
    assert filter_.matches({"lines": [{}] * 100 + [{"z": 1}]})
    assert "10000 comparisons" in str(filter_.why_not({"lines": [{}] * 999 + [{"z": 1}]}))
    assert Filter({"lines": {"sku": "B", "count": {"$gt": 2}}}).matches(
        {"lines": [{}] * 999 + [{"sku": "B", "count": 3}]}
    )
    # A path counts the conditions at its end for each item that it goes through.
    assert Filter({"lines.x": every}).matches({"lines": [{}] * 100})
    assert "10000 comparisons" in str(Filter({"lines.x": every}).why_not({"lines": [{}] * 999}))
    # An $in with more values than an index takes is evaluated.
    assert required({"a": {"$in": list(range(MAX_INDEXED_VALUES + 1))}}) is None


# --- in the database ------------------------------------------------------------------------------------


def send(organization: Organization, *data: Any, kind: str = "order.created") -> None:
    for value in data:
        ingest(organization.id, NewEvent(kind, value if isinstance(value, str) else json.dumps(value), None))
    fan_out()


@pytest.mark.django_db
def test_only_matching_events_make_deliveries(organization: Organization) -> None:
    filtered = [subscribe(organization, filter={"customer": f"c{n}"}) for n in range(3)]
    big = subscribe(organization, filter={"total": {"$gte": 100}})
    everything = subscribe(organization)
    send(organization, {"customer": "c1", "total": 5}, {"customer": "c2", "total": 100}, "1e400", '"\\ud800"')
    assert [len(statuses(subscription=one)) for one in (*filtered, big, everything)] == [0, 1, 1, 1, 4]


@pytest.mark.django_db
def test_data_is_read_only_if_a_matched_subscription_has_a_filter() -> None:
    """The events aren't stored, so reading the data of one fails."""
    key = uuid.uuid4()
    plain = SubscribedTypes(uuid.uuid4(), ("order.*",), True)
    filtered = SubscribedTypes(uuid.uuid4(), ("invoice.*",), True, filter=Filter({"a": 1}))
    matchers = {key: Matcher([plain, filtered])}
    event = AcceptedEvent(uuid.uuid4(), key, "order.created")
    assert select([event], matchers) == {event.id: [plain]}
    with pytest.raises(KeyError):
        select([AcceptedEvent(uuid.uuid4(), key, "invoice.sent")], matchers)


@pytest.mark.django_db
def test_a_filter_that_is_changed_counts_for_the_next_event(organization: Organization, api: ApiClient) -> None:
    path = f"/api/subscriptions/{subscribe(organization, filter={'a': 1}).pk}"
    fans = FanOut()

    def send_one() -> int:
        before = Delivery.objects.count()
        ingest(organization.id, NewEvent("a.b", '{"a": 2}', None))
        while fans.run_round(100).seen:
            pass
        return Delivery.objects.count() - before

    assert send_one() == 0
    assert api.patch(path, {"filter": {"a": {"$in": [1, 2]}}}).json()["filter"] == {"a": {"$in": [1, 2]}}
    assert send_one() == 1
    assert api.patch(path, {"filter": {"a": 3}}).status_code == 200
    assert send_one() == 0
    assert api.patch(path, {"filter": None}).json()["filter"] is None
    assert send_one() == 1
    assert api.patch(path, {"filter": {}}).json()["filter"] is None


@pytest.mark.django_db
def test_a_stored_filter_that_cannot_be_used_stops_nobody_else(organization: Organization) -> None:
    broken, other = subscribe(organization, filter={"a": 1}), subscribe(organization, filter={"a": 1})
    Subscription.objects.filter(pk=broken.pk).update(filter={"a": {"$gone": 1}})
    send(organization, {"a": 1})
    assert (statuses(subscription=broken), statuses(subscription=other)) == ([], ["pending"])


@pytest.mark.django_db
def test_when_filters_take_long_the_rest_waits_in_order_and_nobody_is_left_out(
    organization: Organization, monkeypatch: pytest.MonkeyPatch
) -> None:
    neighbor = Organization.objects.create(name="Neighbor")
    for one in (organization, neighbor):
        subscribe(one, filter={"a": 1})
        for number in range(5):
            ingest(one.id, NewEvent("a.b", json.dumps({"a": number % 2}), None))
    monkeypatch.setattr(selection, "FILTER_SECONDS", 0.0)  # one event a round
    fans = FanOut()
    rounds = [fans.run_round(100) for _ in range(10)]
    assert all(one.more for one in rounds[:9])
    assert {len(one.passed_over) for one in rounds[:8]} == {1}, "they take turns"
    assert Delivery.objects.filter(organization=organization).count() == 2
    assert Delivery.objects.filter(organization=neighbor).count() == 2


@pytest.mark.django_db
def test_an_event_that_takes_longer_than_a_round_is_finished_in_others_and_holds_up_nobody(
    organization: Organization, api: ApiClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = [subscribe(organization, filter={"$not": {"a": number}}) for number in range(5)]
    neighbor = Organization.objects.create(name="Neighbor")
    subscribe(neighbor, filter={"$not": {"a": 1}})
    for _ in range(2):
        ingest(organization.id, NewEvent("a.b", '{"a": 3}', None))
        ingest(neighbor.id, NewEvent("a.b", '{"a": 2}', None))
    monkeypatch.setattr(selection, "FILTER_SECONDS", 0.0)  # one filter a round
    fans = FanOut()
    made = []

    def go_on() -> None:
        fans.run_round(100)
        made.append(tuple(Delivery.objects.filter(organization=one).count() for one in (organization, neighbor)))

    for _ in range(4):
        go_on()
    assert made[-1][1] == 2, "the neighbor's turns come in between"
    # A change of one subscription doesn't have the others judged again.
    assert api.patch(f"/api/subscriptions/{slow[0].pk}", {"description": "changed"}).status_code == 200
    while made[-1] != (8, 2):
        assert len(made) < 20
        go_on()
    assert {one[0] for one in made} == {0, 4, 8}
    assert [len(statuses(subscription=one)) for one in slow] == [2, 2, 2, 0, 2]


@pytest.mark.django_db
def test_a_recovery_queues_only_what_the_filter_wants(organization: Organization) -> None:
    accept(organization, 2, data='{"a": 1}')
    accept(organization, 3, data='{"a": 2}')
    subscription = subscribe(organization, filter={"a": 1})
    assert preview_recovery(subscription, LONG_AGO).wanted == 2
    recovery.advance(recovery.start(subscription, LONG_AGO).id)
    assert statuses(subscription=subscription) == ["pending"] * 2


@pytest.mark.django_db
def test_the_api_says_where_a_filter_is_wrong(api: ApiClient) -> None:
    new = {"url": "https://a.example/", "event_types": ["*"]}
    answer = api.post("/api/subscriptions", {**new, "filter": {"$or": [{"a/b": {"$regex": "(a+)+$"}}]}})
    assert answer.status_code == 400
    assert answer.json()["errors"][0]["pointer"] == "/filter/$or/0/a~1b/$regex"
    for bad in ("x", 1, [1], {"a": "\x00"}, {"a": {"$in": [{}]}}, {"a": {"$or": [1] * 10_000}}):
        assert api.post("/api/subscriptions", {**new, "filter": bad}).status_code == 400
    assert not Subscription.objects.exists()
    made = api.post("/api/subscriptions", {**new, "filter": {"a": {"$gte": 1.5}}}).json()
    assert made["filter"] == {"a": {"$gte": 1.5}}
    assert api.get(f"/api/subscriptions/{made['id']}").json()["filter"] == {"a": {"$gte": 1.5}}
    assert api.post("/api/subscriptions", {"kind": "inbox", "inbox": "i", "event_types": ["*"], "filter": {"a": 1}})


def test_the_filters_of_the_guide_match_its_event() -> None:
    guide = (Path(__file__).parents[2] / "docs" / "routing.md").read_text()
    data = json.loads(re.search(r"```json\n(.*?)```", guide, re.DOTALL)[1])  # type: ignore[index]
    rows = re.findall(r"^\| `(\{.*?\})` \| .*? \|$", guide, re.MULTILINE)
    assert len(rows) > 8
    for row in rows:
        assert Filter(json.loads(row)).matches(data), row
