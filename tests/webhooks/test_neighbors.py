"""A greedy organization costs itself, and not its neighbors: fan-out, claims, and shared statements."""

from __future__ import annotations

import threading
import uuid
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from core.db import borrow_connection
from core.ids import new_id
from devstack.http_receiver import Receiver, Response
from devstack.waiting import wait_until
from events.ingest import ingest, ingest_batch
from events.models import Event
from events.payload import NewEvent
from orgs.models import Organization
from tests.webhooks.helpers import accept, sending, statuses, subscribe
from triggers_project import jobs
from webhooks import subscriptions
from webhooks.dispatch.allocation import share_between_organizations
from webhooks.dispatch.claim import Occupancy, claim
from webhooks.models import Delivery, DeliveryAttempt, Subscription, SubscriptionQueue
from webhooks.routing.claim_events import ORGANIZATIONS_AT_A_TIME, AcceptedEvent
from webhooks.routing.fan_out import CLAIM_AHEAD, DELIVERIES_AT_A_TIME, FanOut
from webhooks.routing.insert import PIECE
from webhooks.routing.round_shares import SHARED_ROUND, choose_events

pytestmark = pytest.mark.django_db(transaction=True)


def _greedy(organization: Organization, subscriptions_: int, events: int) -> None:
    for _ in range(subscriptions_):
        subscribe(organization)
    ingest_batch(organization.id, [NewEvent("a.b", "{}", None)] * events)


# --- fan-out -----------------------------------------------------------------------------------------


def test_an_event_of_another_organization_is_in_the_next_round_however_many_wait(
    organization: Organization, other_organization: Organization
) -> None:
    _greedy(organization, 40, 900)
    fan_out = FanOut()
    fan_out.run_round(1000)
    subscribe(other_organization)
    event = ingest(other_organization.id, NewEvent("a.b", "{}", None)).event_id
    fan_out.run_round(1000)
    assert Event.objects.get(pk=event).status == "processed"
    assert Event.objects.filter(organization=organization, status="accepted").count() > 700


def test_a_round_that_organizations_share_makes_few_deliveries_and_says_whom_it_left_behind(
    organization: Organization, other_organization: Organization
) -> None:
    _greedy(organization, 40, 100)
    _greedy(other_organization, 1, 3)
    result = FanOut().run_round(1000)
    assert result.left_behind == {organization.id}
    assert Delivery.objects.count() <= DELIVERIES_AT_A_TIME // SHARED_ROUND
    assert Delivery.objects.filter(organization=other_organization).count() == 3


def test_a_round_claims_few_events_more_than_it_can_process_until_they_want_less(
    organization: Organization, other_organization: Organization
) -> None:
    _greedy(organization, 100, 50)
    fan_out = FanOut()
    each = DELIVERIES_AT_A_TIME // 100
    # The first round doesn't know yet how many deliveries an event has.
    assert [fan_out.run_round(1000).seen for _ in range(4)] == [50, CLAIM_AHEAD * each, CLAIM_AHEAD * each, 20]
    assert [fan_out.run_round(1000).seen for _ in range(2)] == [10, 0]
    _greedy(other_organization, 1, 500)
    assert [fan_out.run_round(1000).seen for _ in range(6)] == [20, 40, 80, 160, 200, 0]


def test_what_is_left_to_another_process_is_skipped(
    organization: Organization, other_organization: Organization
) -> None:
    _greedy(organization, 1, 5)
    _greedy(other_organization, 1, 5)
    result = FanOut().run_round(1000, skip=[organization.id])
    assert result.seen == 5
    assert set(Delivery.objects.values_list("organization_id", flat=True)) == {other_organization.id}
    assert FanOut(waited=3600.0).run_round(1000).seen == 0  # too young for the process that works off backlogs


