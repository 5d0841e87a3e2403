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

from console.dashboard import COUNT_TO, bounded, read_stats
from console.failures import read_failures
from console.formatting import list_link, object_link
from core.db import server_cursor
from core.ids import parse_id
from core.redis import RedisUnavailable, call_redis
from core.redis_health import NO_RESPONSE, RedisHealth, check_redis
from core.workers import LiveWorker, list_live_workers
from orgs.models import Organization
from webhooks.display import panels
from webhooks.display.charts import percent
from webhooks.display.formatting import badge, cause_of, escape_each, format_duration, format_time, host_of_url, short
from webhooks.display.series import SPANS, EndpointStats, Span, rank_endpoints, read_series
from webhooks.models import ENCRYPTED, Subscription
from webhooks.rollups import NO_ID
from webhooks.states import SubscriptionState, in_state, with_state

SHOWN_ENDPOINTS = 10
SHOWN_WORKERS = 20
# More are found by their id in the address, which every page of an organization links to.
OFFERED_ORGANIZATIONS = 500


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
        """The choice as a query string."""
        chosen = {"organization": str(self.organization.pk)} if self.organization else {}
        return {"span": self.span.name, **chosen}


def choice_of(request: HttpRequest) -> Choice:
    """Return what the URL asks for, with defaults for what is missing or invalid."""
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
        "lists": _lists(choice),
        "choice": choice,
        "spans": SPANS.values(),
        "organizations": _options(organizations, choice.organization),
        "as_table": "table" in request.GET,
        "live_url": reverse("admin:home_live", query=choice.query),
        "table_url": reverse("admin:index", query={**choice.query, "table": "1"}),
        "charts_url": reverse("admin:index", query=choice.query),
        "is_empty": not organizations,
        **live_context(request, choice),
    }


def _options(organizations: list[Organization], chosen: Organization | None) -> SafeString:
    """Return the options of a select; built here, because a template takes several times as long for hundreds."""
    names = escape_each([short(row.name, 60) for row in organizations])
    return SafeString(
        "".join(
            f'<option value="{row.pk}"{" selected" if row == chosen else ""}>{name}</option>'
            for row, name in zip(organizations, names, strict=True)
        )
    )


def _lists(choice: Choice) -> dict[str, str]:
    """Return the URLs of the lists, narrowed to the home's organization and, where they can be, time range."""
    owner = {"organization": str(choice.organization.pk)} if choice.organization else {}
    since = {"created": choice.span.name}
    narrowed = {
        "deliveries": ("webhooks_delivery", owner | since),
        "failed": ("webhooks_delivery", owner | {"status": f"failed-{choice.span.name}"}),
        "events": ("events_event", owner | since),
        "subscriptions": ("webhooks_subscription", owner),
        "attempts": ("webhooks_deliveryattempt", {}),
        "runs": ("webhooks_bulkrun", owner),
        "keys": ("orgs_apikey", owner),
        "audit": ("orgs_auditentry", owner),
    }
    return {name: reverse(f"admin:{model}_changelist", query=query) for name, (model, query) in narrowed.items()}


def live_context(request: HttpRequest, choice: Choice | None = None) -> dict[str, Any]:
    """Return the context of the part that refreshes itself."""
    choice = choice or choice_of(request)
    series = read_series(choice.span, choice.organization_id)
    rankings = rank_endpoints(choice.span, choice.organization_id)
    redis = None if choice.organization else check_redis()
    context: dict[str, Any] = {
        "choice": choice,
        "of": short(choice.organization.name, 80) if choice.organization else "",
        "now": format_time(timezone.now()),
        "headline": panels.headline(series),
        "figures": read_stats(redis) if redis else [],
        "trouble": endpoints_in_trouble(choice.organization),
        "failures": read_failures(choice.span, choice.organization.pk if choice.organization else None),
        "causes": panels.failures_by_cause(series.total()),
        "slowest": _ranked(rankings.slowest),
        "most_failing": _ranked(rankings.failing),
        "workers": _workers(redis) if redis else None,
    }
    if "table" in request.GET:
        context["table"] = panels.table(series)
    else:
        context["charts"] = panels.home_charts(series, of_all=choice.organization is None)
    return context


# --- endpoints ----------------------------------------------------------------------------------------------------


# What waits for each endpoint.  SQL, because each of the two counts ends at its own LIMIT, in one statement for all.
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
    """Return the subscriptions that are failing, paused or disabled, longest first."""
    rows = Subscription.objects.filter(deleted_at=None)
    if organization is not None:
        rows = rows.filter(organization_id=organization.pk)
    subscriptions = list(
        with_state(rows)
        .filter(Q(queue__failing_since__isnull=False) | Q(is_active=False) | in_state(SubscriptionState.PAUSED))
        .select_related("organization", "queue")
        .defer(*ENCRYPTED)
        .order_by("-is_active", "queue__failing_since", "disabled_at", "pk")[:SHOWN_ENDPOINTS]
    )
    with server_cursor() as cursor:
        cursor.execute(_COUNT_WAITING, {"ids": [row.pk for row in subscriptions], "most": COUNT_TO})
        waiting = dict(cursor.fetchall())
    return [_trouble(row, waiting[row.pk]) for row in subscriptions]


def _trouble(row: Any, waiting: int) -> dict[str, Any]:
    cause = cause_of(row)
    if row.is_active and row.queue.consecutive_failures > 1:
        cause += f"; {row.queue.consecutive_failures:,} consecutive failures"
    status = {"status": "held"} if row.state == SubscriptionState.DISABLED else {}
    return {
        "endpoint": endpoint_link(row),
        "organization": object_link(row.organization, short(row.organization.name, 60)),
        "state": badge(row.state),
        "since": format_time(row.state_since),
        "cause": cause or "-",
        "waiting": list_link("webhooks_delivery", bounded(waiting), subscription=row.pk, **status),
        "failed": list_link("webhooks_delivery", "show", subscription=row.pk, status="failed"),
        "next_attempt": "when it is enabled" if not row.is_active else format_time(row.next_attempt_at),
    }


def endpoint_link(subscription: Subscription) -> SafeString | str:
    """Return a link to the subscription's page, named by its host and as much of the path as fits."""
    return object_link(subscription, short(host_of_url(subscription.url, with_path=True), 60))


def _ranked(ranking: list[EndpointStats]) -> list[dict[str, Any]]:
    rows = Subscription.objects.select_related("organization").only("url", "organization__name")
    found = rows.in_bulk([stats.subscription_id for stats in ranking])
    return [
        {
            "endpoint": endpoint_link(found[stats.subscription_id]),
            "organization": object_link(
                found[stats.subscription_id].organization, short(found[stats.subscription_id].organization.name, 60)
            ),
            "attempts": f"{stats.attempts:,}",
            "failed": f"{stats.failed:,}",
            "success_rate": percent(100 * (stats.attempts - stats.failed) / stats.attempts),
            "mean": format_duration(stats.mean_ms),
            "p95": "-" if stats.p95_ms is None else format_duration(stats.p95_ms),
        }
        for stats in ranking
        if stats.subscription_id in found
    ]  # fmt: skip


def _workers(redis: RedisHealth) -> dict[str, Any]:
    """Return the live workers; without `known`, `problem` says why they are unknown."""
    try:
        found: list[LiveWorker] = call_redis(list_live_workers) if redis.workers is not None else []
    except RedisUnavailable:
        redis = RedisHealth("down", None, NO_RESPONSE)
    if redis.workers is None:
        return {"known": False, "rows": [], "problem": redis.problem}
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
    return format_duration(max(0.0, age.total_seconds()) * 1000)
