"""`GET /metrics`: who may read it, what is counted, and what it says while the database is away."""

from __future__ import annotations

import datetime
import os
import re
import subprocess
import threading
import uuid
from pathlib import Path
from typing import Any

import pytest
import structlog
from django.db import OperationalError, connection
from prometheus_client.parser import text_string_to_metric_families

from core.metrics import kinds
from core.metrics.store import Store
from devstack.processes import ROOT
from devstack.prometheus import find
from devstack.waiting import wait_until
from events.models import Event
from orgs.idempotency import LOCK, Once, lock_parameters
from orgs.models import Organization
from tests.api.helpers import beat, have_the_first_attempt_deadlock
from tests.api.test_idempotency import EVENT, once
from tests.conftest import ApiClient
from tests.servers import postgres
from tests.webhooks.helpers import accept, result, subscribe
from triggers_project import metrics
from webhooks import stats, subscriptions
from webhooks.destinations.inbox import fetching
from webhooks.dispatch.claim import claim
from webhooks.dispatch.leases import expire
from webhooks.dispatch.record import record_results
from webhooks.models import Delivery, Subscription, SubscriptionQueue

TOKEN = "only-for-tests"

Samples = dict[tuple[str, ...], float]


@pytest.fixture(autouse=True)
def _metrics_are_on(tmp_path: Path, settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.METRICS_DIR, settings.METRICS_TOKEN = str(tmp_path), TOKEN
    own = Store(tmp_path)
    monkeypatch.setattr(kinds, "store", lambda: own)
    monkeypatch.setattr(metrics, "_database_metrics", metrics.DatabaseMetrics())


def read(accept: str = "") -> str:
    """Return the page."""
    answer = ApiClient(None).get("/metrics", Authorization=f"Bearer {TOKEN}", Accept=accept)
    assert answer.status_code == 200
    text: str = answer.content.decode()
    return text


def samples() -> Samples:
    """Return the page's samples: by name, and the values of the labels in the order of their names."""
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(read())
        for sample in family.samples
    }


@pytest.mark.django_db
def test_only_who_has_the_token_may_read_and_without_one_there_is_no_page(settings: Any) -> None:
    client = ApiClient(None)
    assert client.get("/metrics").status_code == 401
    assert client.get("/metrics", Authorization="Bearer wrong").status_code == 401
    assert client.get("/metrics", Authorization="Bearer ü").status_code == 401
    assert client.post("/metrics").status_code == 405
    assert client.get("/metrics", Authorization=f"Bearer {TOKEN}").headers["Content-Type"].startswith("text/plain")
    settings.METRICS_TOKEN = ""
    assert client.get("/metrics", Authorization="Bearer ").status_code == 404
    settings.METRICS_TOKEN, settings.METRICS_DIR = TOKEN, ""
    assert client.get("/metrics", Authorization=f"Bearer {TOKEN}").status_code == 404


def test_events_are_counted_by_what_became_of_them_and_requests_by_route(api: ApiClient) -> None:
    event = {"type": "a", "data": 1}
    api.post("/api/events", event)
    api.post("/api/events", {**event, "dedup_id": "x"})
    api.post("/api/events", {**event, "dedup_id": "x"})
    api.post("/api/events", {**event, "dedup_id": "x", "data": 2})
    api.post("/api/events", {"type": ""})
    api.post("/api/events/batch", [event, {"type": ""}, event])
    ApiClient("trk_wrong").post("/api/events", event)
    api.get("/api/subscriptions/019a0000-0000-7000-8000-000000000000")
    api.get("/nowhere/at/all")
    api.request("PROPFIND", "/api/subscriptions")
    found = samples()
    counts = {
        outcome: found.get(("triggers_events_total", outcome)) for outcome in ("accepted", "duplicate", "conflict")
    }
    assert counts == {"accepted": 4, "duplicate": 1, "conflict": 1}
    assert found["triggers_events_total", "invalid"] == 1
    assert {key[1:]: value for key, value in found.items() if value and key[0] == "triggers_http_problems_total"} == {
        ("dedup_conflict", "/api/events"): 1, ("invalid", "/api/events"): 1, ("invalid_api_key", "/api/events"): 1,
        ("not_found", "/api/subscriptions/{subscription_id}"): 1, ("method_not_allowed", "/api/subscriptions"): 1,
    }  # fmt: skip
    requests = {
        key[1:]: value for key, value in found.items() if key[0] == "triggers_http_request_duration_seconds_count"
    }
    assert requests["POST", "/api/events", "2xx"] == 3
    assert requests["POST", "/api/events", "4xx"] == 3
    assert requests["GET", "/api/subscriptions/{subscription_id}", "4xx"] == 1
    assert requests["GET", "other", "4xx"] == 1
    assert requests["other", "/api/subscriptions", "4xx"] == 1


