"""Claims are fair, bounded and exclusive."""

from __future__ import annotations

import datetime
from collections import Counter

import pytest
from django.db.models.functions import Now
from hypothesis import given
from hypothesis import strategies as st

from events.ingest import ingest
from events.payload import NewEvent
from orgs.models import Organization
from tests.webhooks.helpers import fan_out_batch
from webhooks import subscriptions
from webhooks.destinations.http.endpoint import host_of
from webhooks.dispatch.allocation import keep_room_for_others, limit_hosts, share_between_organizations, share_out
from webhooks.dispatch.claim import BACKLOG_SECONDS, QueueFilter, claim
from webhooks.dispatch.rate_limit import allowed_now, burst, next_allowed_at, reserve
from webhooks.models import Delivery, Subscription, SubscriptionQueue


@given(st.lists(st.integers(0, 300), max_size=50), st.integers(0, 2000))
def test_shares_never_exceed_room_or_total_and_leave_nothing_unused(rooms: list[int], total: int) -> None:
    quotas = share_out(rooms, total)
    assert all(0 <= quota <= room for quota, room in zip(quotas, rooms, strict=True))
    assert sum(quotas) == min(total, sum(rooms))


@given(st.lists(st.integers(50, 100), min_size=2, max_size=20))
def test_shares_are_even_where_room_allows(rooms: list[int]) -> None:
    quotas = share_out(rooms, 10 * len(rooms))
    assert max(quotas) - min(quotas) <= 1


QUEUES = st.lists(st.tuples(st.integers(0, 300), st.integers(0, 300)), max_size=50)


@given(QUEUES, st.integers(0, 2000))
def test_no_queue_that_holds_something_gets_more_places_than_stay_free(
    queues: list[tuple[int, int]], free: int
) -> None:
    rooms, held = [room for room, _ in queues], [has for _, has in queues]
    quotas = share_out(keep_room_for_others(rooms, held, free), free)
    left = free - sum(quotas)
    for quota, room, has in zip(quotas, rooms, held, strict=True):
        assert 0 <= quota <= room
        assert quota == 0 or has + quota <= max(left, 1)
        # Whoever holds nothing gets a place while there is one.
        assert quota or has or not room or not left


def test_a_queue_alone_gets_half_of_its_organizations_places_and_each_further_one_finds_some() -> None:
    assert keep_room_for_others([1000], [0], 512) == [256]
    assert keep_room_for_others([1000], [256], 256) == [0]
    assert keep_room_for_others([1000, 1000, 1000], [0, 0, 0], 512) == [128, 128, 128]
    assert keep_room_for_others([1000, 1000, 1000, 1000], [128, 128, 128, 0], 128) == [0, 0, 0, 64]
    assert keep_room_for_others([1000, 3], [0, 0], 1) == [1, 1]


def test_an_organization_alone_gets_three_quarters_of_a_worker_and_its_queues_share_that_alike() -> None:
    def shares(organizations: str, held: list[int], free: int) -> list[int]:
        occupied: Counter[str] = Counter()
        for organization, has in zip(organizations, held, strict=True):
            occupied[organization] += has
        return share_between_organizations([1000] * len(held), organizations, held, occupied, free)

    assert shares("a", [0], 512) == [192]  # half of 384
    assert shares("aaa", [0, 0, 0], 512) == [96, 96, 96]  # a quarter of 384 each
    assert shares("ab", [0, 0], 512) == [109, 109]  # half of 219 each
    # One that has its share gets no more, and another queue or organization finds places.
    assert shares("a", [192], 320) == [0]
    assert shares("aa", [192, 0], 320) == [0, 96]
    assert shares("ab", [192, 0], 320) == [0, 109]


@given(st.lists(st.tuples(st.integers(0, 300), st.sampled_from("abc")), max_size=50), st.integers(0, 400))
def test_no_host_gets_more_than_it_may_have_and_leaves_nothing_unused(queues: list[tuple[int, str]], most: int) -> None:
    rooms, hosts = [room for room, _ in queues], [host for _, host in queues]
    bounded = limit_hosts(rooms, hosts, {"a": 100}, most)
    assert all(0 <= left <= room for left, room in zip(bounded, rooms, strict=True))
    for host, held in (("a", 100), ("b", 0), ("c", 0)):
        wanted = sum(room for room, of in queues if of == host)
        given_ = sum(left for left, of in zip(bounded, hosts, strict=True) if of == host)
        assert given_ == min(wanted, max(0, most - held))


