"""The load generator, as a separate process: reads a Load as JSON, prints an Outcome as JSON."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import repeat, takewhile

from bench.client import Api, Outcome, flat_out, paced
from devstack.processes import ROOT

DATA = '{"order": 4711, "customer": "c_1029384756", "total": "19.90", "currency": "EUR", "items": [1, 2, 3], "n": %d}'


@dataclass(frozen=True)
class Load:
    """What to send.  requests: how many; rate: a second, 0 for flat out; batch: events a request, 0 for single ones.

    seconds: end after so long even if fewer were sent.  keep_times: remember when each event's response came.
    repeated: the method, path, and body of a request that is sent each time in place of events.
    """

    url: str
    key: str
    requests: int
    connections: int
    rate: float = 0.0
    batch: int = 0
    types: tuple[str, ...] = ("order.created",)
    with_dedup_id: bool = False
    seconds: float = 0.0
    keep_times: bool = False
    repeated: tuple[str, str, str] | None = None


def _events(load: Load) -> Iterator[str]:
    number = 0
    while True:
        dedup = f', "dedup_id": "order-{number}"' if load.with_dedup_id else ""
        yield f'{{"type": "{load.types[number % len(load.types)]}", "data": {DATA % number}{dedup}}}'
        number += 1


def requests_of(load: Load, api: Api) -> Iterator[bytes]:
    """Yield the bytes of each request."""
    if load.repeated:
        method, path, body = load.repeated
        yield from repeat(api.build(method, path, body.encode()), load.requests)
        return
    events = _events(load)
    for _ in range(load.requests):
        if load.batch:
            body = "[" + ",".join(next(events) for _ in range(load.batch)) + "]"
            yield api.build("POST", "/api/events/batch", body.encode())
        else:
            yield api.build("POST", "/api/events", next(events).encode())


async def run(load: Load) -> Outcome:
    """Send the load from this process."""
    api = Api(load.url, load.key)
    responded: dict[str, float] = {}

    def on_answer(status: int, body: bytes, sent: float) -> None:
        if load.keep_times and status == 202:
            responded[json.loads(body)["id"]] = time.time()

    if load.rate:
        outcome = await paced(api, requests_of(load, api), load.rate, load.connections, on_answer)
    else:
        requests = iter(list(requests_of(load, api)))
        outcome = await flat_out(api, _until(requests, load.seconds), load.connections, on_answer)
    outcome.responded = responded
    return outcome


def _until(requests: Iterator[bytes], seconds: float) -> Iterator[bytes]:
    ends = time.monotonic() + seconds if seconds else float("inf")
    return takewhile(lambda _: time.monotonic() < ends, requests)


def send(load: Load) -> Outcome:
    """Send the load from a separate process and return what came of it."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.load"], input=json.dumps(asdict(load)), capture_output=True, text=True,
        cwd=ROOT, check=True,
    )  # fmt: skip
    found = json.loads(done.stdout)
    statuses = Counter({int(status): count for status, count in found["statuses"].items()})
    return Outcome(statuses, found["latencies"], found["seconds"], found["responded"])


def main() -> None:
    """Read the load from stdin."""
    given = json.load(sys.stdin)
    given["types"] = tuple(given["types"])
    given["repeated"] = tuple(given["repeated"]) if given["repeated"] else None
    outcome = asyncio.run(run(Load(**given)))
    json.dump(vars(outcome), sys.stdout)


if __name__ == "__main__":
    main()
