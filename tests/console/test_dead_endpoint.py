"""One endpoint is dead, with 2,200 deliveries behind it: every page names it with its cause and blames nothing else."""

from __future__ import annotations

import re
from typing import Any

import pytest
from django.test import Client
from django.urls import reverse

from devstack.sockets import free_port
from devstack.waiting import wait_until
from orgs.models import Organization
from tests.api.helpers import beat
from tests.conftest import ApiClient
from tests.console.rows import list_url, page_url
from tests.webhooks.helpers import fan_out, queue_of, sending, subscribe
from webhooks.models import Delivery, Subscription

BEHIND = 2_200


@pytest.mark.django_db(transaction=True)
def test_a_dead_endpoint_is_named_with_its_cause_and_nothing_else_is_blamed(
    api: ApiClient, organization: Organization, operator: Client
) -> None:
    dead = subscribe(organization, f"http://127.0.0.1:{free_port()}/dead")
    for _ in range(BEHIND // 550):
        batch: list[Any] = [{"type": "order.created", "data": {}}] * 550
        assert api.post("/api/events/batch", batch).status_code in {200, 202}
    fan_out()
    assert Delivery.objects.count() == BEHIND
    beat()
    with sending():
        wait_until(lambda: queue_of(dead).breaker_trips >= 2)
    wait_until(lambda: queue_of(dead).in_flight == 0)
    health = api.get("/api/health/detailed")
    body = health.json()
    assert (health.status_code, body["status"], "reasons" in body) == (200, "healthy", False)
    assert (body["queues"]["webhook_queue_length"], body["oldest_waiting_seconds"]["webhook"]) == (0, 0)
    assert body["paused_deliveries"]["circuit_breaker"] > BEHIND - 100
    index = operator.get(reverse("admin:index")).content.decode()
    assert 'class="figure alarm"' not in index
    (trouble,) = re.findall(r"<tbody>(.*?)</tbody>", index.partition('<table class="wide trouble">')[2], re.S)[:1]
    assert dead.url.removeprefix("http://") in trouble
    assert "connection refused; circuit breaker is open until" in trouble
    assert f">{BEHIND:,}<" in trouble
    for page in (page_url(dead), list_url(Subscription), list_url(Subscription, state="paused")):
        text = operator.get(page).content.decode()
        assert "connection refused; circuit breaker is open until" in text, page
    shown = api.get(f"/api/subscriptions/{dead.pk}").json()
    assert (shown["state"], shown["breaker"], shown["last_error"]) == ("paused", "open", "connection_refused")
    retrying = api.get("/api/deliveries?status=retrying&limit=200").json()["data"]
    pending = api.get("/api/deliveries?status=pending&limit=200").json()["data"]
    assert {row["last_error"] for row in retrying} == {"connection_refused"}
    assert {row["attempt_count"] for row in pending} == {0}