def test_hosts_are_told_apart_by_port_and_not_by_path() -> None:
    urls = [
        "https://a.example/x",
        "https://A.example:443/y",
        "http://a.example/",
        "http://a.example:80",
        "https://b.example",
    ]
    assert [host_of(url) for url in urls] == [
        "a.example:443", "a.example:443", "a.example:80", "a.example:80", "b.example:443",
    ]  # fmt: skip


@given(st.floats(0.01, 1000), st.floats(0, 100), st.floats(0, 100))
def test_a_rate_limit_never_allows_more_than_its_burst(rate: float, reserved: float, now: float) -> None:
    assert allowed_now(rate, reserved, now) <= burst(rate) + 1e-6


@given(st.floats(0.01, 1000), st.floats(0, 100), st.integers(1, 100))
def test_a_rate_limit_that_is_used_up_says_when_it_allows_the_next(rate: float, now: float, more: int) -> None:
    reserved = reserve(rate, now, now, int(burst(rate)) + more)
    at = next_allowed_at(rate, reserved)
    assert allowed_now(rate, reserved, at + 1e-6) == 1
    assert allowed_now(rate, reserved, at - 0.1 / rate) < 1


def _accept(organization: Organization, count: int) -> None:
    for _ in range(count):
        ingest(organization.id, NewEvent("order.created", "{}", None))
    while fan_out_batch(1000):
        pass


def _subscribe(organization: Organization, **options: object) -> Subscription:
    return subscriptions.create(organization.id, url="http://127.0.0.1:9/", event_types=["*"], **options)[0]  # type: ignore[arg-type]


@pytest.mark.django_db
def test_a_claim_takes_no_more_than_the_queue_s_window(organization: Organization) -> None:
    subscription = _subscribe(organization)
    _accept(organization, 20)
    SubscriptionQueue.objects.filter(pk=subscription.pk).update(concurrency_window=3)
    assert len(claim(100).deliveries) == 3
    assert len(claim(100).deliveries) == 0
    assert SubscriptionQueue.objects.get(pk=subscription.pk).in_flight == 3


@pytest.mark.django_db
def test_a_subscription_s_own_bound_wins_over_the_setting(organization: Organization) -> None:
    subscription = _subscribe(organization, max_in_flight=2)
    _accept(organization, 20)
    SubscriptionQueue.objects.filter(pk=subscription.pk).update(concurrency_window=100)
    assert len(claim(100).deliveries) == 2


@pytest.mark.django_db
def test_a_subscription_with_a_long_queue_does_not_keep_another_one_waiting(
    organization: Organization, other_organization: Organization
) -> None:
    backlogged = _subscribe(organization)
    _accept(organization, 200)
    SubscriptionQueue.objects.filter(pk=backlogged.pk).update(concurrency_window=1000)
    quiet = _subscribe(other_organization)
    _accept(other_organization, 1)
    taken = claim(10).deliveries
    assert {delivery.subscription_id for delivery in taken} == {backlogged.pk, quiet.pk}


@pytest.mark.django_db
def test_an_organization_with_many_subscriptions_does_not_keep_another_one_waiting(
    organization: Organization, other_organization: Organization
) -> None:
    for _ in range(20):
        _subscribe(organization)
    _accept(organization, 5)
    quiet = _subscribe(other_organization)
    _accept(other_organization, 1)
    # Served a moment ago, and still its organization's first queue goes before the other's second.
    taken = claim(2).deliveries
    assert quiet.pk in {delivery.subscription_id for delivery in taken}


@pytest.mark.django_db
@pytest.mark.parametrize("rate", [None, 1.0])
def test_a_queue_that_gave_all_it_had_has_no_backlog_however_little_it_was_allowed_to_give(
    organization: Organization, rate: float | None
) -> None:
    subscription = _subscribe(organization)
    Subscription.objects.update(deliveries_per_second=rate)
    _accept(organization, 1)
    claimed = claim(1, queues=QueueFilter.WITHOUT_BACKLOG)
    assert (len(claimed.deliveries), claimed.backlog, claimed.more) == (1, frozenset(), False)
    queue = SubscriptionQueue.objects.get(pk=subscription.pk)
    assert not queue.has_backlog
    # No claim looks at it again before something is due there.
    assert queue.next_due_at is None or rate


def _have_been_due(seconds: float) -> None:
    due_at = Now() - datetime.timedelta(seconds=seconds)
    Delivery.objects.update(next_attempt_at=due_at)
    SubscriptionQueue.objects.update(next_due_at=due_at)


