"""Who waits for a place takes turns, and nobody takes them all."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from core import turns as turns_module
from core.turns import Turns


def test_who_has_much_waiting_is_next_as_often_as_who_has_little() -> None:
    order: list[str] = []

    async def work(turns: Turns, who: str) -> None:
        async with turns.turn(who):
            order.append(who)
            await asyncio.sleep(0)

    async def run() -> None:
        turns = Turns(1)
        await asyncio.gather(*(work(turns, "greedy") for _ in range(50)), *(work(turns, who) for who in "abab"))
        await asyncio.wait_for(work(turns, "later"), 10)

    asyncio.run(run())
    # The first one found a free place, and the second one's turn came before anybody else waited.
    assert sorted(order[:8]) == ["a", "a", "b", "b", *["greedy"] * 4]
    assert Counter(order) == {"greedy": 50, "a": 2, "b": 2, "later": 1}


def test_nobody_holds_all_places_and_a_cancelled_wait_takes_none() -> None:
    async def run() -> None:
        turns = Turns(8)
        end = asyncio.Event()
        inside: Counter[str] = Counter()

        async def hold(who: str) -> None:
            async with turns.turn(who):
                inside[who] += 1
                await end.wait()

        holders = [asyncio.create_task(hold("greedy")) for _ in range(20)]
        await asyncio.sleep(0)
        others = [asyncio.create_task(hold(who)) for who in "abc"]
        await asyncio.sleep(0)
        assert inside == {"greedy": 6, "a": 1, "b": 1}
        for holder in holders[6:]:
            holder.cancel()
        others[2].cancel()
        # One whose turn comes in the moment in which it is cancelled passes it on.
        last = [asyncio.create_task(hold(who)) for who in "de"]
        await asyncio.sleep(0)
        end.set()
        await asyncio.sleep(0)
        last[0].cancel()
        await asyncio.gather(*holders, *others, *last, return_exceptions=True)
        assert inside["e"] == 1
        assert inside["greedy"] == 6
        for _ in range(8):
            async with asyncio.timeout(10), turns.turn("x"):
                pass

    asyncio.run(run())


def test_whoever_gives_way_holds_one_place_and_none_while_they_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns_module, "STUCK_SECONDS", 60.0)

    async def run() -> None:
        giving_way = {"greedy"}
        turns = Turns(8, gives_way=giving_way.__contains__)
        inside: Counter[str] = Counter()
        most: Counter[str] = Counter()
        entered: list[float] = []
        loop = asyncio.get_running_loop()

        async def work(who: str, rest: float) -> None:
            async with turns.turn(who) as turn:
                entered.append(loop.time())
                inside[who] += 1
                most[who] = max(most[who], inside[who])
                await asyncio.sleep(0.001)
                inside[who] -= 1
                turn.rest = rest

        await asyncio.gather(*(work("greedy", 0.05) for _ in range(3)), *(work("other", 0.0) for _ in range(4)))
        assert (most["greedy"], most["other"]) == (1, 4)
        assert max(entered) - min(entered) >= 0.1  # the third one waited for two rests
        giving_way.clear()
        await asyncio.gather(*(work("greedy", 0.0) for _ in range(4)))
        assert most["greedy"] == 4

    asyncio.run(run())


def test_whoever_gives_way_waits_as_long_as_their_place_changes_hands_but_not_forever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(turns_module, "STUCK_SECONDS", 0.5)

    async def run(requests: int) -> int:
        turns = Turns(8, gives_way=lambda who: True)
        inside = most = 0

        async def work() -> None:
            nonlocal inside, most
            async with turns.turn("greedy"):
                inside += 1
                most = max(most, inside)
                await asyncio.sleep(0.02)
                inside -= 1

        await asyncio.gather(*(work() for _ in range(requests)))
        assert not turns._held
        assert not turns._entered_at
        return most

    # The last one waits for a second, and each of them gets the place a moment after the one before.
    assert asyncio.run(run(50)) == 1
    monkeypatch.setattr(turns_module, "MOST_WAIT_SECONDS", 0.5)
    assert asyncio.run(run(100)) > 1


def test_a_request_that_waits_for_something_keeps_the_others_of_whoever_gives_way_only_for_a_moment() -> None:
    async def run() -> None:
        turns = Turns(4, gives_way=lambda who: True)
        hang, end = asyncio.Event(), asyncio.Event()

        async def hold(who: str, until: asyncio.Event) -> None:
            async with turns.turn(who):
                await until.wait()

        hanging = asyncio.create_task(hold("greedy", hang))
        await asyncio.sleep(0)
        async with asyncio.timeout(30), turns.turn("greedy"):
            assert not hanging.done()
        # The same if no place is free in the moment in which it has waited for long enough.
        others = [asyncio.create_task(hold(who, end)) for who in "abc"]
        await asyncio.sleep(0)
        late = asyncio.create_task(hold("greedy", hang))
        await asyncio.sleep(2 * turns_module.STUCK_SECONDS)
        end.set()
        hang_after = asyncio.get_running_loop().call_later(0.2, hang.set)
        await asyncio.gather(*others)
        await asyncio.sleep(0)
        assert turns._held["greedy"] == 2
        await asyncio.gather(hanging, late)
        hang_after.cancel()

    asyncio.run(run())