def test_attempts_are_counted_by_outcome_once_they_are_committed(organization: Organization, settings: Any) -> None:
    settings.DELIVERY_RETRY_SCHEDULE = (0.0, 60.0)
    subscribe(organization)
    accept(organization, 4)
    SubscriptionQueue.objects.update(concurrency_window=100)
    taken = claim(10).deliveries
    Delivery.objects.filter(id=taken[3].delivery_id).update(lease_expires_at="2020-01-01T00:00:00Z")
    assert expire() == 1
    record_results([result(taken[0]), result(taken[1], 503), result(taken[2], 200)])
    found = samples()
    assert {key[1:]: value for key, value in found.items() if key[0] == "triggers_delivery_attempts_total"} == {
        ("delivered", "2xx"): 2, ("http_status", "5xx"): 1, ("worker_lost", "none"): 1,
    }  # fmt: skip
    assert found["triggers_deliveries_completed_total", "delivered"] == 2
    assert found[("triggers_delivery_attempt_duration_seconds_count",)] == 3
    assert found[("triggers_delivery_latency_seconds_count",)] == 2


@pytest.mark.django_db(transaction=True)
def test_the_figures_of_the_database_and_of_redis(organization: Organization) -> None:
    beat()
    subscribe(organization)
    accept(organization, 3)
    SubscriptionQueue.objects.update(breaker_trips=1, failing_since="2020-01-01T00:00:00Z")
    found = samples()
    assert found[("triggers_database_up",)] == found[("triggers_redis_up",)] == found[("triggers_workers",)] == 1
    assert found["triggers_deliveries_paused", "circuit_breaker"] == 3
    assert found["triggers_circuit_breakers", "half_open"] == 1
    assert found["triggers_circuit_breakers", "closed"] == 0
    assert found[("triggers_events_waiting",)] == found[("triggers_deliveries_due",)] == 0


@pytest.mark.django_db(transaction=True)
def test_client_certificates_near_their_end_are_counted(organization: Organization) -> None:
    found = samples()
    assert found[("triggers_client_certificates_ending",)] == 0
    assert ("triggers_client_certificate_end_timestamp_seconds",) not in found
    now = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    ends = {name: now + datetime.timedelta(days=days) for name, days in (("over", -1), ("soon", 13), ("later", 15))}
    for name, end in [*ends.items(), ("disabled", ends["soon"]), ("deleted", ends["soon"])]:
        row = subscribe(organization, f"https://{name}.example/")
        Subscription.objects.filter(pk=row.pk).update(
            client_certificate_details={"expires_at": end.isoformat()},
            is_active=name != "disabled",
            deleted_at=now if name == "deleted" else None,
        )
    metrics._database_metrics = metrics.DatabaseMetrics()
    found = samples()
    assert found[("triggers_client_certificates_ending",)] == 2
    assert found[("triggers_client_certificate_end_timestamp_seconds",)] == ends["over"].timestamp()


@pytest.mark.django_db(transaction=True)
def test_what_waits_in_inboxes_and_what_is_leased_is_counted(organization: Organization) -> None:
    assert stats.inbox_events(100) == ({"waiting": 0, "leased": 0}, 0.0)
    inbox, disabled = (
        subscriptions.create(organization.id, inbox=name, event_types=["*"])[0] for name in ("orders", "disabled")
    )
    subscribe(organization)  # an endpoint's deliveries don't count
    accept(organization, 5)
    subscriptions.disable(disabled)
    fetching.fetch(inbox.pk, 2, 30)
    Delivery.objects.filter(subscription=inbox, lease_id=None).update(next_attempt_at="2020-01-01T00:00:00Z")
    counted, oldest = stats.inbox_events(100)
    assert counted == {"waiting": 3, "leased": 2}
    assert oldest > 86_400
    assert stats.inbox_events(1)[0] == {"waiting": 1, "leased": 1}
    found = samples()
    assert (found["triggers_inbox_events", "waiting"], found["triggers_inbox_events", "leased"]) == (3, 2)
    assert found[("triggers_inbox_oldest_waiting_seconds",)] > 86_400


@pytest.mark.django_db(transaction=True)
def test_what_is_due_and_what_is_paused_is_counted_in_one_pass(organization: Organization, settings: Any) -> None:
    queues = {
        "circuit_breaker": {"breaker_trips": 1},
        "retry_after": {"paused_until": "2100-01-01T00:00:00Z"},
        "concurrency_limit": {"in_flight": 1, "concurrency_window": 1},
        "rate_limit": {"next_due_at": "2100-01-01T00:00:00Z"},
        "due": {},
    }
    rows = {name: subscribe(organization) for name in queues}
    accept(organization, 2)
    for name, columns in queues.items():
        SubscriptionQueue.objects.filter(pk=rows[name].pk).update(**columns)
    Subscription.objects.filter(pk=rows["rate_limit"].pk).update(deliveries_per_second=1)
    expected = dict.fromkeys((*(name for name in queues if name != "due"),), 2) | {"held": 0, "sending_disabled": 0}
    assert stats.waiting_deliveries(100) == (2, expected)
    assert stats.waiting_deliveries(1) == (1, {name: min(number, 1) for name, number in expected.items()})
    settings.DISABLE_WEBHOOK_DELIVERY = True
    assert stats.waiting_deliveries(100) == (0, {**expected, "sending_disabled": 2})


