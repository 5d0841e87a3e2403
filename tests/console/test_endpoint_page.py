"""The page of a subscription: its endpoint's figures, its queue, its attempts, and buttons that fit its state."""

from __future__ import annotations

import datetime
import re

from django.test import Client
from django.utils import timezone

from devstack.http_receiver import Receiver, Response, verify
from orgs.models import AuditEntry
from tests.console.rows import World, act, ask, make_attempt, page_url, said
from webhooks import subscriptions
from webhooks.models import Delivery, Gauge, Rollup, Subscription
from webhooks.rollups import BUCKETS, NO_ID


def buttons(client: Client, subscription: Subscription) -> list[str]:
    page = client.get(page_url(subscription)).content.decode()
    return re.findall(r'<button type="submit" class="button(?: danger)?" name="action" value="(\w+)"', page)


def test_buttons_fit_the_state_and_the_user(world: World, operator: Client, owner: Client, viewer: Client) -> None:
    row = world.subscription
    assert buttons(viewer, row) == []
    assert buttons(operator, row) == ["send_test", "retry_failed", "recover", "disable", "stop_host"]
    assert buttons(owner, row) == [
        "send_test", "retry_failed", "recover", "disable", "rotate_secret", "add_secret", "stop_host",
    ]  # fmt: skip
    page = operator.get(page_url(row)).content.decode()
    assert re.findall(r'class="button danger" name="action" value="(\w+)"', page) == ["disable", "stop_host"]
    subscriptions.disable(row)
    assert buttons(operator, row) == ["send_test", "retry_failed", "recover", "enable", "enable_host"]
    subscriptions.delete(row)
    assert buttons(owner, row) == []


def test_a_test_event_s_outcome_is_shown_as_text(world: World, operator: Client, receiver: Receiver) -> None:
    subscriptions.change(world.subscription, {"url": receiver.url("/hook")})
    receiver.behavior = lambda request, number: Response(200 if number == 1 else 503, body=b"<img src=x>")
    answer = act(operator, "send_test", [world.subscription])
    assert "responded with 200" in said(answer)
    assert "<img src=x>" in said(answer)
    assert b"<img src=x>" not in answer.content
    assert "503" in said(act(operator, "send_test", [world.subscription]))
    assert AuditEntry.objects.filter(action="subscription.test").count() == 2


def test_a_rotated_secret_is_shown_once_and_signs(world: World, owner: Client, receiver: Receiver) -> None:
    answer = act(owner, "rotate_secret", [world.subscription], overlap="3600")
    secret = re.search(r'id="secret">(whsec_[^<]+)<', answer.content.decode())[1]  # type: ignore[index]
    assert "no-store" in answer["Cache-Control"]
    subscriptions.change(world.subscription, {"url": receiver.url("/hook")})
    act(owner, "send_test", [world.subscription])
    (request,) = receiver.requests
    assert verify(secret, request)
    assert verify(world.secret, request), "the old secret signs for an hour"
    assert AuditEntry.objects.get(action="subscription.rotate_secret").detail == {"overlap_seconds": 3600}
    before = Subscription.objects.values_list("encrypted_secret").get()
    act(owner, "rotate_secret", [world.subscription], overlap="-1")
    ask(owner, "rotate_secret", [world.subscription])
    assert Subscription.objects.values_list("encrypted_secret").get() == before


def test_figures_causes_attempts_and_the_queue_are_there(world: World, viewer: Client) -> None:
    at = timezone.now().replace(second=0, microsecond=0) - datetime.timedelta(minutes=20)
    row = world.subscription
    for outcome, attempts in (("delivered", 30), ("http_status 503", 10)):
        Rollup.objects.create(
            step=1, organization_id=row.organization_id, subscription_id=row.pk, at=at, outcome=outcome,
            attempts=attempts, durations=[attempts] + [0] * (BUCKETS - 1), latencies=[0] * BUCKETS,
        )  # fmt: skip
    Gauge.objects.create(step=1, organization_id=NO_ID, at=at, due=0)
    Delivery.objects.update(attempt_count=1)
    make_attempt(world.deliveries["delivered"], status_code=418, response_body="I'm a <b>teapot</b>")
    page = viewer.get(page_url(row) + "?span=1h").content.decode()
    assert "75.0%" in page
    assert "HTTP 503" in page
    assert "HTTP 418" in page
    assert "&lt;b&gt;teapot" in page
    assert 'role="img"' in page
    table = viewer.get(page_url(row) + "?span=1h&table=1").content.decode()
    assert "<svg viewBox" not in table
    assert "no figures: no worker was running" in table
    # What the organization has accepted, and what waits for all of its endpoints, isn't this endpoint's.
    head = re.findall(r'<th scope="col">(.*?)</th>', table.partition('class="wide numbers"')[2])
    assert head[:3] == ["period (UTC)", "attempts", "delivered"]
    assert "due" not in head
    assert viewer.get(page_url(row) + "?span=nonsense").status_code == 200
