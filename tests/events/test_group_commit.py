"""Many requests, one commit: each gets what it would have got alone, and none harms another."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import psycopg
import pytest
from django.db import connection
from django.db.models.functions import Now

from core.async_redis import AsyncRedis
from core.problems import Problem
from events import group_commit
from events.group_commit import Counted, GroupCommit, PendingResponse
from events.idempotent_commit import IdempotentCommit
from events.ingest import Ingested, IngestStatus
from events.models import DedupKey, Event
from events.payload import NewEvent
from orgs.front_door import KeyChanged
from orgs.idempotency import Kept, Once
from orgs.keys import Caller, authenticate, create_api_key
from orgs.models import ApiKey, Organization

pytestmark = pytest.mark.django_db(transaction=True)

T = TypeVar("T")
ACCEPTED, DUPLICATE, CONFLICT = IngestStatus.ACCEPTED, IngestStatus.DUPLICATE, IngestStatus.CONFLICT


def caller_of(organization: Organization) -> Caller:
    """Return the holder of a new key."""
    caller = authenticate(create_api_key(organization)[1])
    assert caller is not None
    return caller


def with_commits(work: Callable[[GroupCommit], Awaitable[T]]) -> T:
    """Run `work` with a running GroupCommit."""

    async def run() -> T:
        async with GroupCommit() as commits:
            return await work(commits)

    return asyncio.run(run())


def accept_at_once(*requests: tuple[Caller, list[NewEvent]]) -> list[Any]:
    """Offer several requests at the same moment; return for each what became of its events, or its exception."""

    async def offer(commits: GroupCommit) -> list[Any]:
        accepted = (commits.accept(caller, events, Counted()) for caller, events in requests)
        return await asyncio.gather(*accepted, return_exceptions=True)

    return [one if isinstance(one, BaseException) else one[0] for one in with_commits(offer)]


def event(number: int = 0, dedup_id: str | None = None) -> NewEvent:
    return NewEvent("order.created", str(number), dedup_id)


def statuses(results: list[Ingested]) -> list[IngestStatus]:
    return [result.status for result in results]


def transactions() -> list[list[str]]:
    """Return the data of the stored events by transaction, the earliest first."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT array_agg(data ORDER BY id) FROM events_event GROUP BY xmin::text ORDER BY min(created_at)"
        )
        return [row[0] for row in cursor.fetchall()]


def test_requests_of_several_organizations_that_come_together_share_a_commit(
    organization: Organization, other_organization: Organization
) -> None:
    callers = [caller_of(organization), caller_of(other_organization)]
    results = accept_at_once(*((callers[number % 2], [event(number)]) for number in range(20)))
    assert all(statuses(one) == [ACCEPTED] for one in results)
    assert len(transactions()) == 1
    for number, one in enumerate(results):
        stored = Event.objects.get(id=one[0].event_id)
        assert (stored.data, stored.organization_id) == (str(number), callers[number % 2].organization_id)


def test_what_comes_while_a_commit_is_under_way_shares_the_next_one(organization: Organization) -> None:
    caller = caller_of(organization)

    async def offer(commits: GroupCommit) -> None:
        first = asyncio.create_task(commits.accept(caller, [event(0)], Counted()))
        await asyncio.sleep(0)  # the first one arrives alone
        await asyncio.sleep(0)
        await asyncio.gather(first, *(commits.accept(caller, [event(number)], Counted()) for number in range(1, 30)))

    with_commits(offer)
    assert len(transactions()) == 2
    assert len(transactions()[1]) == 29


@pytest.mark.parametrize("before", [1, 2])
def test_after_a_commit_for_several_requests_those_that_are_there_share_the_next_one(
    organization: Organization, before: int
) -> None:
    caller = caller_of(organization)

    async def offer(commits: GroupCommit) -> None:
        await asyncio.gather(*(commits.accept(caller, [event(number)], Counted()) for number in range(before)))
        tasks = []
        for number in range(10, 15):  # one in each pass of the event loop
            tasks.append(asyncio.create_task(commits.accept(caller, [event(number)], Counted())))
            await asyncio.sleep(0)
        await asyncio.gather(*tasks)

    with_commits(offer)
    assert (transactions()[1] == ["10", "11", "12", "13", "14"]) is (before > 1)


