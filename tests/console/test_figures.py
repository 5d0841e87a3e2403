"""Figures mean the same wherever they stand, and look the same."""

from __future__ import annotations

import datetime
import re
from pathlib import Path

import django_rq
import pytest
from django.contrib import admin
from django.contrib.admin import __file__ as django_admin
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from orgs.models import Organization
from tests.console.rows import World, list_url, page_url
from tests.console.test_runs import fill, text_of
from tests.webhooks.helpers import subscribe
from webhooks import rollups, subscriptions
from webhooks.display.formatting import format_duration
from webhooks.models import Delivery, Gauge, Rollup, Subscription, SubscriptionQueue
from webhooks.rollups import BUCKETS, NO_ID

HOME = reverse("admin:index")
CONSOLE = Path(__file__).parents[2] / "console"
WEBHOOKS = CONSOLE.parent / "webhooks"


def test_paused_and_retrying_are_one_number_in_figures_chart_and_table(
    viewer: Client, organization: Organization
) -> None:
    now = timezone.now()
    until = now + datetime.timedelta(minutes=5)
    dead, limited, off = (subscribe(organization, f"http://127.0.0.1:9/{name}") for name in ("dead", "limited", "off"))
    for row, count in ((dead, 7), (limited, 4), (off, 3)):
        fill(row, count, "pending", "")
    Delivery.objects.filter(pk__in=Delivery.objects.filter(subscription=dead)[:2]).update(last_error="timeout")
    queues = SubscriptionQueue.objects
    Delivery.objects.update(next_attempt_at=now)
    queues.update(next_due_at=now)
    queues.filter(pk=dead.pk).update(breaker_trips=2, paused_until=until)
    Subscription.objects.filter(pk=limited.pk).update(deliveries_per_second=1)
    queues.filter(pk=limited.pk).update(next_due_at=until)
    subscriptions.disable(off)
    rollups.keep_rollups()
    # As if it had been written a minute ago: the newest minute isn't shown.
    Gauge.objects.update(at=now.replace(second=0, microsecond=0) - datetime.timedelta(minutes=2))
    page = viewer.get(HOME).content.decode()
    text = text_of(viewer.get(HOME))
    assert "11 deliveries paused 7 behind circuit breakers, 4 at their rate limit" in text
    paused_endpoints = list_url(Subscription, state="paused")
    assert f'href="{paused_endpoints}"' in page
    listed = text_of(viewer.get(paused_endpoints))
    assert "/dead" in listed
    assert "/limited" not in listed
    assert "3 deliveries held" in text
    assert "2 retrying" in text
    (chart,) = re.findall(r'aria-label="(Waiting deliveries[^"]*)"', page)
    assert re.search(r"paused: now 11\b", chart), chart
    assert re.search(r"held: now 3\b", chart), chart
    assert re.search(r"retrying: now 2\b", chart), (chart, "while their endpoint is paused, too")
    table = viewer.get(HOME, {"table": "1"}).content.decode()
    head = re.findall(
        r'<th scope="col">(.*?)</th>', table.partition('class="wide numbers"')[2].partition("</thead>")[0]
    )
    rows = [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row) for row in re.findall(r"<tr>.*?</tr>", table, re.S)]
    (full,) = [row for row in rows if len(row) == len(head) and row != head]
    figures = dict(zip(head, full, strict=True))
    assert (figures["paused"], figures["retrying"]) == ("11", "2")


def test_deliveries_that_ran_out_of_attempts_are_counted_apart_from_failed_attempts(
    world: World, viewer: Client
) -> None:
    at = timezone.now().replace(second=0, microsecond=0) - datetime.timedelta(minutes=20)
    row = world.subscription
    for owner, of in ((row.organization_id, row.pk), (NO_ID, NO_ID)):
        for outcome, attempts, settled in (("delivered", 30, 30), ("timeout", 10, 4)):
            Rollup.objects.create(
                step=1, organization_id=owner, subscription_id=of, at=at, outcome=outcome, attempts=attempts,
                settled=settled, durations=[attempts] + [0] * (BUCKETS - 1), latencies=[0] * BUCKETS,
            )  # fmt: skip
    for path in (HOME, f"{page_url(row)}?span=1h"):
        text = text_of(viewer.get(path))
        assert "10 failed attempts, 4 deliveries without attempts left" in text
        assert "deliveries without attempts left:" in viewer.get(path).content.decode()


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [(0, "0 ms"), (0.42, "0.4 ms"), (12.5, "12 ms"), (999, "999 ms"), (1500, "1.5 s"), (60_000, "1 min"),
     (5_400_000, "1.5 h"), (172_800_000, "2 d")],
)  # fmt: skip
def test_durations_have_one_style(milliseconds: float, text: str) -> None:
    assert format_duration(milliseconds) == text


def test_a_duration_looks_the_same_in_the_list_on_the_page_and_in_the_table(world: World, viewer: Client) -> None:
    pages = (list_url(type(world.attempt)), page_url(world.attempt), page_url(world.deliveries["failed"]))
    for path in pages:
        assert re.search(r">\s*12 ms\s*<", viewer.get(path).content.decode()), path


def test_no_rule_of_the_style_sheet_is_for_nothing() -> None:
    sheets = (CONSOLE / "static/console/console.css", WEBHOOKS / "static/webhooks/display.css")
    sheet = re.sub(r"/\*.*?\*/|\{[^}]*\}", " ", "".join(one.read_text() for one in sheets), flags=re.S)
    sources = [
        path.read_text()
        for root in (
            CONSOLE,
            *(WEBHOOKS / name for name in ("display", "static", "templates")),
            Path(django_admin).parent,
            Path(django_rq.__file__).parent / "templates",
        )
        for path in root.rglob("*")
        if path.suffix in {".py", ".html", ".js"}
    ]
    words = set(re.findall(r"[\w-]+", " ".join(sources)))
    columns = {name for one in admin.site._registry.values() for name in one.list_display}
    gauges = {f"gauge-{name.replace('_', '-')}" for name in ("due", "retrying", "paused", "held", "in_flight")}
    made = {"gave-up"} | {f"{kind}-{name}" for kind in ("column", "field") for name in columns} | gauges
    made |= {f"model-{one._meta.model_name}" for one in admin.site._registry}
    made |= {name for name in re.findall(r"\.(state-[\w-]+)", sheet) if name.removeprefix("state-") in words}
    dead = [name for name in set(re.findall(r"\.([a-z][\w-]+)", sheet)) if name not in words | made]
    assert not dead
