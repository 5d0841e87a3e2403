"""Health pages: cheap, open, and true whatever the queues of RQ say."""

from __future__ import annotations

import datetime
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from django.db import connection, transaction
from django.db.models.functions import Now
from django.utils import timezone
from django_redis import get_redis_connection

from core import redis as core_redis
from core.db import server_cursor
from core.redis_health import NO_WORKER
from devstack import processes
from devstack.sockets import free_port
from devstack.waiting import wait_until
from events.models import Event
from orgs.models import Organization
from tests.api.helpers import beat
from tests.conftest import ApiClient
from tests.servers import postgres, valkey
from tests.webhooks.helpers import fan_out_batch
from webhooks import subscriptions
from webhooks.destinations.outcome import Failure, Outcome
from webhooks.dispatch import leases
from webhooks.dispatch.claim import claim
from webhooks.dispatch.delivery import AttemptResult
from webhooks.dispatch.record import record_results
from webhooks.models import Delivery, Subscription, SubscriptionQueue
from webhooks.routing.fan_out import ANNOUNCE_FAN_OUT
from webhooks.stats import PauseReason

DETAILED = "/api/health/detailed"


@pytest.fixture(autouse=True)
def _anonymous(db: None) -> None:
    """Nothing here needs a key."""


@pytest.fixture
def client() -> Any:
    """Return a client without a key."""
    return ApiClient(None)


def test_the_short_page_says_that_the_process_answers(client: Any) -> None:
    answer = client.get("/api/health")
    assert answer.status_code == 200
    assert answer.json() == {"status": "healthy", "service": "Zapier Triggers API"}


def test_the_detailed_page_of_an_idle_system(client: Any) -> None:
    beat()
    answer = client.get(DETAILED)
    assert answer.status_code == 200
    body = answer.json()
    assert (body["status"], body["service"]) == ("healthy", "Zapier Triggers API")
    assert (body["redis"], body["database"], body["workers"]) == ("up", "up", 1)
    assert body["queues"] == {
        "event_queue_length": 0, "webhook_queue_length": 0, "event_pending_processing": 0,
        "webhook_pending_processing": 0, "counted_up_to": 10_000,
    }  # fmt: skip
    assert body["oldest_waiting_seconds"] == {"event": 0, "webhook": 0}
    assert body["paused_deliveries"] == dict.fromkeys(PauseReason, 0)
    assert body["config"] == {
        "max_concurrent_events": 1000, "max_concurrent_deliveries": 512, "max_queue_length": 100_000,
        "delivery_retry_schedule_seconds": [0, 5, 300, 1800, 7200, 18000, 36000, 36000],
        "webhook_delivery_disabled": False,
    }  # fmt: skip
    assert "reasons" not in body


def test_waiting_events_are_counted_with_rq_empty(api: Any, client: Any) -> None:
    for number in range(3):
        api.post("/api/events", {"type": "a", "data": number})
    get_redis_connection("default").flushall()
    Event.objects.update(due_at=timezone.now() - datetime.timedelta(seconds=90))
    body = client.get(DETAILED).json()
    assert body["queues"]["event_queue_length"] == 3
    assert 90 <= body["oldest_waiting_seconds"]["event"] < 600
    fan_out_batch(10)
    body = client.get(DETAILED).json()
    assert body["queues"]["event_queue_length"] == 0
    assert body["oldest_waiting_seconds"]["event"] == 0


def test_due_deliveries_are_waiting_and_claimed_ones_in_work(api: Any, client: Any, subscription: Subscription) -> None:
    for number in range(6):
        api.post("/api/events", {"type": "a", "data": number})
    fan_out_batch(10)
    long_ago = timezone.now() - datetime.timedelta(seconds=90)
    later = timezone.now() + datetime.timedelta(hours=1)
    ids = list(Delivery.objects.values_list("id", flat=True))
    Delivery.objects.filter(id=ids[0]).update(next_attempt_at=later)
    Delivery.objects.filter(id=ids[1]).update(status="failed")
    Delivery.objects.exclude(id=ids[0]).update(next_attempt_at=long_ago)
    SubscriptionQueue.objects.update(next_due_at=long_ago, ready_since=long_ago)
    queues = client.get(DETAILED).json()
    assert queues["queues"]["webhook_queue_length"] == 4
    assert 90 <= queues["oldest_waiting_seconds"]["webhook"] < 600
    claimed = claim(3)
    assert len(claimed.deliveries) == 3
    queues = client.get(DETAILED).json()["queues"]
    assert (queues["webhook_queue_length"], queues["webhook_pending_processing"]) == (1, 3)
    leases.release({delivery.lease_id for delivery in claimed.deliveries})
    queues = client.get(DETAILED).json()["queues"]
    assert (queues["webhook_queue_length"], queues["webhook_pending_processing"]) == (4, 0)


