"""Whether tables full of history slow anything down."""

from __future__ import annotations

import http.cookiejar
import time
import urllib.parse
import urllib.request

from bench.figures import Figure
from bench.rates import drain
from bench.stack import BenchStack, Tenant
from bench.stats import median
from devstack.http_receiver import ReceiverProcess

WARM_UP = 2_000
SETTLED = 2_000_000
PARKED = 200_000
GETS = 9
DELIVERIES = 20_000
PAGE_SUBSCRIPTIONS = 10
ADMIN = ("bench", "bench-only-password")


def big_tables(stack: BenchStack) -> list[Figure]:
    """2,000,000 settled deliveries and 200,000 parked: delivery rate against empty tables, and first pages."""
    tenant = stack.tenant()
    name = "big-tables"
    with stack.receiver() as receiver, stack.running_web(), stack.running_worker() as worker:
        drain(stack, tenant, receiver, deliveries=WARM_UP, subscriptions=2, pids=[worker.pid])
        empty = [_rate(stack, tenant, receiver, worker.pid) for _ in range(2)]
        _fill(stack, tenant)
        full = [_rate(stack, tenant, receiver, worker.pid) for _ in range(2)]
        opener = urllib.request.build_opener()
        opener.addheaders = [("X-API-Key", tenant.key)]
        pages = {
            "GET /api/deliveries": get_seconds(opener, f"{stack.url}/api/deliveries"),
            "GET /api/events": get_seconds(opener, f"{stack.url}/api/events"),
            "GET /api/health/detailed": get_seconds(opener, f"{stack.url}/api/health/detailed"),
        }
        pages.update(_admin_pages(stack.url))
    return [
        Figure(name, "delivered, empty tables", sum(empty) / 2, "/s"),
        Figure(name, "delivered, big tables", sum(full) / 2, "/s"),
        Figure(name, "share of the empty tables' rate", sum(full) / sum(empty) * 100, "%", ">= 80"),
        *(Figure(name, page, seconds * 1000, "ms", "< 50") for page, seconds in pages.items()),
    ]


def _rate(stack: BenchStack, tenant: Tenant, receiver: ReceiverProcess, pid: int) -> float:
    sent = drain(stack, tenant, receiver, deliveries=DELIVERIES, subscriptions=PAGE_SUBSCRIPTIONS, pids=[pid])
    return sent.per_second


def _fill(stack: BenchStack, tenant: Tenant) -> None:
    """Write a month's history: settled deliveries with their events and attempts, and parked ones."""
    chosen = [stack.subscribe(tenant, f"http://127.0.0.1:9/{number}", ["nothing"]) for number in range(4)]
    events = SETTLED // len(chosen)
    stack.sql(
        "INSERT INTO events_event"
        " (id, organization_id, type, data, status, failed_attempts, last_error, due_at, created_at, processed_at)"
        " SELECT uuidv7(t - now()), %(org)s, 'order.created', '{\"order\": 4711}', 'processed', 0, '', t, t, t"
        " FROM (SELECT now() - interval '30 days' + n * (interval '29 days' / %(events)s) AS t"
        " FROM generate_series(1, %(events)s) AS n)",
        {"org": tenant.id, "events": events},
    )
    stack.sql(
        "INSERT INTO webhooks_delivery (id, organization_id, event_id, subscription_id, status, next_attempt_at,"
        " cause, attempts_used, attempt_count, last_status_code, last_error, completed_at, created_at)"
        " SELECT uuidv7(e.created_at - now()), %(org)s, e.id, s, 'delivered', e.created_at, 'schedule', 1, 1, 200, '',"
        " e.created_at, e.created_at FROM events_event e, unnest(%(subscriptions)s::uuid[]) AS s"
        " WHERE e.organization_id = %(org)s AND e.created_at < now() - interval '12 hours'",
        {"org": tenant.id, "subscriptions": chosen},
    )
    stack.sql(
        "INSERT INTO webhooks_deliveryattempt (delivery_id, number, cause, started_at, duration_ms, status_code,"
        " error, error_detail, response_body) SELECT id, 1, 'schedule', created_at, 3.2, 200, '', '', 'ok'"
        " FROM webhooks_delivery WHERE created_at < now() - interval '12 hours'"
    )
    # Parked: a subscription whose receiver was down; each waits hours for its next attempt.
    parked = stack.subscribe(tenant, "http://127.0.0.1:9/parked", ["nothing"])
    stack.sql(
        "INSERT INTO webhooks_delivery (id, organization_id, event_id, subscription_id, status, next_attempt_at,"
        " cause, attempts_used, attempt_count, last_error, created_at)"
        " SELECT uuidv7(), %(org)s, id, %(parked)s, 'pending', now() + interval '5 hours', 'schedule', 5, 5, 'timeout',"
        " now() FROM events_event WHERE organization_id = %(org)s ORDER BY created_at DESC LIMIT %(count)s",
        {"org": tenant.id, "parked": parked, "count": PARKED},
    )
    stack.sql(
        "UPDATE webhooks_subscriptionqueue SET next_due_at = now() + interval '5 hours' WHERE subscription_id = %s",
        (parked,),
    )
    stack.settle_tables()
    stack.sql("CHECKPOINT")


def _admin_pages(base: str) -> dict[str, float]:
    """Return the median time of the admin lists' first pages, logged in as a superuser."""
    browser, root = logged_in(base)
    found = {}
    for page in ("events/event", "webhooks/delivery", "webhooks/deliveryattempt", "webhooks/subscription"):
        found[f"admin list {page}"] = get_seconds(browser, f"{root}/{page}/")
    return found


def logged_in(base: str) -> tuple[urllib.request.OpenerDirector, str]:
    """Return the browser of a superuser who has logged in to the admin, and the admin's address."""
    from django.conf import settings
    from django.contrib.auth import get_user_model

    users = get_user_model()._default_manager
    if not users.filter(username=ADMIN[0]).exists():
        get_user_model().objects.create_superuser(ADMIN[0], "bench@example.org", ADMIN[1])
    jar = http.cookiejar.CookieJar()
    browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(jar))
    root = f"{base}/{settings.ADMIN_PATH}"
    browser.open(f"{root}/login/", timeout=30).read()
    token = next(cookie.value or "" for cookie in jar if cookie.name == "csrftoken")
    form = {
        "username": ADMIN[0],
        "password": ADMIN[1],
        "csrfmiddlewaretoken": token,
        "next": f"/{settings.ADMIN_PATH}/",
    }
    browser.open(f"{root}/login/", urllib.parse.urlencode(form).encode(), timeout=30).read()
    return browser, root


def get_seconds(opener: urllib.request.OpenerDirector, url: str) -> float:
    """Return the median time of GETs of a page, after one that is not counted."""
    taken = []
    for _ in range(GETS + 1):
        started = time.perf_counter()
        opener.open(url, timeout=60).read()
        taken.append(time.perf_counter() - started)
    return median(taken[1:])