@pytest.mark.django_db
def test_fetches_and_acknowledgements_of_inboxes_are_counted(organization: Organization) -> None:
    inbox = subscriptions.create(organization.id, inbox="orders", event_types=["*"])[0]
    fetching.fetch(inbox.pk, 10, 30)
    accept(organization, 3)
    _, events = fetching.fetch(inbox.pk, 10, 30)
    first, second, third = (one.delivery_id for one in events)
    fetching.acknowledge(inbox.pk, [first])
    fetching.acknowledge(inbox.pk, [first, second])
    fetching.give_back(inbox.pk, [third])
    found = samples()
    assert (found["triggers_inbox_fetches_total", "events"], found["triggers_inbox_fetches_total", "none"]) == (1, 1)
    assert found[("triggers_inbox_events_fetched_total",)] == 3
    changes = {labels[1]: value for labels, value in found.items() if labels[0] == "triggers_inbox_changes_total"}
    assert changes == {"acknowledged": 2, "already_acknowledged": 1, "given_back": 1}


def _can_connect() -> bool:
    connection.close()
    try:
        connection.ensure_connection()
    except OperationalError:
        return False
    return True


@pytest.mark.django_db(transaction=True)
def test_the_page_comes_without_the_database() -> None:
    assert samples()[("triggers_database_up",)] == 1
    metrics._database_metrics = metrics.DatabaseMetrics()
    postgres.stop()
    try:
        found = samples()
    finally:
        postgres.start()
        wait_until(_can_connect, "the database is not back", 30)
    assert found[("triggers_database_up",)] == 0
    assert ("triggers_deliveries_due",) not in found
    assert ("triggers_redis_up",) in found


@pytest.mark.slow  # to unpack Prometheus in a fresh clone
@pytest.mark.django_db
def test_prometheus_own_tool_finds_nothing_to_improve() -> None:
    promtool, more = find("promtool")
    checked = subprocess.run(
        [promtool, "check", "metrics"],
        input=read(), env={**os.environ, **more}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")


@pytest.mark.django_db
def test_the_documentation_lists_every_metric_with_its_labels() -> None:
    table = re.findall(r"^\| `(triggers_\w+)` \|([^|]*)\|", (ROOT / "docs" / "monitoring.md").read_text(), re.M)
    documented = {name: set(re.findall(r"`(\w+)`", labels)) for name, labels in table}
    actual = {name: set(metric.labels) for name, metric in kinds.declared.items()}
    for family in metrics.read_metrics():
        actual[family.name] = {label for sample in family.samples for label in sample.labels}
    actual |= {"triggers_workers": set(), "triggers_sweep_age_seconds": set()}  # not always there
    assert documented == actual


def outcomes() -> dict[str, float]:
    """Return how many events were counted by outcome."""
    return {key[1]: value for key, value in samples().items() if key[0] == "triggers_events_total" and value}


@pytest.mark.django_db(transaction=True)
def test_what_a_key_refuses_is_counted_as_a_conflict(api: Any, organization: Any) -> None:
    once(api, "/api/events", {**EVENT, "dedup_id": "d"})
    once(api, "/api/events", {**EVENT, "data": 2})
    once(api, "/api/events/batch", [EVENT, EVENT])
    assert once(api, "/api/events", {**EVENT, "dedup_id": "d", "data": 2}, "k-2").status_code == 409
    lock = Once(organization.id, "k-3", b"", uuid.uuid4(), "")
    with connection.cursor() as cursor:
        cursor.execute("BEGIN")
        cursor.execute(LOCK, lock_parameters([lock]))

        def send() -> None:
            once(api, "/api/events", EVENT, "k-3")
            connection.close()

        thread = threading.Thread(target=send)
        thread.start()
        thread.join()
        cursor.execute("ROLLBACK")
    assert outcomes() == {"accepted": 1, "conflict": 1 + 2 + 1 + 1}


def test_an_attempt_that_is_tried_again_has_its_effects_once(api: Any, organization: Any, door: int | None) -> None:
    """A trigger has the first attempt deadlock where the response is kept, when the event is stored."""
    if door is not None:
        pytest.skip("the front door counts and logs when everything is committed")
    organization.events_per_minute = 9
    organization.save()
    have_the_first_attempt_deadlock()
    with structlog.testing.capture_logs() as lines:
        answer = once(api, "/api/events", EVENT)
    assert answer.status_code == 202
    assert answer["RateLimit"].startswith('"events";r=8;')
    assert Event.objects.count() == 1
    assert outcomes() == {"accepted": 1}
    told = [line["event"] for line in lines]
    assert (told.count("transaction_retried"), told.count("event_ingested")) == (1, 1)