def test_a_commit_does_not_wait_for_ever_while_more_and_more_requests_come(
    organization: Organization, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group_commit, "ENOUGH_REQUESTS", 10)
    caller = caller_of(organization)

    async def offer(commits: GroupCommit) -> None:
        await asyncio.gather(*(commits.accept(caller, [event(number)], Counted()) for number in range(2)))
        tasks = [asyncio.create_task(commits.accept(caller, [event(2)], Counted()))]
        while not tasks[0].done() and len(tasks) < 2000:
            tasks.append(asyncio.create_task(commits.accept(caller, [event(len(tasks))], Counted())))
            await asyncio.sleep(0)
        assert tasks[0].done()
        await asyncio.gather(*tasks)

    with_commits(offer)
    assert 10 <= len(transactions()[1]) <= 12  # more may arrive in the pass that brings enough


def test_a_request_that_waits_for_others_is_told_that_the_server_stops(organization: Organization) -> None:
    caller = caller_of(organization)

    async def offer() -> None:
        async with GroupCommit() as commits:
            await asyncio.gather(*(commits.accept(caller, [event(number)], Counted()) for number in range(2)))
            waiting = asyncio.create_task(commits.accept(caller, [event(2)], Counted()))
            await asyncio.sleep(0)  # it arrives,
            await asyncio.sleep(0)  # and the next pass may bring others
        with pytest.raises(psycopg.OperationalError, match="stopping"):
            await waiting

    asyncio.run(offer())
    assert transactions() == [["0", "1"]]


def test_a_dedup_id_that_comes_twice_at_once_is_accepted_once(
    organization: Organization, other_organization: Organization
) -> None:
    ours, others = caller_of(organization), caller_of(other_organization)
    results = accept_at_once(
        (ours, [event(1, "d")]), (ours, [event(1, "d")]), (ours, [event(2, "d")]), (others, [event(1, "d")]),
        (ours, [event(3, "d"), event(3, "e"), event(3, "e")]),
    )  # fmt: skip
    assert [statuses(one) for one in results] == [
        [ACCEPTED], [DUPLICATE], [CONFLICT], [ACCEPTED], [CONFLICT, ACCEPTED, DUPLICATE],
    ]  # fmt: skip
    assert {one[0].event_id for one in results[:3]} == {results[0][0].event_id}
    assert Event.objects.count() == 3
    assert accept_at_once((ours, [event(1, "d")]))[0] == [Ingested(DUPLICATE, results[0][0].event_id)]


def test_a_dedup_id_whose_window_has_ended_is_free_again(organization: Organization) -> None:
    caller = caller_of(organization)
    first = accept_at_once((caller, [event(1, "d")]))[0]
    DedupKey.objects.update(expires_at=Now())
    again = accept_at_once((caller, [event(1, "d")]))[0]
    assert statuses(again) == [ACCEPTED]
    assert again[0].event_id != first[0].event_id


def test_an_event_that_the_database_refuses_fails_alone(
    organization: Organization, other_organization: Organization
) -> None:
    poison = NewEvent("a\x00b", "1", None)  # nothing that passes `parse_event` is like this
    ours, others = caller_of(organization), caller_of(other_organization)
    results = accept_at_once((ours, [event(1)]), (others, [event(2), poison]), (ours, [event(3)]))
    assert statuses(results[0]) == statuses(results[2]) == [ACCEPTED]
    assert isinstance(results[1], psycopg.DataError)
    assert sorted(Event.objects.values_list("data", flat=True)) == ["1", "3"]  # a batch is stored whole or not at all
    assert isinstance(accept_at_once((others, [poison]))[0], psycopg.DataError)