@pytest.mark.django_db
@pytest.mark.parametrize("window", [2, 40])
def test_what_came_a_moment_ago_is_no_backlog_and_the_next_claim_takes_it(
    organization: Organization, window: int
) -> None:
    subscription = _subscribe(organization)
    _accept(organization, window + 3)
    _have_been_due(0)
    SubscriptionQueue.objects.update(concurrency_window=window)
    first = claim(100, queues=QueueFilter.WITHOUT_BACKLOG)
    assert (len(first.deliveries), first.backlog, first.more) == (window, frozenset(), True)
    SubscriptionQueue.objects.update(concurrency_window=100)
    second = claim(100, queues=QueueFilter.WITHOUT_BACKLOG)
    assert [claimed.subscription_id for claimed in second.deliveries] == [subscription.pk] * 3
    assert not second.more


@pytest.mark.django_db
def test_a_queue_has_a_backlog_while_a_claim_takes_all_that_it_might(organization: Organization) -> None:
    backlogged, quiet = _subscribe(organization), _subscribe(organization)
    _accept(organization, 5)
    _have_been_due(2 * BACKLOG_SECONDS)
    SubscriptionQueue.objects.filter(pk=backlogged.pk).update(concurrency_window=2)
    SubscriptionQueue.objects.filter(pk=quiet.pk).update(concurrency_window=10)
    first = claim(100, queues=QueueFilter.WITHOUT_BACKLOG)  # none is backlogged yet
    assert len(first.deliveries) == 7
    assert first.backlog == {backlogged.pk}
    assert not first.more  # what is left isn't for a claim of this kind
    SubscriptionQueue.objects.update(concurrency_window=10)
    assert [SubscriptionQueue.objects.get(pk=queue.pk).has_backlog for queue in (backlogged, quiet)] == [True, False]
    _accept(organization, 1)
    assert {claimed.subscription_id for claimed in claim(100, queues=QueueFilter.WITHOUT_BACKLOG).deliveries} == {
        quiet.pk
    }
    last = claim(100, queues=QueueFilter.WITH_BACKLOG)
    assert [claimed.subscription_id for claimed in last.deliveries] == [backlogged.pk] * 4
    assert last.backlog == frozenset()
    assert not SubscriptionQueue.objects.filter(has_backlog=True).exists()
    _accept(organization, 1)
    assert claim(100, queues=QueueFilter.WITH_BACKLOG).deliveries == []
    assert len(claim(100).deliveries) == 2


@pytest.mark.django_db
def test_a_claim_tells_when_a_rate_limit_allows_the_next(organization: Organization) -> None:
    _subscribe(organization, deliveries_per_second=2.0)
    _accept(organization, 3)
    first = claim(100)
    assert len(first.deliveries) == 1
    (wait,) = first.rate_waits
    assert 0 < wait <= 0.5
    assert not first.more
    _subscribe(organization)
    assert claim(100).rate_waits == ()  # it isn't due, so nobody looked at it


@pytest.mark.django_db
def test_a_rate_limit_holds_over_many_claims(organization: Organization) -> None:
    subscription = _subscribe(organization, deliveries_per_second=5.0)
    _accept(organization, 30)
    SubscriptionQueue.objects.filter(pk=subscription.pk).update(concurrency_window=1000)
    first = sum(len(claim(100).deliveries) for _ in range(5))
    assert first <= 2
    queue = SubscriptionQueue.objects.get(pk=subscription.pk)
    assert queue.next_due_at is not None
    assert Delivery.objects.filter(status="pending").count() == 30 - first


@pytest.mark.django_db
def test_a_paused_queue_gives_nothing(organization: Organization) -> None:
    from datetime import timedelta

    from django.db.models.functions import Now

    subscription = _subscribe(organization)
    _accept(organization, 3)
    SubscriptionQueue.objects.filter(pk=subscription.pk).update(paused_until=Now() + timedelta(minutes=1))
    assert claim(100).deliveries == []
    SubscriptionQueue.objects.filter(pk=subscription.pk).update(paused_until=Now() - timedelta(minutes=1))
    assert len(claim(100).deliveries) == 3


@pytest.mark.django_db
def test_a_claim_carries_what_the_sender_needs(organization: Organization) -> None:
    subscription, _ = subscriptions.create(
        organization.id, url="http://127.0.0.1:9/x", event_types=["*"], headers={"X-Token": "t"}
    )
    ingest(organization.id, NewEvent("order.created", '{"b": 1.00, "a": 12345678901234567890123}', None))
    fan_out_batch(10)
    (delivery,) = claim(10).deliveries
    assert delivery.event_data == '{"b": 1.00, "a": 12345678901234567890123}'
    assert delivery.endpoint.url == subscription.url
    assert delivery.endpoint.headers == (("X-Token", "t"),)
    assert "whsec" not in repr(delivery)
