"""What the deliveries' tests stand on: rows, a running sender, raw sockets, threads that start together."""

from __future__ import annotations

import contextlib
import datetime
import socket
import ssl
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from django.db import connection

from events.ingest import ingest
from events.payload import NewEvent
from orgs.models import Organization
from webhooks import subscriptions
from webhooks.destinations.outcome import Failure, Outcome
from webhooks.dispatch.delivery import AttemptResult, ClaimedDelivery
from webhooks.dispatch.sender import Sender
from webhooks.models import Delivery, Subscription, SubscriptionQueue
from webhooks.routing.fan_out import FanOut

T = TypeVar("T")

NOWHERE = "http://127.0.0.1:9/"


def subscribe(organization: Organization, url: str = NOWHERE, **options: Any) -> Subscription:
    """Return a new subscription to everything."""
    return subscriptions.create(organization.id, url=url, event_types=options.pop("event_types", ["*"]), **options)[0]


def accept(
    organization: Organization, count: int = 1, data: str = "{}", kind: str = "order.created"
) -> list[uuid.UUID]:
    """Accept events and fan them out; return their ids."""
    ids = [ingest(organization.id, NewEvent(kind, data, None)).event_id for _ in range(count)]
    fan_out()
    return ids


def fan_out() -> None:
    """Process every accepted event that is due."""
    while fan_out_batch(1000):
        pass


def result(
    claimed: ClaimedDelivery, status: int | None = 200, failure: Failure | None = None, **answer: Any
) -> AttemptResult:
    """Return a result for a claimed delivery."""
    if failure is None and status is not None and not 200 <= status <= 299:
        failure = Failure.HTTP_STATUS
    return AttemptResult(claimed, Outcome(status, failure, **answer), time.time(), 1.5)


def queue_of(subscription: Subscription) -> SubscriptionQueue:
    """Return the subscription's queue as it is now."""
    return SubscriptionQueue.objects.get(pk=subscription.pk)


def statuses(**filters: Any) -> list[str]:
    """Return the deliveries' statuses, sorted."""
    return sorted(Delivery.objects.filter(**filters).values_list("status", flat=True))


def database_time() -> datetime.datetime:
    """Return the time by the database's clock, which decides what is due."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT clock_timestamp()")
        found: datetime.datetime = cursor.fetchone()[0]
    return found


@contextlib.contextmanager
def sending(capacity: int = 200, poll_seconds: float = 0.05, grace_seconds: float = 0.0) -> Iterator[Sender]:
    """Run a sender as a worker does."""
    sender = Sender(capacity, poll_seconds)
    sender.start()
    sender.wake()
    try:
        yield sender
    finally:
        sender.stop(grace_seconds)


@contextlib.contextmanager
def raw_server(handle: Callable[[socket.socket], None], context: ssl.SSLContext | None = None) -> Iterator[int]:
    """Listen on loopback and do `handle` with each connection, on a thread of its own; yields the port."""
    server = socket.create_server(("127.0.0.1", 0), backlog=128)
    streams: list[socket.socket] = []

    def run(stream: socket.socket) -> None:
        with contextlib.suppress(OSError, ValueError):
            handle(stream if context is None else context.wrap_socket(stream, server_side=True))
        stream.close()

    def accept_all() -> None:
        with contextlib.suppress(OSError):
            while True:
                stream, _ = server.accept()
                streams.append(stream)
                threading.Thread(target=run, args=(stream,), daemon=True).start()

    threading.Thread(target=accept_all, daemon=True).start()
    try:
        yield server.getsockname()[1]
    finally:
        for stream in [server, *streams]:
            with contextlib.suppress(OSError):
                stream.shutdown(socket.SHUT_RDWR)
            with contextlib.suppress(OSError):
                stream.close()


def read_request(stream: socket.socket) -> bytes:
    """Read one request to its end and return it; empty when the peer is gone."""
    read = b""
    while b"\r\n\r\n" not in read:
        chunk = stream.recv(65536)
        if not chunk:
            return b""
        read += chunk
    head, _, body = read.partition(b"\r\n\r\n")
    length = next(
        (int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0
    )
    while len(body) < length:
        chunk = stream.recv(65536)
        if not chunk:
            return b""
        body += chunk
    return head + b"\r\n\r\n" + body


def in_threads(count: int, work: Callable[[int], T]) -> list[T]:
    """Do `work` on `count` threads that start together, each on a connection of its own; return the results.

    Raises the first exception that one of them raised.
    """
    results: list[T] = []
    errors: list[BaseException] = []
    gate = threading.Barrier(count)

    def run(number: int) -> None:
        try:
            gate.wait(30)
            results.append(work(number))
        except BaseException as error:
            errors.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    if errors:
        raise errors[0]
    return results


def make_past_partitions(days: int = 7, number: int = 4) -> None:
    """Make partitions for what tests insert as older than the database, which made its first ones for today."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT min(starts) FROM triggers_partitions()")
        (first,) = cursor.fetchone()
        for _ in range(number):
            starts = first - datetime.timedelta(days=days)
            for table in ("events_event", "webhooks_delivery", "webhooks_deliveryattempt"):
                cursor.execute(
                    f"CREATE TABLE {table}_{starts:%Y%m%d} PARTITION OF {table}"
                    " FOR VALUES FROM (triggers_first_id(%s)) TO (triggers_first_id(%s))",
                    [starts, first],
                )
            first = starts


def fan_out_batch(limit: int) -> int:
    """Run one round by itself; return how many events it claimed, or `limit` if more may wait."""
    result = FanOut().run_round(limit)
    return limit if result.more else result.seen