def test_what_is_held_for_a_disabled_subscription_is_no_queue(
    api: Any, client: Any, subscription: Subscription
) -> None:
    api.post("/api/events", {"type": "a", "data": 1})
    fan_out_batch(10)
    subscriptions.disable(subscription)
    body = client.get(DETAILED).json()
    assert body["queues"]["webhook_queue_length"] == 0
    assert body["paused_deliveries"]["held"] == 1


@pytest.mark.django_db(transaction=True)
def test_events_in_a_running_fan_out_are_in_work_and_no_longer_when_it_ends(client: Any) -> None:
    announced, seen = threading.Event(), threading.Event()

    def fan_out() -> None:
        try:
            with transaction.atomic(), server_cursor() as cursor:
                cursor.execute(ANNOUNCE_FAN_OUT, (17,))
                announced.set()
                seen.wait(30)
        finally:
            connection.close()

    worker = threading.Thread(target=fan_out)
    worker.start()
    assert announced.wait(30)
    during = client.get(DETAILED).json()["queues"]["event_pending_processing"]
    seen.set()
    worker.join()
    assert during == 17
    assert client.get(DETAILED).json()["queues"]["event_pending_processing"] == 0


def test_settled_rows_are_in_no_figure_and_counting_stops_at_the_bound(
    client: Any, organization: Organization, subscription: Subscription
) -> None:
    with connection.cursor() as cursor:
        for status, count in (("processed", 20_000), ("error", 1_000), ("accepted", 10_500)):
            cursor.execute(
                "INSERT INTO events_event (id, organization_id, type, data, status, failed_attempts, last_error)"
                " SELECT gen_random_uuid(), %s, 'a', '1', %s, 0, '' FROM generate_series(1, %s)",
                [organization.id, status, count],
            )
        for status, count in (("delivered", 20_000), ("failed", 1_000), ("cancelled", 1_000)):
            cursor.execute(
                "INSERT INTO webhooks_delivery (id, organization_id, event_id, subscription_id, status, cause,"
                " attempts_used, attempt_count, last_error)"
                " SELECT gen_random_uuid(), %s, gen_random_uuid(), %s, %s, 'schedule', 1, 1, ''"
                " FROM generate_series(1, %s)",
                [organization.id, subscription.id, status, count],
            )
    queues = client.get(DETAILED).json()["queues"]
    assert queues["event_queue_length"] == queues["counted_up_to"] == 10_000
    assert queues["webhook_queue_length"] == 0


def test_workers_live_as_long_as_their_heartbeat_is_fresh(client: Any) -> None:
    redis = get_redis_connection("default")
    now = datetime.datetime.now(datetime.UTC)
    old = now - datetime.timedelta(minutes=5)
    beats: dict[str, dict[str, str]] = {
        "fresh": {"last_heartbeat": now.isoformat().replace("+00:00", "Z")},
        "dead": {"last_heartbeat": now.isoformat(), "death": now.isoformat()},
        "silent": {"last_heartbeat": old.isoformat()},
        "odd": {"last_heartbeat": "yesterday"},
        "naive": {"last_heartbeat": now.replace(tzinfo=None).isoformat()},
        "binary": {"last_heartbeat": "\udcff"},
    }
    for name, fields in beats.items():
        redis.sadd("rq:workers", f"rq:worker:{name}")
        for field, value in fields.items():
            redis.hset(f"rq:worker:{name}", field, value.encode("utf-8", "surrogateescape"))
    redis.sadd("rq:workers", "rq:worker:gone")
    assert client.get(DETAILED).json()["workers"] == 2


def test_a_part_that_is_down_is_a_503_with_the_reason_and_the_short_page_stays_200(
    tmp_path: Path,
) -> None:
    nowhere = f"127.0.0.1:{free_port()}"
    cases = [
        ({"DATABASE_URL": f"postgres://user:hunter2@{nowhere}/none", "REDIS_URL": valkey.url()},
         ("unhealthy", "down", "up"), ["The database is not responding.", NO_WORKER]),
        ({"DATABASE_URL": postgres.url(connection.settings_dict["NAME"]), "REDIS_URL": f"redis://:hunter2@{nowhere}"},
         ("degraded", "up", "down"), ["Redis is not responding."]),
    ]  # fmt: skip
    for number, (environment, state, reasons) in enumerate(cases):
        log = tmp_path / f"web{number}.log"
        process, base = processes.web(log, env=environment, workers=1)
        try:
            answer = httpx.get(f"{base}{DETAILED}", timeout=60)
            short = httpx.get(f"{base}/api/health", timeout=60)
        finally:
            process.stop()
        body = answer.json()
        assert answer.status_code == 503
        assert (body["status"], body["database"], body["redis"]) == state
        assert body["reasons"] == reasons
        assert ("queues" in body) is (body["database"] == "up")
        assert (body["workers"] is None) is (body["redis"] == "down")
        assert short.status_code == 200
        assert "hunter2" not in answer.text + log.read_text()