@pytest.mark.parametrize("how", ["revoked", "expired", "scope taken", "organization inactive", "rate changed"])
def test_a_key_that_is_no_longer_as_remembered_stores_nothing_and_harms_nobody(
    organization: Organization, other_organization: Organization, how: str
) -> None:
    ours, others = caller_of(organization), caller_of(other_organization)
    if how == "revoked":
        ApiKey.objects.filter(id=ours.key_id).update(revoked_at=Now())
    elif how == "expired":
        ApiKey.objects.filter(id=ours.key_id).update(expires_at=Now())
    elif how == "scope taken":
        ApiKey.objects.filter(id=ours.key_id).update(scopes=["events:read"])
    elif how == "organization inactive":
        Organization.objects.filter(id=organization.id).update(is_active=False)
    else:
        Organization.objects.filter(id=organization.id).update(events_per_minute=1)
    results = accept_at_once((ours, [event(1)]), (others, [event(2)]), (ours, [event(3, "d")]))
    assert isinstance(results[0], KeyChanged)
    assert isinstance(results[2], KeyChanged)
    assert statuses(results[1]) == [ACCEPTED]
    assert Event.objects.count() == 1
    assert not DedupKey.objects.exists()


def test_the_rate_limit_counts_each_request_of_a_group(organization: Organization) -> None:
    organization.events_per_minute = 4
    organization.save()
    caller = caller_of(organization)
    results = accept_at_once(*((caller, [event(number)] * size) for number, size in enumerate((1, 2, 3, 1, 1))))
    codes = [one.code if isinstance(one, Problem) else "" for one in results]
    assert codes == ["", "", "rate_limited", "", "rate_limited"]
    assert sorted(Event.objects.values_list("data", flat=True)) == ["0", "1", "1", "3"]


def test_organizations_take_turns_when_a_commit_is_full(
    organization: Organization, other_organization: Organization, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group_commit, "MOST_EVENTS", 2)
    ours, others = caller_of(organization), caller_of(other_organization)
    accept_at_once(*((ours, [event(number)]) for number in range(5)), (others, [event(9)]))
    assert transactions() == [["0", "9"], ["1", "2"], ["3", "4"]]


def test_a_commit_takes_no_more_requests_once_it_has_bytes_enough(
    organization: Organization, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group_commit, "MOST_BYTES", 5)
    caller = caller_of(organization)
    accept_at_once(*((caller, [event(number)]) for number in (100, 200, 300, 400, 500)))
    assert transactions() == [["100", "200"], ["300", "400"], ["500"]]


@pytest.mark.parametrize("events_per_minute", [0, 1000])
def test_a_request_whose_client_is_gone_before_its_commit_stores_nothing(
    organization: Organization, events_per_minute: int
) -> None:
    organization.events_per_minute = events_per_minute
    organization.save()
    caller = caller_of(organization)

    async def offer(commits: GroupCommit) -> None:
        gone = asyncio.create_task(commits.accept(caller, [event(1)], Counted()))
        await asyncio.sleep(0)  # it has arrived
        gone.cancel()
        await commits.accept(caller, [event(2)], Counted())
        with pytest.raises(asyncio.CancelledError):
            await gone

    with_commits(offer)
    assert transactions() == [["2"]]


def test_that_new_events_are_committed_is_told_before_their_requests_are(organization: Organization) -> None:
    caller = caller_of(organization)
    told: list[str] = []

    async def offer() -> None:
        async with GroupCommit(lambda: told.append("workers")) as commits:
            for name, dedup_id in (("new", "d"), ("duplicate", "d"), ("nothing", None)):
                await commits.accept(caller, [event(1, dedup_id)] if dedup_id else [], Counted())
                told.append(name)

    asyncio.run(offer())
    assert told == ["workers", "new", "duplicate", "nothing"]


