"""Whatever happens to deliveries, in whatever order: no illegal step, no lost row, no wrong count.

A Hypothesis state machine does to two subscriptions' deliveries all that workers, receivers, operators and
the sweep do, as two workers that may die at any moment, on the real database.
"""

from __future__ import annotations

import datetime
import itertools
import uuid
from collections import Counter
from typing import Any

import pytest
from django.db import connection, transaction
from django.db.models import Count, Min
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from events.erasure import erase
from events.ingest import ingest
from events.models import Event
from events.payload import NewEvent
from orgs.keys import create_api_key
from orgs.models import Organization
from tests.conftest import ApiClient
from tests.webhooks.helpers import fan_out_batch, result, subscribe
from webhooks import delivery_actions, subscriptions
from webhooks.delivery_actions import DeliveryAction
from webhooks.destinations.outcome import Failure
from webhooks.dispatch import leases
from webhooks.dispatch.claim import claim
from webhooks.dispatch.delivery import ClaimedDelivery
from webhooks.dispatch.record import record_each
from webhooks.models import Delivery, DeliveryAttempt, Subscription, SubscriptionQueue
from webhooks.ordering_keys import repair_order
from webhooks.upkeep import recovery
from webhooks.upkeep.queue_repair import recount_in_flight, repair_next_due_at

# From which status to which each happening may lead; staying as it is is always allowed.
LEGAL: dict[str, set[tuple[str, str]]] = {
    "fan_out": set(),
    "claim": {("pending", "delivering")},
    "record": {("delivering", to) for to in ("delivered", "pending", "failed", "held", "cancelled")},
    "give_back": {("delivering", to) for to in ("pending", "held", "cancelled", "failed")},
    "time": set(),
    "disable": {("pending", "held")},
    "enable": {("held", "pending")},
    "delete": {("pending", "cancelled"), ("held", "cancelled")},
    "resync": {("pending", "held"), ("held", "pending"), ("pending", "cancelled"), ("held", "cancelled")},
    "retry": {("failed", "pending"), ("delivered", "pending")},
    "replay": {("failed", "pending"), ("delivered", "pending")},
    "hold": {("pending", "held")},
    "resume": {("held", "pending")},
    "skip": {(of, "cancelled") for of in ("pending", "held", "failed")},
    "recover": {("failed", "pending"), ("failed", "held")},
    "erase": {("pending", "cancelled"), ("held", "cancelled")},
}
SETTLED = {"delivered", "failed", "cancelled"}
ANSWERS: list[dict[str, Any]] = [
    {"status": 500},
    {"status": 404},
    {"status": 429, "retry_after": "7"},
    {"status": None, "failure": Failure.TIMEOUT},
    {"status": None, "failure": Failure.CONNECTION_REFUSED},
]