def test_each_part_that_fails_is_named_in_this_process_too(client: Any) -> None:
    core_redis.breaker.open(60)
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE events_event RENAME TO events_event_gone")  # undone with the test's transaction
    answer = client.get(DETAILED)
    assert answer.status_code == 503
    body = answer.json()
    assert (body["status"], body["database"], body["redis"], body["workers"]) == ("unhealthy", "down", "down", None)
    assert body["reasons"] == ["The database is not responding.", "Redis is not responding."]


def test_the_config_shows_the_limits_in_force(client: Any, settings: Any) -> None:
    settings.MAX_CONCURRENT_EVENTS = 7
    settings.DISABLE_WEBHOOK_DELIVERY = True
    config = client.get(DETAILED).json()["config"]
    assert (config["max_concurrent_events"], config["webhook_delivery_disabled"]) == (7, True)


PAUSES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("circuit_breaker", {"breaker_trips": 2, "paused_until": timezone.now() + datetime.timedelta(days=1)}, {}),
    ("circuit_breaker", {"breaker_trips": 2}, {}),  # half-open
    ("retry_after", {"paused_until": timezone.now() + datetime.timedelta(days=1)}, {}),
    ("rate_limit", {"next_due_at": timezone.now() + datetime.timedelta(days=1)}, {"deliveries_per_second": 1.0}),
    # The moment before the one that the limit allows is claimed.
    ("rate_limit", {"next_due_at": Now(), "has_backlog": True}, {"deliveries_per_second": 1.0}),
    ("concurrency_limit", {"in_flight": 4}, {}),
    ("concurrency_limit", {"in_flight": 1}, {"max_in_flight": 1}),
]


@pytest.mark.parametrize(("reason", "queue", "of_subscription"), PAUSES)
def test_what_can_t_be_sent_now_is_not_due_and_stands_beside_with_its_reason(
    api: Any, client: Any, subscription: Subscription, reason: str, queue: dict[str, Any],
    of_subscription: dict[str, Any],
) -> None:  # fmt: skip
    beat()
    for number in range(3):
        api.post("/api/events", {"type": "a", "data": number})
    fan_out_batch(10)
    assert client.get(DETAILED).json()["queues"]["webhook_queue_length"] == 3
    long_ago = timezone.now() - datetime.timedelta(hours=9)
    Delivery.objects.update(next_attempt_at=long_ago)
    SubscriptionQueue.objects.update(**{"next_due_at": long_ago, "ready_since": long_ago, **queue})
    Subscription.objects.update(**of_subscription)
    answer = client.get(DETAILED)
    body = answer.json()
    assert (answer.status_code, body["status"]) == (200, "healthy")
    assert (body["queues"]["webhook_queue_length"], body["oldest_waiting_seconds"]["webhook"]) == (0, 0)
    assert body["paused_deliveries"] == {**dict.fromkeys(PauseReason, 0), reason: 3}
    claimable = claim(10).deliveries
    assert not claimable or queue == {"breaker_trips": 2} or "has_backlog" in queue


def test_with_sending_switched_off_nothing_is_due(
    api: Any, client: Any, subscription: Subscription, settings: Any
) -> None:
    api.post("/api/events", {"type": "a", "data": 1})
    fan_out_batch(10)
    settings.DISABLE_WEBHOOK_DELIVERY = True
    body = client.get(DETAILED).json()
    assert (body["queues"]["webhook_queue_length"], body["oldest_waiting_seconds"]["webhook"]) == (0, 0)
    assert body["paused_deliveries"] == {**dict.fromkeys(PauseReason, 0), "sending_disabled": 1}


