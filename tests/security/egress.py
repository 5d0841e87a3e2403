"""Sending through the real client, and delivering through the real sender, for the tests of egress."""

from __future__ import annotations

import asyncio
import dataclasses
import ipaddress
from typing import Any

from django.conf import settings

from tests.webhooks.helpers import fan_out_batch
from webhooks.destinations.http.client import HttpClient
from webhooks.destinations.http.egress_settings import Egress
from webhooks.destinations.outcome import Outcome
from webhooks.dispatch.sender import Sender

STRICT = Egress(timeout=10, body_bytes=1024, dns_cache_ttl=0)


def allowing(*networks: str, **changes: Any) -> Egress:
    """Return an egress policy that allows these networks, too."""
    return dataclasses.replace(
        STRICT, allowed_networks=tuple(ipaddress.ip_network(text) for text in networks), **changes
    )


def send(egress: Egress, *urls: str, body: bytes = b"{}") -> list[Outcome]:
    """Send to each URL in turn through one client; return the outcomes."""

    async def run() -> list[Outcome]:
        client = HttpClient(egress)
        try:
            return [await client.send(url, [("x-test", "1")], body) for url in urls]
        finally:
            await client.aclose()

    return asyncio.run(run())


def deliver() -> None:
    """Fan out what was accepted and deliver what is due, as a worker does; returns when nothing is left to do now."""
    while fan_out_batch(settings.MAX_CONCURRENT_EVENTS):
        pass
    sender = Sender(settings.MAX_CONCURRENT_DELIVERIES, 0.1)
    sender.start()
    try:
        sender.wake()
        assert sender.wait_until_drained(60)
    finally:
        sender.stop(10)
