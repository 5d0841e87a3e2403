"""The usual way, for comparison: plain RQ with one job per event and one per delivery.

The same tables, the same signed requests, the ORM and a kept HTTP connection; `Worker` forks for each
job, `SimpleWorker` doesn't.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from functools import lru_cache
from pathlib import Path
from typing import Any

import httpx

from devstack.processes import ROOT

QUEUE = "baseline"


@lru_cache(maxsize=1)
def _client() -> httpx.Client:
    return httpx.Client(timeout=30)


def process_event(event_id: str) -> None:
    """Job: make a delivery for each matching subscription and enqueue it."""
    from django.utils import timezone
    from rq import Queue

    from events.models import Event
    from webhooks.models import Delivery, Subscription
    from webhooks.routing.matching import Matcher, SubscribedTypes

    event = Event.objects.get(id=event_id)
    subscriptions = Subscription.objects.filter(organization_id=event.organization_id, deleted_at=None)
    matcher = Matcher(SubscribedTypes(s.id, tuple(s.event_types), s.is_active) for s in subscriptions)
    queue = Queue(QUEUE, connection=_redis())
    for wanting in matcher.match(event.type):
        delivery = Delivery.objects.create(
            organization_id=event.organization_id, event=event, subscription_id=wanting.subscription_id
        )
        queue.enqueue(deliver, str(delivery.id), result_ttl=0)
    Event.objects.filter(id=event.id).update(status="processed", processed_at=timezone.now())


def deliver(delivery_id: str) -> None:
    """Job: send one signed webhook and record the attempt."""
    import orjson
    from django.utils import timezone

    from webhooks.destinations.http.endpoint import open_endpoint
    from webhooks.destinations.http.signing import sign
    from webhooks.models import Delivery, DeliveryAttempt

    delivery = Delivery.objects.select_related("event", "subscription").get(id=delivery_id)
    event, subscription = delivery.event, delivery.subscription
    receiver = open_endpoint(subscription.url, subscription.encrypted_headers, subscription.encrypted_secret)
    head = orjson.dumps({"id": event.id, "type": event.type, "timestamp": event.created_at}, option=orjson.OPT_UTC_Z)
    body = head[:-1] + b',"data":' + event.data.encode() + b"}"
    now = timezone.now()
    timestamp = int(now.timestamp())
    headers = {
        "content-type": "application/json",
        "webhook-id": str(event.id),
        "webhook-timestamp": str(timestamp),
        "webhook-signature": sign(receiver.keys, str(event.id), timestamp, body),
    }
    started = time.perf_counter()
    answer = _client().post(receiver.url, headers=headers, content=body)
    duration_ms = (time.perf_counter() - started) * 1000
    DeliveryAttempt.objects.create(
        delivery=delivery, number=1, cause="schedule", started_at=now, duration_ms=duration_ms,
        status_code=answer.status_code, response_body=answer.text[:1024],
    )  # fmt: skip
    Delivery.objects.filter(id=delivery.id).update(
        status="delivered" if answer.is_success else "failed", completed_at=timezone.now(), attempt_count=1,
        attempts_used=1, last_status_code=answer.status_code,
    )  # fmt: skip


def _redis() -> Any:
    from redis import Redis

    return Redis.from_url(os.environ["REDIS_URL"])


def enqueue(event_ids: list[uuid.UUID]) -> None:
    """Enqueue a job for each event, in one round trip per thousand."""
    from rq import Queue

    queue = Queue(QUEUE, connection=_redis())
    for start in range(0, len(event_ids), 1000):
        queue.enqueue_many(
            [
                Queue.prepare_data(process_event, args=(str(event_id),), result_ttl=0)
                for event_id in event_ids[start : start + 1000]
            ]
        )


def start_worker(kind: str, log: Path) -> subprocess.Popen[bytes]:
    """Start a plain RQ worker (`Worker` or `SimpleWorker`) on the baseline's queue."""
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "bench.baseline", kind], cwd=ROOT, stdout=output, stderr=output,
            start_new_session=True,
        )  # fmt: skip


def main() -> None:
    """Run the worker until it is killed."""
    import django

    django.setup()
    import logging

    import rq
    from rq import Queue

    logging.getLogger("rq.worker").setLevel("WARNING")
    worker_class = {"Worker": rq.Worker, "SimpleWorker": rq.SimpleWorker}[sys.argv[1]]
    connection = _redis()
    worker_class([Queue(QUEUE, connection=connection)], connection=connection).work(logging_level="WARNING")


if __name__ == "__main__":
    main()