def test_the_workers_are_told_of_events_whose_client_is_gone_since_their_commit_began(
    organization: Organization,
) -> None:
    caller = caller_of(organization)
    told: list[int] = []

    async def offer() -> None:
        parameters = {**connection.get_connection_params(), "cursor_factory": psycopg.AsyncCursor}
        async with (
            GroupCommit(lambda: told.append(1)) as commits,
            await psycopg.AsyncConnection.connect(**parameters) as other,
        ):
            await other.execute(
                "INSERT INTO events_dedupkey (organization_id, dedup_id, event_id, fingerprint, expires_at) "
                "VALUES (%s, 'd', gen_random_uuid(), '', now())",
                (organization.id,),
            )
            gone = asyncio.create_task(commits.accept(caller, [event(1, "d")], Counted()))
            waits = "SELECT 1 FROM pg_locks WHERE NOT granted AND transactionid = pg_current_xact_id()::xid"
            while not await (await other.execute(waits)).fetchone():
                await asyncio.sleep(0.005)
            gone.cancel()
            await other.rollback()
            await commits.accept(caller, [], Counted())

    asyncio.run(offer())
    assert told == [1]
    assert transactions() == [["1"]]


def test_after_the_database_has_closed_the_connection_the_next_event_is_accepted(organization: Organization) -> None:
    caller = caller_of(organization)

    async def offer(commits: GroupCommit) -> list[IngestStatus]:
        found = []
        for number in range(3):
            results, _ = await commits.accept(caller, [event(number)], Counted())
            found += statuses(results)
            await asyncio.to_thread(_end_other_connections)
        return found

    assert with_commits(offer) == [ACCEPTED] * 3


def _end_other_connections() -> None:
    with psycopg.connect(**{**connection.get_connection_params(), "cursor_factory": None}) as own:
        own.execute(
            "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid() AND query LIKE '%%events_dedupkey%%'"
        )


class LookingRedis(AsyncRedis):
    """Notes how many transactions are open and wait for nothing but their client, each time that Redis is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.open_transactions: list[int] = []

    async def run(self, commands: Sequence[Sequence[str | int]]) -> list[Any]:
        with psycopg.connect(**{**connection.get_connection_params(), "cursor_factory": None}) as own:
            row = own.execute(
                "SELECT count(*) FROM pg_stat_activity"
                " WHERE datname = current_database() AND state = 'idle in transaction'"
            ).fetchone()
        assert row is not None
        self.open_transactions.append(row[0])
        return await super().run(commands)


def test_no_transaction_waits_for_redis_and_what_a_key_refuses_uses_up_no_limit(organization: Organization) -> None:
    organization.events_per_minute = 3
    organization.save()
    caller = caller_of(organization)

    async def offer() -> list[Any]:
        parameters = {**connection.get_connection_params(), "cursor_factory": psycopg.AsyncCursor}
        async with IdempotentCommit() as commits, await psycopg.AsyncConnection.connect(**parameters) as other:
            await commits.redis.close()
            commits.redis = redis = LookingRedis()

            async def post(key: str) -> Any:
                pending = PendingResponse(
                    Once(organization.id, key, b"f", caller.key_id, "events:write"), lambda _: Kept(202, "", b"")
                )
                try:
                    _, decision = await commits.accept(caller, [event()], Counted(), pending_response=pending)
                except Problem as problem:
                    return problem.code
                assert decision is not None
                return pending.is_replayed, decision.remaining

            lock = Once(organization.id, "used", b"f", caller.key_id, "events:write").lock
            await other.execute("SELECT pg_advisory_xact_lock(%s)", (lock,))
            got = [await post("used")]
            await other.rollback()
            got += [await post(key) for key in ("used", "used", "b", "c", "d")]
            assert redis.open_transactions
            assert not any(redis.open_transactions)
            return got

    # Replays have a limit of their own.
    assert asyncio.run(offer()) == [
        "idempotency_key_in_use", (False, 2), (True, 2), (False, 1), (False, 0), "rate_limited",
    ]  # fmt: skip
    assert Event.objects.count() == 3


def test_what_was_not_counted_because_its_key_was_in_use_is_not_stored_once_the_key_is_free(
    organization: Organization,
) -> None:
    organization.events_per_minute = 3
    organization.save()
    caller = caller_of(organization)

    def pending(key: str) -> PendingResponse:
        once = Once(organization.id, key, b"f", caller.key_id, "events:write")
        return PendingResponse(once, lambda _: Kept(202, "", b""))

    async def offer() -> list[Any]:
        parameters = {**connection.get_connection_params(), "cursor_factory": psycopg.AsyncCursor}
        async with IdempotentCommit() as commits, await psycopg.AsyncConnection.connect(**parameters) as other:

            class Releasing(AsyncRedis):
                """Lets go of the key while the other request's event is counted."""

                async def run(self, commands: Sequence[Sequence[str | int]]) -> list[Any]:
                    await other.rollback()
                    return await super().run(commands)

            await commits.redis.close()
            commits.redis = Releasing()
            await other.execute("SELECT pg_advisory_xact_lock(%s)", (pending("used").once.lock,))
            return await asyncio.gather(
                *(
                    commits.accept(caller, [event(number)], Counted(), pending_response=pending(key))
                    for number, key in enumerate(("used", "free"))
                ),
                return_exceptions=True,
            )

    refused, accepted = asyncio.run(offer())
    assert isinstance(refused, Problem)
    assert refused.code == "idempotency_key_in_use"
    assert statuses(accepted[0]) == [ACCEPTED]
    assert transactions() == [["1"]]