def test_what_does_not_fit_a_small_round_is_left_to_the_process_that_works_off_backlogs(
    organization: Organization,
) -> None:
    for _ in range(DELIVERIES_AT_A_TIME // SHARED_ROUND + 1):
        subscribe(organization, event_types=["big.*"])
    subscribe(organization, event_types=["small.*"])
    ingest(organization.id, NewEvent("small.one", "{}", None))
    ingest(organization.id, NewEvent("big.one", "{}", None))
    fan_out = FanOut()
    result = fan_out.run_round(1000, backlogged=[organization.id])
    assert result.left_behind == {organization.id}
    assert list(Event.objects.filter(status="processed").values_list("type", flat=True)) == ["small.one"]
    result = fan_out.run_round(1000, backlogged=[organization.id])
    assert (result.seen, result.passed_over) == (1, {organization.id})
    # One that wasn't left to another process may have a whole round.
    assert fan_out.run_round(1000).left_behind == frozenset()
    assert not Event.objects.filter(status="accepted").exists()


def test_a_worker_whose_backlog_process_is_gone_does_everything_again(organization: Organization) -> None:
    for _ in range(DELIVERIES_AT_A_TIME // SHARED_ROUND + 1):
        subscribe(organization)
    ingest(organization.id, NewEvent("a.b", "{}", None))
    jobs._state.backlogged[organization.id] = True
    with sending():  # without a backlog process, as after its end
        jobs.fan_out_for(0)  # leaves the event behind, and learns that nobody takes it
        wait_until(lambda: not jobs.fan_out_for(0), "events are left")
    assert not jobs._state.backlogged
    assert not Event.objects.filter(status="accepted").exists()


def test_a_large_insertion_in_pieces_is_the_same_with_pauses(
    organization: Organization, other_organization: Organization
) -> None:
    for _ in range(2 * PIECE + 1):
        subscribe(organization)
    subscribe(other_organization)
    ingest(organization.id, NewEvent("a.b", "{}", None))
    seen_by_others: list[int] = []

    def pause() -> None:
        # From a thread, and so from another transaction: nothing is visible before all of it is.
        thread = threading.Thread(target=lambda: seen_by_others.append(borrow_connection(Delivery.objects.all().count)))
        thread.start()
        thread.join()

    FanOut().run_round(1000, between_pieces=pause)
    assert seen_by_others == [0, 0]
    assert Delivery.objects.count() == 2 * PIECE + 1
    # Processed again, as after a crash of the database, it makes none a second time and knows that it was known.
    Event.objects.update(status="accepted")
    with capture_logs() as lines:
        FanOut().run_round(1000, between_pieces=pause)
    assert [line["outcome"] for line in lines if line["event"] == "event_processed"] == ["already_exists"]


def test_more_organizations_than_a_round_looks_at_take_turns(organization: Organization) -> None:
    others = [Organization.objects.create(name=f"Org {number}") for number in range(ORGANIZATIONS_AT_A_TIME + 10)]
    for each in others:
        ingest_batch(each.id, [NewEvent("a.b", "{}", None)] * 3)
    fan_out = FanOut()
    served: Counter[uuid.UUID] = Counter()
    for _ in range(2):
        before = set(Event.objects.filter(status="processed").values_list("id", flat=True))
        fan_out.run_round(ORGANIZATIONS_AT_A_TIME)  # one event of each
        now = Event.objects.filter(status="processed").exclude(id__in=before)
        served.update(now.values_list("organization_id", flat=True))
    assert len(served) == len(others)


def _event(organization: uuid.UUID) -> AcceptedEvent:
    return AcceptedEvent(new_id(), organization, "a.b")


@given(
    st.lists(st.lists(st.integers(0, 400), min_size=1, max_size=10), min_size=1, max_size=8),
    st.integers(1, 1000),
    st.sets(st.integers(0, 7)),
)
def test_the_choice_of_a_round_is_bounded_in_order_and_never_empty(
    wanted_by_organization: list[list[int]], most: int, overdue: set[int]
) -> None:
    organizations = [new_id() for _ in wanted_by_organization]
    events = [_event(organizations[n]) for n, found in enumerate(wanted_by_organization) for _ in found]
    counts = [count for found in wanted_by_organization for count in found]
    wanted = {event.id: count for event, count in zip(events, counts, strict=True)}
    late = {organizations[n] for n in overdue if n < len(organizations)}
    chosen = choose_events(events, wanted, most, late)
    assert chosen
    for key in organizations:
        own = [event.id for event in events if event.organization_id == key]
        assert [event.id for event in chosen if event.organization_id == key] == own[: sum(e.id in own for e in chosen)]
        assert key not in late or any(event.organization_id == key for event in chosen)
    # Beyond the bound only what can't be put off: the first event of all, and one of each that was passed over.
    bound = most + max(counts) + sum(max(wanted_by_organization[n]) for n in overdue if n < len(organizations))
    assert sum(wanted[event.id] for event in chosen) <= bound


def test_an_organization_that_was_passed_over_comes_first_in_the_next_round(
    organization: Organization, other_organization: Organization
) -> None:
    for _ in range(DELIVERIES_AT_A_TIME // SHARED_ROUND + 1):  # more than a shared round makes
        subscribe(organization, event_types=["big.*"])
    subscribe(other_organization)
    fan_out = FanOut()
    ingest(organization.id, NewEvent("big.one", "{}", None))
    for _ in range(3):
        ingest(other_organization.id, NewEvent("a.b", "{}", None))
        fan_out.run_round(1000)
    assert Event.objects.filter(organization=organization, status="processed").exists()
    assert not Event.objects.filter(status="accepted").exists()


@pytest.mark.parametrize("change", ["add", "disable", "delete", "types"])
def test_the_next_round_knows_of_every_change_of_a_subscription(organization: Organization, change: str) -> None:
    fan_out = FanOut()
    subscription = subscribe(organization, event_types=["a.*"])

    def deliveries_of_an_event() -> list[str]:
        event = ingest(organization.id, NewEvent("a.b", "{}", None)).event_id
        fan_out.run_round(10)
        return statuses(event_id=event)

    assert deliveries_of_an_event() == ["pending"]
    if change == "add":
        subscribe(organization)
        assert deliveries_of_an_event() == ["pending", "pending"]
    elif change == "disable":
        subscriptions.disable(subscription)
        assert deliveries_of_an_event() == ["held"]
    elif change == "delete":
        subscriptions.delete(subscription)
        assert deliveries_of_an_event() == []
    else:
        subscriptions.change(subscription, {"event_types": ["c.d"]})
        assert deliveries_of_an_event() == []


# --- claiming and sending ----------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.integers(0, 100), st.integers(0, 100), st.sampled_from("abc")), max_size=40),
    st.integers(0, 600),
)
def test_no_organization_occupies_more_than_three_times_what_stays_free(
    queues: list[tuple[int, int, str]], free: int
) -> None:
    rooms, in_flight, names = ([queue[n] for queue in queues] for n in range(3))
    occupied: Counter[str] = Counter()
    for name, has in zip(names, in_flight, strict=True):
        occupied[name] += has
    quotas = share_between_organizations(rooms, names, in_flight, occupied, free)
    left = free - sum(quotas)
    assert left >= 0
    for name in set(names):
        got = sum(quota for quota, owner in zip(quotas, names, strict=True) if owner == name)
        assert not got or occupied[name] + got <= max(3 * left, 1)


def test_an_organization_whose_thousand_endpoints_hang_leaves_places_for_another(
    organization: Organization, other_organization: Organization, receiver: Receiver
) -> None:
    receiver.behavior = lambda request, number: Response(delay=0 if request.path == "/healthy" else 60)
    for number in range(60):
        subscribe(organization, receiver.url(f"/hangs/{number}"))
    accept(organization, 2)
    healthy = subscribe(other_organization, receiver.url("/healthy"))
    with sending(capacity=40):
        wait_until(lambda: Delivery.objects.filter(status="delivering").count() >= 25)
        accept(other_organization, 20)
        wait_until(lambda: statuses(subscription=healthy) == ["delivered"] * 20)
        assert Delivery.objects.filter(organization=organization, status="delivering").count() <= 30


def test_a_claim_shares_its_places_between_organizations_and_not_between_queues(
    organization: Organization, other_organization: Organization
) -> None:
    for _ in range(9):
        subscribe(organization)
    subscribe(other_organization)
    SubscriptionQueue.objects.update(concurrency_window=100)
    accept(organization, 20)
    accept(other_organization, 20)
    taken = claim(70, Occupancy(Counter(), Counter(), Counter())).deliveries
    by_organization = Counter(delivery.organization_id for delivery in taken)
    # Of seventy places, ten stay free and each organization gets thirty, the single queue as many as there are.
    assert by_organization[other_organization.id] >= 15
    assert by_organization[organization.id] <= 30


@pytest.mark.parametrize("url", ["http://[::1", "http://a.example:port/", "http://[v1.x]:99999/", "//", ""])
def test_a_url_that_cannot_be_parsed_fails_alone_with_its_reason(
    organization: Organization, other_organization: Organization, receiver: Receiver, url: str
) -> None:
    broken = subscribe(organization)
    Subscription.objects.filter(pk=broken.pk).update(url=url)  # as only a hand could
    healthy = subscribe(other_organization, receiver.url("/healthy"))
    accept(organization, 2)
    accept(other_organization, 5)
    with sending():
        wait_until(lambda: statuses(subscription=healthy) == ["delivered"] * 5)
        wait_until(lambda: DeliveryAttempt.objects.filter(delivery__subscription=broken).count() >= 2)
    assert all(attempt.error_detail for attempt in DeliveryAttempt.objects.filter(delivery__subscription=broken))