class Deliveries(RuleBasedStateMachine):
    """Two subscriptions, two workers, and everything that can happen to them."""

    def __init__(self) -> None:
        super().__init__()
        self._undo = transaction.atomic()
        self._undo.__enter__()
        self.organization = Organization.objects.create(name="Stateful")
        self.subs = [subscribe(self.organization, ordered=True), subscribe(self.organization)]
        self.workers: list[list[ClaimedDelivery]] = [[], []]
        self.lost: list[ClaimedDelivery] = []
        self.doing = "fan_out"
        self.before: dict[uuid.UUID, Any] = {}
        self.events = 0
        self.expected: set[tuple[uuid.UUID, uuid.UUID]] = set()
        self.erased: set[uuid.UUID] = set()
        self.api = ApiClient(create_api_key(self.organization)[1])
        self.kept: dict[str, tuple[int, bytes]] = {}

    # --- what happens -----------------------------------------------------------------------------

    @rule(count=st.integers(1, 4), key=st.sampled_from([None, "a", "b"]))
    def fan_out(self, count: int, key: str | None) -> None:
        self.doing = "fan_out"
        wanting = [sub.pk for sub in Subscription.objects.filter(deleted_at=None)]
        for _ in range(count):
            event_id = ingest(self.organization.id, NewEvent("a.b", "{}", None, ordering_key=key)).event_id
            self.expected |= {(event_id, pk) for pk in wanting}
        while fan_out_batch(2):
            pass

    @rule(key=st.sampled_from(["k-1", "k-2"]), number=st.integers(1, 2))
    def post_with_a_key(self, key: str, number: int) -> None:
        """The same key and body is answered as the first time, and stores nothing."""
        self.doing = "fan_out"
        event = {"type": "a.b", "data": number, "ordering_key": "a"}
        answer = self.api.request("POST", "/api/events", event, **{"Idempotency-Key": key})
        first = self.kept.setdefault(key, (number, answer.content))
        if first[0] != number:
            assert answer.status_code == 422
        else:
            assert (answer.status_code, answer.content) == (202, first[1])
        if "Idempotency-Replayed" not in answer and answer.status_code == 202:
            wanting = Subscription.objects.filter(deleted_at=None)
            self.expected |= {(uuid.UUID(answer.json()["id"]), sub.pk) for sub in wanting}
        while fan_out_batch(2):
            pass

    @rule(offset=st.integers(0, 5))
    def erase(self, offset: int) -> None:
        """What isn't on its way stays where it is from then on, and holds up nobody."""
        for event in Event.objects.order_by("id")[offset : offset + 1]:
            self.doing = "erase"
            erase(self.organization.pk, event.pk)
            self.erased.add(event.pk)
            assert not Delivery.objects.filter(event_id=event.pk, status__in=["pending", "held"]).exists()

    @rule(worker=st.integers(0, 1), limit=st.integers(1, 8))
    def claim(self, worker: int, limit: int) -> None:
        self.doing = "claim"
        taken = claim(limit).deliveries
        assert len(taken) <= limit
        held_by_others = {c.delivery_id for c in itertools.chain(*self.workers)}
        assert not held_by_others & {c.delivery_id for c in taken}, "claimed twice"
        closed = set(SubscriptionQueue.objects.filter(accepts_deliveries=False).values_list("pk", flat=True))
        assert not closed & {c.subscription_id for c in taken}, "claimed for a closed queue"
        self.it_is_their_turn({c.delivery_id for c in taken})
        self.workers[worker] += taken

    def it_is_their_turn(self, taken: set[uuid.UUID]) -> None:
        """Of an ordering key, nothing is claimed beside another one, or before an earlier one is over."""
        by_key: dict[str, list[Delivery]] = {}
        unfinished = Delivery.objects.filter(ordering_key__isnull=False).exclude(status__in=SETTLED)
        for delivery in unfinished.order_by("ordered_at", "event_id"):
            assert delivery.subscription_id == self.subs[0].pk
            by_key.setdefault(str(delivery.ordering_key), []).append(delivery)
        for deliveries in by_key.values():
            if taken & {delivery.pk for delivery in deliveries}:
                assert [delivery.status for delivery in deliveries].count("delivering") == 1
                assert deliveries[0].pk in taken
                if self.subs[0].ordered_on_failure == "block":
                    failed = Delivery.objects.filter(ordering_key=deliveries[0].ordering_key, status="failed")
                    blocking = failed.exclude(event_id__in=self.erased).order_by("ordered_at", "event_id").first()
                    place = deliveries[0].ordered_at, deliveries[0].event_id
                    assert blocking is None or place < (blocking.ordered_at, blocking.event_id)

    @precondition(lambda self: any(self.workers))
    @rule(worker=st.integers(0, 1), count=st.integers(1, 4), good=st.booleans(), how=st.sampled_from(ANSWERS))
    def answer(self, worker: int, count: int, good: bool, how: dict[str, Any]) -> None:
        self.doing = "record"
        batch, self.workers[worker] = self.workers[worker][:count], self.workers[worker][count:]
        assert record_each([result(c, **({} if good else how)) for c in batch])[0] == []

    @precondition(lambda self: any(self.workers))
    @rule(worker=st.integers(0, 1))
    def receiver_is_gone(self, worker: int) -> None:
        self.doing = "record"
        batch, self.workers[worker] = self.workers[worker][:1], self.workers[worker][1:]
        record_each([result(c, 410) for c in batch])

    @precondition(lambda self: self.lost)
    @rule(good=st.booleans())
    def late_result(self, good: bool) -> None:
        """What a worker that was taken for dead has to say changes nothing but the attempts."""
        self.doing = "time"
        record_each([result(self.lost.pop(), 200 if good else 500)])

    @precondition(lambda self: any(self.workers))
    @rule(worker=st.integers(0, 1))
    def worker_dies(self, worker: int) -> None:
        self.doing = "give_back"
        ids = [c.delivery_id for c in self.workers[worker]]
        Delivery.objects.filter(id__in=ids).update(lease_expires_at=datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC))
        assert leases.expire() == len(ids)
        self.lost += self.workers[worker]
        self.workers[worker] = []

    @precondition(lambda self: any(self.workers))
    @rule(worker=st.integers(0, 1))
    def worker_stops(self, worker: int) -> None:
        self.doing = "give_back"
        assert leases.release({c.lease_id for c in self.workers[worker]}) == len(self.workers[worker])
        self.workers[worker] = []

    @rule(seconds=st.sampled_from([1, 10, 100]))
    def time_passes(self, seconds: int) -> None:
        """Every time in the database moves into the past, but for the leases of workers that live."""
        self.doing = "time"
        with connection.cursor() as cursor:
            cursor.execute(
                "UPDATE webhooks_delivery SET next_attempt_at = next_attempt_at - make_interval(secs => %s)", [seconds]
            )
            cursor.execute(
                "UPDATE webhooks_subscriptionqueue SET next_due_at = next_due_at - make_interval(secs => %s),"
                " paused_until = paused_until - make_interval(secs => %s)",
                [seconds, seconds],
            )

    @rule(which=st.integers(0, 1))
    def disable(self, which: int) -> None:
        self.doing = "disable"
        subscriptions.disable(self.subs[which])

    @rule(which=st.integers(0, 1))
    def enable(self, which: int) -> None:
        self.doing = "enable"
        subscriptions.enable(self.subs[which])

    @rule(sure=st.integers(0, 9))
    def delete(self, sure: int) -> None:
        if sure == 0:  # seldom, or little else would happen
            self.doing = "delete"
            subscriptions.delete(self.subs[1])

    @rule(which=st.integers(0, 1), rows=st.integers(1, 3))
    def resync(self, which: int, rows: int) -> None:
        self.doing = "resync"
        subscriptions.resync(self.subs[which].pk, rows)

    @rule(what=st.sampled_from(list(DeliveryAction)), offset=st.integers(0, 10), count=st.integers(1, 5))
    def operator(self, what: DeliveryAction, offset: int, count: int) -> None:
        self.doing = what.verb
        ids = list(Delivery.objects.order_by("id").values_list("id", flat=True)[offset : offset + count])
        delivery_actions.apply(what, ids)

    @rule(what=st.sampled_from(["skip", "block"]))
    def decide(self, what: str) -> None:
        """What becomes of a key after a delivery has failed."""
        self.doing = "time"
        subscriptions.change(self.subs[0], {"ordered_on_failure": what, "ordered_attempts": 1})

    @rule(which=st.integers(0, 1), rows=st.integers(1, 6))
    def recover(self, which: int, rows: int) -> None:
        self.doing = "recover"
        run = recovery.start(self.subs[which], datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC))
        recovery.advance(run.id, rows)

    # --- what is always true ----------------------------------------------------------------------

    @invariant()
    def all_is_well(self) -> None:
        self.every_step_is_legal()  # first: it reads what the others look at
        self.no_delivery_is_missing_or_there_twice()
        self.columns_agree_with_the_status()
        self.workers_have_what_is_delivering()
        self.in_flight_is_exact()
        self.no_queue_wakes_too_late()
        self.attempts_are_numbered_without_gap()

    def every_step_is_legal(self) -> None:
        now = {d.id: d for d in Delivery.objects.all()}
        assert self.before.keys() <= now.keys(), "a delivery is gone"
        for key, delivery in now.items():
            old = self.before.get(key)
            if old is not None and old.status != delivery.status:
                assert (old.status, delivery.status) in LEGAL[self.doing], (self.doing, old.status, delivery.status)
                repeats = self.doing in ("retry", "replay", "recover") and old.status in SETTLED
                assert not (repeats and delivery.event_id in self.erased), "there is nothing to send"
            if old is not None:
                assert delivery.attempt_count >= old.attempt_count
        self.before = now

    def no_delivery_is_missing_or_there_twice(self) -> None:
        rows = list(Delivery.objects.values_list("event_id", "subscription_id"))
        assert len(rows) == len(set(rows))
        assert set(rows) == self.expected

    def columns_agree_with_the_status(self) -> None:
        for delivery in self.before.values():
            claimed = delivery.status == "delivering"
            assert (delivery.lease_id is not None) == (delivery.lease_expires_at is not None) == claimed
            assert (delivery.completed_at is not None) == (delivery.status in SETTLED), delivery.status
            if delivery.status in ("pending", "held"):
                assert delivery.next_attempt_at is not None

    def workers_have_what_is_delivering(self) -> None:
        with_workers = {c.delivery_id: c.lease_id for c in itertools.chain(*self.workers)}
        delivering = {d.id: d.lease_id for d in self.before.values() if d.status == "delivering"}
        assert delivering == with_workers

    def in_flight_is_exact(self) -> None:
        claimed = Counter(d.subscription_id for d in self.before.values() if d.status == "delivering")
        for queue in SubscriptionQueue.objects.all():
            assert queue.in_flight == claimed[queue.pk]
        assert recount_in_flight() == 0

    def no_queue_wakes_too_late(self) -> None:
        earliest = dict(
            Delivery.objects.filter(status="pending")
            .values_list("subscription_id")
            .annotate(at=Min("next_attempt_at"))
            .order_by()
        )
        with connection.cursor() as cursor:
            cursor.execute("SELECT clock_timestamp()")
            now = cursor.fetchone()[0]
        for queue in SubscriptionQueue.objects.all():
            if queue.accepts_deliveries and queue.pk in earliest:
                assert queue.next_due_at is not None
                assert queue.next_due_at <= max(earliest[queue.pk], now)
            if not queue.accepts_deliveries and queue.pk in earliest:
                assert queue.needs_resync, "pending for a closed queue, and nobody will see to it"
        assert repair_next_due_at() == 0

    def attempts_are_numbered_without_gap(self) -> None:
        numbers: dict[uuid.UUID, list[int]] = {}
        for delivery_id, number in DeliveryAttempt.objects.order_by("id").values_list("delivery_id", "number"):
            numbers.setdefault(delivery_id, []).append(number)
        for delivery in self.before.values():
            assert numbers.get(delivery.id, []) == list(range(1, delivery.attempt_count + 1))

    # --- the end ----------------------------------------------------------------------------------

    def teardown(self) -> None:
        """Everything still comes to an end when receivers are well and operators let go."""
        try:
            for sub in self.subs:
                subscriptions.enable(sub)
            for worker in (0, 1):
                if self.workers[worker]:
                    self.worker_dies(worker)
            for _ in range(200):
                for sub in self.subs:
                    subscriptions.resync(sub.pk)
                delivery_actions.apply(
                    DeliveryAction.RESUME, Delivery.objects.filter(status="held").values_list("id", flat=True)
                )
                # A key that is blocked goes on when what it waits for is given up.
                delivery_actions.apply(
                    DeliveryAction.SKIP, Delivery.objects.filter(status="failed").values_list("id", flat=True)
                )
                self.time_passes(36_000)
                repair_order()  # as the sweep does: a delivery whose worker was lost too often is over
                record_each([result(c) for c in claim(50).deliveries])
                if not Delivery.objects.exclude(status__in=SETTLED).exists():
                    break
            left = Delivery.objects.exclude(status__in=SETTLED).values("status").annotate(n=Count("id"))
            assert not left, f"stuck: {list(left)}"
        finally:
            transaction.set_rollback(True)
            self._undo.__exit__(None, None, None)


@pytest.mark.django_db
def test_no_order_of_happenings_breaks_a_delivery(settings: Any) -> None:
    settings.DELIVERY_RETRY_SCHEDULE = (0.0, 5.0, 60.0)
    settings.BREAKER_THRESHOLD = 3
    run_state_machine_as_test(Deliveries, settings=PROFILE)  # type: ignore[no-untyped-call]


PROFILE = settings(
    max_examples=15,
    stateful_step_count=25,
    phases=[Phase.generate],
    print_blob=True,
)
