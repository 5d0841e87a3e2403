"""The HTTP client alone, with no database around it, at a worker's concurrency, in a separate process."""

from __future__ import annotations

import argparse
import asyncio
import ipaddress
import json
import subprocess
import sys
import time

from devstack.processes import ROOT
from webhooks.destinations.http.client import HttpClient
from webhooks.destinations.http.egress_settings import Egress

HEADERS = [
    ("content-type", "application/json"),
    ("user-agent", "TriggersAPI/1.0"),
    ("webhook-id", "0198f2d0-6d3c-7a52-9b1e-2f4c8a7d1e90"),
    ("webhook-timestamp", "1764000000"),
    ("webhook-signature", "v1,K5oZfzN95Z9UVu1EsfQmfVNQhnkZ2pj9o9NDN/H/pI4="),
]
BODY = b'{"id":"0198f2d0-6d3c-7a52-9b1e-2f4c8a7d1e90","type":"order.created","data":{"order": 4711, "total": "19.90"}}'


async def send(urls: list[str], requests: int, concurrency: int) -> float:
    """Send `requests` requests and return how many succeeded per second."""
    egress = Egress(timeout=30, body_bytes=1024, allowed_networks=(ipaddress.ip_network("127.0.0.0/8"),))
    client = HttpClient(egress)
    numbers = iter(range(requests))
    succeeded = 0

    async def work() -> None:
        nonlocal succeeded
        for number in numbers:
            outcome = await client.send(urls[number % len(urls)], HEADERS, BODY)
            succeeded += outcome.succeeded

    started = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(concurrency)))
    seconds = time.perf_counter() - started
    await client.aclose()
    return succeeded / seconds


def measure(urls: list[str], requests: int, concurrency: int) -> float:
    """Return the requests per second that a separate process reaches."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.transport_only", json.dumps(urls), str(requests), str(concurrency)],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return float(done.stdout)


def main() -> None:
    """Print the rate."""
    parser = argparse.ArgumentParser()
    parser.add_argument("urls", type=json.loads)
    parser.add_argument("requests", type=int)
    parser.add_argument("concurrency", type=int)
    given = parser.parse_args()
    print(asyncio.run(send(given.urls, given.requests, given.concurrency)))


if __name__ == "__main__":
    main()
