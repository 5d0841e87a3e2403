"""How a claim shares a worker's free places among the queues that are due: fair and bounded, without I/O.

Every function takes and returns one number for each queue, in the same order.  A queue's *room* is how many more
deliveries it may have in flight.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence


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

    hosts: each queue's.  in_flight: this worker's requests by host.  Queues that lead to one host share evenly what
    it may still get.
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


def keep_room_for_others(rooms: Sequence[int], in_flight: Sequence[int], free: int) -> list[int]:
    """Return the rooms that are left when no queue may occupy more of the worker than stays free.

    in_flight: places of this worker that each queue occupies.  free: places that nobody occupies.  The bound adapts
    to each claim (a "dynamic threshold"): one queue with a backlog gets half of the worker, three get a quarter
    each, and the next one always finds a place.  A queue with nothing in flight may have one place in any case.
    """
    low, high = 0, free
    while low < high:
        most = (low + high + 1) // 2
        wanted = sum(min(room, max(0, most - has)) for room, has in zip(rooms, in_flight, strict=True))
        if wanted + most <= free:
            low = most
        else:
            high = most - 1
    return [min(room, max(low - has, 0 if has else 1)) for room, has in zip(rooms, in_flight, strict=True)]