def test_who_used_a_key_for_another_request_learns_it_when_the_key_is_free_again(organization: Organization) -> None:
    caller = caller_of(organization)

    def pending(key: str, content: bytes) -> PendingResponse:
        once = Once(organization.id, key, content, caller.key_id, "events:write")
        return PendingResponse(once, lambda _: Kept(202, "", b""))

    async def offer() -> bool:
        parameters = {**connection.get_connection_params(), "cursor_factory": psycopg.AsyncCursor}
        async with IdempotentCommit() as commits, await psycopg.AsyncConnection.connect(**parameters) as other:
            await commits.accept(caller, [event(1)], Counted(), pending_response=pending("k", b"one"))
            await other.execute(
                "INSERT INTO events_dedupkey (organization_id, dedup_id, event_id, fingerprint, expires_at) "
                "VALUES (%s, 'd', gen_random_uuid(), '', now())",
                (organization.id,),
            )
            reused, slow = (
                asyncio.create_task(commits.accept(caller, [offered], Counted(), pending_response=answer))
                for offered, answer in ((event(2), pending("k", b"another")), (event(3, "d"), pending("l", b"slow")))
            )
            waits = "SELECT 1 FROM pg_locks WHERE NOT granted AND transactionid = pg_current_xact_id()::xid"
            while not await (await other.execute(waits)).fetchone():
                await asyncio.sleep(0.005)
            told_early = reused.done()
            await other.rollback()
            with pytest.raises(Problem, match="another request"):
                await reused
            await slow
        return told_early

    assert not asyncio.run(offer()), "the transaction still holds the lock on the key"


def test_a_request_that_is_cancelled_while_it_is_stored_keeps_its_answer(organization: Organization) -> None:
    """Else its events would be stored a second time when it is sent again with its key."""
    caller = caller_of(organization)
    once = Once(organization.id, "k", b"f", caller.key_id, "events:write")

    def pending() -> PendingResponse:
        return PendingResponse(once, lambda results: Kept(202, "", str(results[0].event_id).encode()))

    async def offer() -> PendingResponse:
        parameters = {**connection.get_connection_params(), "cursor_factory": psycopg.AsyncCursor}
        async with IdempotentCommit() as commits, await psycopg.AsyncConnection.connect(**parameters) as other:
            await other.execute(
                "INSERT INTO events_dedupkey (organization_id, dedup_id, event_id, fingerprint, expires_at) "
                "VALUES (%s, 'd', gen_random_uuid(), '', now())",
                (organization.id,),
            )
            first = asyncio.create_task(
                commits.accept(caller, [event(1), event(2, "d")], Counted(), pending_response=pending())
            )
            waits = "SELECT 1 FROM pg_locks WHERE NOT granted AND transactionid = pg_current_xact_id()::xid"
            while not await (await other.execute(waits)).fetchone():
                await asyncio.sleep(0.005)
            first.cancel()
            await asyncio.wait({first})
            await other.rollback()
            again = pending()
            await commits.accept(caller, [event(1), event(2, "d")], Counted(), pending_response=again)
            return again

    assert asyncio.run(offer()).is_replayed
    assert Event.objects.count() == 2
