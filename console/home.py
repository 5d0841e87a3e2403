"""The home of the console: how deliveries are doing, now and over time, and which endpoints are in trouble."""

from __future__ import annotations

import datetime
import uuid
from dataclasses import dataclass
from typing import Any

from django.db.models import Q
from django.http import HttpRequest
from django.urls import reverse
from django.utils import timezone
from django.utils.safestring import SafeString

from console import panels
from console.causes import words_for
from console.charts import milliseconds, percent
from console.dashboard import read_figures
from console.formatting import badge, format_time, host_of_url, list_link, object_link, short
from console.series import SPANS, EndpointFigures, Span, rank_endpoints, read_series
from core.db import server_cursor
from core.ids import parse_id
from core.redis import RedisUnavailable, call_redis
from core.workers import LiveWorker, list_live_workers
from orgs.models import Organization
from webhooks.models import Subscription, SubscriptionQueue
from webhooks.rollups import DELIVERED, NO_ID

SHOWN_ENDPOINTS = 10
SHOWN_WORKERS = 20
# More are found by their id in the address, which every page of an organization links to.
OFFERED_ORGANIZATIONS = 500
COUNT_WAITING_TO = 10_000


@dataclass(frozen=True, slots=True)
class Choice:
    """What the home shows: a span, and everything or one organization."""

    span: Span
    organization: Organization | None

    @property
    def organization_id(self) -> uuid.UUID:
        return self.organization.pk if self.organization else NO_ID

    @property
    def query(self) -> dict[str, str]:
        """The choice as parameters of an address."""
        chosen = {"organization": str(self.organization.pk)} if self.organization else {}
        return {"span": self.span.name, **chosen}


def choice_of(request: HttpRequest) -> Choice:
    """Return what the address asks for; what it doesn't say, or says wrong, is the default."""
    organization_id = parse_id(request.GET.get("organization", ""))
    organization = Organization.objects.filter(pk=organization_id).first() if organization_id else None
    return Choice(SPANS.get(request.GET.get("span", ""), SPANS["1h"]), organization)


def home_context(request: HttpRequest) -> dict[str, Any]:
    """Return what the home's picker and its live part show."""
    choice = choice_of(request)
    organizations = list(Organization.objects.order_by("name", "pk").only("name")[:OFFERED_ORGANIZATIONS])
    if choice.organization and choice.organization not in organizations:
        organizations.insert(0, choice.organization)
    return {
        "choice": choice,
        "spans": SPANS.values(),
        "organizations": [(row.pk, short(row.name, 60)) for row in organizations],
        "as_table": "table" in request.GET,
        "live_url": reverse("admin:home_live", query=choice.query),
        "table_url": reverse("admin:index", query={**choice.query, "table": "1"}),
        "charts_url": reverse("admin:index", query=choice.query),
        "is_empty": not Organization.objects.exists(),
        **live_context(request, choice),
    }


def live_context(request: HttpRequest, choice: Choice | None = None) -> dict[str, Any]:
    """Return what refreshes itself."""
    choice = choice or choice_of(request)
    series = read_series(choice.span, choice.organization_id)
    rankings = rank_endpoints(choice.span, choice.organization_id)
    context: dict[str, Any] = {
        "choice": choice,
        "now": format_time(timezone.now()),
        "headline": panels.headline(series),
        "figures": [] if choice.organization else read_figures(),
        "trouble": endpoints_in_trouble(choice.organization),
        "causes": panels.failures_by_cause(series.total()),
        "slowest": _ranked(rankings.slowest),
        "most_failing": _ranked(rankings.failing),
        "workers": None if choice.organization else _workers(),
    }
    if "table" in request.GET:
        context["table"] = {"head": panels.TABLE_HEAD, "rows": panels.table_rows(series)}
    else:
        context["charts"] = panels.home_charts(series, of_all=choice.organization is None)
    return context


# --- endpoints ----------------------------------------------------------------------------------------------------


_LAST_FAILURES = """
SELECT s.id, found.outcome, found.at FROM unnest(%(organizations)s::uuid[], %(ids)s::uuid[]) AS s(organization_id, id)
CROSS JOIN LATERAL (
    (SELECT outcome, at FROM webhooks_rollup
     WHERE step = 1 AND organization_id = s.organization_id AND subscription_id = s.id AND outcome <> %(delivered)s
     ORDER BY at DESC, outcome DESC LIMIT 1)
    UNION ALL
    (SELECT outcome, at FROM webhooks_rollup
     WHERE step = 60 AND organization_id = s.organization_id AND subscription_id = s.id AND outcome <> %(delivered)s
     ORDER BY at DESC, outcome DESC LIMIT 1)
    LIMIT 1
) AS found
"""
_COUNT_WAITING = """
SELECT s.id, (
    SELECT count(*) FROM (
        SELECT 1 FROM webhooks_delivery WHERE subscription_id = s.id AND status = 'pending' LIMIT %(most)s
    ) AS p
) + (
    SELECT count(*) FROM (
        SELECT 1 FROM webhooks_delivery WHERE subscription_id = s.id AND status = 'held' LIMIT %(most)s
    ) AS h
) FROM unnest(%(ids)s::uuid[]) AS s(id)
"""