def test_what_waited_for_its_endpoint_is_due_only_since_the_endpoint_is_back(
    api: Any, client: Any, subscription: Subscription
) -> None:
    for number in range(6):
        api.post("/api/events", {"type": "a", "data": number})
    fan_out_batch(10)
    hours_ago = timezone.now() - datetime.timedelta(hours=9)
    Delivery.objects.update(next_attempt_at=hours_ago)
    SubscriptionQueue.objects.update(
        next_due_at=hours_ago, ready_since=hours_ago, failing_since=hours_ago, breaker_trips=3, concurrency_window=1
    )
    (probe,) = claim(10).deliveries
    assert client.get(DETAILED).json()["queues"]["webhook_queue_length"] == 0
    record_results([AttemptResult(probe, Outcome(200), time.time(), 1.0)])
    body = client.get(DETAILED).json()
    assert body["queues"]["webhook_queue_length"] == 5
    assert 0 <= body["oldest_waiting_seconds"]["webhook"] < 3600
    # Its window of four is taken at once, and again when the four come back: what is left waits for the endpoint.
    four = claim(10).deliveries
    assert (len(four), client.get(DETAILED).json()["paused_deliveries"]["concurrency_limit"]) == (4, 1)
    SubscriptionQueue.objects.update(ready_since=hours_ago)
    record_results([AttemptResult(four[0], Outcome(500, Failure.HTTP_STATUS), time.time(), 1.0)])
    SubscriptionQueue.objects.update(concurrency_window=4)
    assert 0 < client.get(DETAILED).json()["oldest_waiting_seconds"]["webhook"] < 3600
    # A rate limit allowed the next one ten minutes ago, and no worker took it.
    Subscription.objects.update(deliveries_per_second=1)
    ten_minutes_ago = timezone.now() - datetime.timedelta(minutes=10)
    SubscriptionQueue.objects.update(ready_since=hours_ago, next_due_at=ten_minutes_ago, has_backlog=True)
    assert 600 <= client.get(DETAILED).json()["oldest_waiting_seconds"]["webhook"] < 3600


def test_without_a_worker_the_system_is_degraded_and_says_so(client: Any) -> None:
    answer = client.get(DETAILED)
    assert (answer.status_code, answer.json()["status"], answer.json()["workers"]) == (503, "degraded", 0)
    assert answer.json()["reasons"] == [NO_WORKER]


@pytest.mark.parametrize(
    ("word", "make"),
    [
        ("READONLY", lambda redis: redis.replicaof("127.0.0.1", free_port())),
        ("OOM", lambda redis: redis.config_set("maxmemory", 1)),
        ("NOREPLICAS", lambda redis: redis.config_set("min-replicas-to-write", 1)),
        ("MISCONF", None),
    ],
)
def test_a_redis_that_refuses_writes_is_named_with_its_reason_and_no_worker_is_blamed(
    client: Any, word: str, make: Callable[[Any], object] | None
) -> None:
    beat()
    redis = get_redis_connection("default")
    kept = {name: redis.config_get(name)[name] for name in ("maxmemory", "min-replicas-to-write", "save")}
    try:
        if make is not None:
            make(redis)
        else:
            _fail_to_save(redis)
        answer = client.get(DETAILED)
        body = answer.json()
        assert (answer.status_code, body["status"], body["redis"]) == (503, "degraded", "refuses_writes")
        assert body["workers"] is None
        (reason,) = body["reasons"]
        assert reason.startswith("Redis refuses writes: ")
        assert reason.endswith(f"({word}).")
        # Another call's failure has opened the breaker: still the same reason.
        with pytest.raises(core_redis.RedisUnavailable):
            core_redis.call_redis(lambda connection: connection.set("triggers:x", 1))
        assert client.get(DETAILED).json()["reasons"] == [reason]
    finally:
        redis.replicaof("no", "one")
        redis.config_set("maxmemory", kept["maxmemory"])
        redis.config_set("min-replicas-to-write", kept["min-replicas-to-write"])
        redis.config_set("stop-writes-on-bgsave-error", "no")
        redis.config_set("save", kept["save"])
        if _dump_of(redis).is_dir():
            _dump_of(redis).rmdir()
    core_redis.breaker.reset()
    beat()
    assert client.get(DETAILED).json()["redis"] == "up"


def _dump_of(redis: Any) -> Path:
    return Path(redis.config_get("dir")["dir"]) / redis.config_get("dbfilename")["dbfilename"]


def _fail_to_save(redis: Any) -> None:
    """Let the server fail to write its dump, because there is a folder in its place."""
    _dump_of(redis).unlink(missing_ok=True)
    _dump_of(redis).mkdir()
    redis.config_set("stop-writes-on-bgsave-error", "yes")
    redis.config_set("save", "3600 1")
    redis.bgsave()
    wait_until(lambda: redis.info("persistence")["rdb_last_bgsave_status"] == "err")
