"""How a claim shares a worker's free places among the queues that are due: fair and bounded, without I/O.

Every function takes and returns one number for each queue, in the same order.  A worker has as many *places* as it may
have deliveries in flight; those that nobody occupies are *free*.  A queue's *room* is how many more deliveries it may
have in flight, over all workers; its *quota* is how many places of this worker a claim may fill from it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from typing import TypeVar

K = TypeVar("K", bound=Hashable)


def share_out(rooms: Sequence[int], total: int) -> list[int]:
    """Return how many of `total` places each queue gets: the same number, as far as each has room."""
    quotas = [0] * len(rooms)
    left = min(total, sum(rooms))
    hungry = [position for position, room in enumerate(rooms) if room > 0]
    while left and hungry:
        each = max(1, left // len(hungry))
        for position in hungry:
            given = min(each, rooms[position] - quotas[position], left)
            quotas[position] += given
            left -= given
        hungry = [position for position in hungry if quotas[position] < rooms[position]]
    return quotas


def limit_hosts(rooms: Sequence[int], hosts: Sequence[str], in_flight: Mapping[str, int], most: int) -> list[int]:
    """Return the rooms that are left when no host may have more than `most` requests from this worker.

    hosts: each queue's.  in_flight: this worker's requests by host.  Queues with the same host share evenly what the
    host may still get.
    """
    positions_of: dict[str, list[int]] = defaultdict(list)
    for position, host in enumerate(hosts):
        positions_of[host].append(position)
    bounded = list(rooms)
    for host, positions in positions_of.items():
        shares = share_out([rooms[position] for position in positions], max(0, most - in_flight.get(host, 0)))
        for position, share in zip(positions, shares, strict=True):
            bounded[position] = share
    return bounded


def fair_limit(rooms: Sequence[int], in_flight: Sequence[int], free: int, times_free: int = 1) -> int:
    """Return how many places of the worker each may occupy at most: `times_free` times what then stays free.

    in_flight: places of this worker that each occupies.  free: places that aren't occupied.  The limit adapts to each
    claim (a "dynamic threshold"): with times_free 1, one that could fill them all gets half of the places, three get a
    quarter each, and there is always a place for the next one.
    """
    low, high = 0, free * times_free
    while low < high:
        most = (low + high + 1) // 2
        wanted = sum(min(room, max(0, most - has)) for room, has in zip(rooms, in_flight, strict=True))
        if wanted * times_free + most <= free * times_free:
            low = most
        else:
            high = most - 1
    return low


def keep_room_for_others(rooms: Sequence[int], in_flight: Sequence[int], free: int) -> list[int]:
    """Return the rooms that are left when no queue may occupy more of these places than stays free (`fair_limit`).

    A queue with nothing in flight may have one place in any case.
    """
    most = fair_limit(rooms, in_flight, free)
    return [min(room, max(most - has, 0 if has else 1)) for room, has in zip(rooms, in_flight, strict=True)]


def share_in_turn(rooms: Sequence[int], organizations: Sequence[K], total: int, limits: Mapping[K, int]) -> list[int]:
    """Return how many of `total` places each queue gets: first a share for each organization, then for its queues.

    limits: how many each organization may get.
    """
    positions_of: dict[K, list[int]] = defaultdict(list)
    for position, organization in enumerate(organizations):
        positions_of[organization].append(position)
    wanted = [
        min(limits[name], sum(rooms[position] for position in positions)) for name, positions in positions_of.items()
    ]
    quotas = [0] * len(rooms)
    for positions, share in zip(positions_of.values(), share_out(wanted, total), strict=True):
        shares = share_out([rooms[position] for position in positions], share)
        for position, quota in zip(positions, shares, strict=True):
            quotas[position] = quota
    return quotas


def share_between_organizations(
    rooms: Sequence[int],
    organizations: Sequence[K],
    in_flight: Sequence[int],
    in_flight_by_organization: Mapping[K, int],
    free: int,
) -> list[int]:
    """Return how many of the worker's `free` places each queue gets: first a share for each organization, then queues.

    in_flight: places of this worker that each queue occupies.  No organization may occupy more than three times what
    stays free, so that one with a thousand slow endpoints leaves places for the others: alone it gets three quarters
    of the worker.  Of what its organization may still get, no queue may occupy more than stays free: alone it gets half
    of that, three eighths of the worker.
    """
    positions_of: dict[K, list[int]] = defaultdict(list)
    for position, organization in enumerate(organizations):
        positions_of[organization].append(position)
    names = list(positions_of)
    sums = [sum(rooms[position] for position in positions_of[name]) for name in names]
    occupied = [in_flight_by_organization.get(name, 0) for name in names]
    most = fair_limit(sums, occupied, free, times_free=3)
    allowed = [min(free, max(most - has, 0 if has else 1)) for has in occupied]
    bounded = list(rooms)
    for name, limit in zip(names, allowed, strict=True):
        positions = positions_of[name]
        own_rooms = [rooms[position] for position in positions]
        own_in_flight = [in_flight[position] for position in positions]
        for position, room in zip(positions, keep_room_for_others(own_rooms, own_in_flight, limit), strict=True):
            bounded[position] = room
    return share_in_turn(bounded, organizations, free, dict(zip(names, allowed, strict=True)))