def endpoints_in_trouble(organization: Organization | None = None) -> list[dict[str, Any]]:
    """Return the subscriptions that fail, are paused or are disabled, with the cause; failing ones first."""
    troubled = Q(failing_since__isnull=False) | Q(accepts_deliveries=False) | Q(paused_until__gt=timezone.now())
    found = SubscriptionQueue.objects.filter(troubled, subscription__deleted_at=None)
    if organization is not None:
        found = found.filter(organization_id=organization.pk)
    queues = list(
        found.select_related("subscription__organization")
        .defer("subscription__encrypted_headers", "subscription__encrypted_secret")
        .order_by("-accepts_deliveries", "failing_since", "pk")[:SHOWN_ENDPOINTS]
    )
    ids = [queue.pk for queue in queues]
    with server_cursor() as cursor:
        owners = [queue.organization_id for queue in queues]
        cursor.execute(_LAST_FAILURES, {"organizations": owners, "ids": ids, "delivered": DELIVERED})
        failures = {row[0]: row[1] for row in cursor.fetchall()}
        cursor.execute(_COUNT_WAITING, {"ids": ids, "most": COUNT_WAITING_TO})
        waiting = dict(cursor.fetchall())
    return [_trouble(queue, failures.get(queue.pk), waiting[queue.pk]) for queue in queues]


def _trouble(queue: SubscriptionQueue, outcome: str | None, waiting: int) -> dict[str, Any]:
    subscription = queue.subscription
    paused = queue.paused_until is not None and queue.paused_until > timezone.now()
    if not subscription.is_active:
        state, since = badge("held", "disabled"), subscription.disabled_at
        cause = short(subscription.disabled_reason, 200)
        then = "held until it is enabled"
    else:
        state = badge("paused") if paused else badge("failed", "failing")
        since = queue.failing_since
        cause = words_for(outcome) if outcome else ""
        if queue.consecutive_failures:
            cause += f"{'; ' if cause else ''}{queue.consecutive_failures:,} consecutive failures"
        upcoming = queue.paused_until if paused else queue.next_due_at
        then = f"next attempt {format_time(upcoming)}" if upcoming else "nothing waits"
    amount = f"{COUNT_WAITING_TO:,}+" if waiting >= COUNT_WAITING_TO else f"{waiting:,}"
    status = "pending" if subscription.is_active else "held"
    return {
        "endpoint": endpoint_link(subscription),
        "organization": object_link(subscription.organization, short(subscription.organization.name, 60)),
        "state": state,
        "since": format_time(since),
        "cause": cause or "-",
        "waiting": list_link("webhooks_delivery", amount, subscription=subscription.pk, status=status),
        "then": then,
    }


def endpoint_link(subscription: Subscription) -> SafeString | str:
    """Return a link to the subscription's page, named by its host and as much of the path as fits."""
    return object_link(subscription, short(host_of_url(subscription.url, with_path=True), 60))


def _ranked(ranking: list[EndpointFigures]) -> list[dict[str, Any]]:
    rows = Subscription.objects.select_related("organization").only("url", "organization__name")
    found = rows.in_bulk([figures.subscription_id for figures in ranking])
    return [
        {
            "endpoint": endpoint_link(found[figures.subscription_id]),
            "organization": object_link(
                found[figures.subscription_id].organization, short(found[figures.subscription_id].organization.name, 60)
            ),
            "attempts": f"{figures.attempts:,}",
            "failed": f"{figures.failed:,}",
            "success_rate": percent(100 * (figures.attempts - figures.failed) / figures.attempts),
            "mean": milliseconds(figures.mean_ms),
            "p95": "-" if figures.p95_ms is None else milliseconds(figures.p95_ms),
        }
        for figures in ranking
        if figures.subscription_id in found
    ]  # fmt: skip


def _workers() -> dict[str, Any]:
    """Return the live workers; `known` is False if Redis doesn't answer."""
    try:
        found: list[LiveWorker] = call_redis(list_live_workers)
    except RedisUnavailable:
        return {"known": False, "rows": []}
    now = datetime.datetime.now(datetime.UTC)
    rows = [
        {
            "name": short(worker.name, 13),
            "host": short(worker.host, 40),
            "state": short(worker.state, 20),
            "since": "-" if worker.born_at is None else _age(now - worker.born_at),
            "jobs": f"{worker.jobs:,}",
            "busy": "-"
            if worker.born_at is None
            else percent(min(100.0, 100 * worker.working_seconds / max(1.0, (now - worker.born_at).total_seconds()))),
        }
        for worker in found[:SHOWN_WORKERS]
    ]
    return {"known": True, "rows": rows, "more": max(0, len(found) - SHOWN_WORKERS)}


def _age(age: datetime.timedelta) -> str:
    return milliseconds(max(0.0, age.total_seconds()) * 1000)
