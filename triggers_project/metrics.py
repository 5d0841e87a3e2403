"""`GET /metrics` for Prometheus: what the processes have counted, and metrics of the database and of Redis."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import threading
import time
from collections.abc import Iterable
from types import TracebackType

import structlog
from django.conf import settings
from django.db import Error as DatabaseError
from django.http import HttpRequest, HttpResponse
from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily
from psycopg import Error as PsycopgError

# For the metrics that they declare: each process shows those of all.
import events.ingest_log  # noqa: F401
import webhooks.dispatch.attempt_log
import webhooks.routing.fan_out  # noqa: F401
from core.db import borrow_connection
from core.metrics.page import MetricsPort, make_registry, render
from core.metrics.process import PUBLISH_SECONDS, publish
from core.metrics.requests import PROBLEMS
from core.problems import only_get
from core.redis_health import check_redis
from events.backlog import oldest_waiting_seconds, waiting_events
from webhooks import stats
from webhooks.destinations.inbox import fetching

log = structlog.get_logger()

# Counting stops here, so that the page stays cheap however long the queues are.
COUNT_TO = 5_000
# Of what a narrow index counts: ten times as many for the same time.
COUNT_MORE_TO = 100_000
_MOST = f"Counted up to {COUNT_TO}."
# The codes of `events.backlog`.
BACKLOG_CODES = ("backlog_full", "event_backlog_full", "delivery_backlog_full")
# How long metrics are used again, and how long a page waits for new ones before it says that the database is down.
FRESH_SECONDS = 2.0
PATIENCE_SECONDS = 5.0
# Metrics that took long are used for longer, so that reading them takes at most a fiftieth of the time.
FRESH_PER_SECOND_READ = 50
MOST_FRESH_SECONDS = 15.0
CERTIFICATE_DAYS = 14


def _gauge(name: str, help: str, value: float) -> Metric:
    return GaugeMetricFamily(name, help, value=value)


def _gauges(name: str, help: str, label: str, values: dict[str, int]) -> Metric:
    family = GaugeMetricFamily(name, help, labels=[label])
    for of, value in values.items():
        family.add_metric([of], value)
    return family


def _read_database() -> list[Metric]:
    """Return the metrics of the whole installation that stand in the database."""
    metrics = [*_of_events(), *_of_deliveries(), *_of_inboxes(), *_of_certificates()]
    if (age := stats.sweep_age_seconds()) is not None:
        metrics.append(_gauge("triggers_sweep_age_seconds", "How long ago a worker's last sweep ended.", age))
    return metrics


def _of_events() -> list[Metric]:
    waiting = waiting_events(COUNT_MORE_TO)
    return [
        _gauge(
            "triggers_events_waiting",
            f"Accepted events that wait for their fan-out. Counted up to {COUNT_MORE_TO}.",
            waiting,
        ),
        _gauge(
            "triggers_fan_out_lag_seconds",
            "How long the oldest accepted event has waited for its fan-out.",
            oldest_waiting_seconds() if waiting else 0.0,
        ),
        _gauge("triggers_events_in_fan_out", "Events that running fan-outs hold.", stats.events_in_fan_out()),
    ]


def _of_deliveries() -> list[Metric]:
    due, paused = stats.waiting_deliveries(COUNT_TO)
    return [
        _gauge("triggers_deliveries_due", f"Deliveries that only a free worker is missing for. {_MOST}", due),
        _gauge(
            "triggers_deliveries_oldest_due_seconds",
            "How long the delivery that is due longest could have been sent.",
            stats.oldest_due_seconds() if due else 0.0,
        ),
        _gauge("triggers_deliveries_in_flight", "Deliveries that workers have claimed.", stats.deliveries_in_flight()),
        _gauges(
            "triggers_deliveries_paused",
            f"Deliveries whose time has come and that can't be sent now, by reason. {_MOST}",
            "reason",
            paused,
        ),
        _gauges(
            "triggers_circuit_breakers",
            "Subscriptions by the state of their circuit breaker.",
            "state",
            stats.breaker_states(COUNT_MORE_TO),
        ),
    ]


def _of_inboxes() -> list[Metric]:
    in_inboxes, unfetched_seconds = stats.inbox_events(COUNT_TO)
    return [
        _gauges(
            "triggers_inbox_events",
            f"Events of inboxes that wait to be fetched, and those that are leased. {_MOST}",
            "state",
            in_inboxes,
        ),
        _gauge(
            "triggers_inbox_oldest_waiting_seconds",
            "How long the event that waits longest in an inbox could have been fetched.",
            unfetched_seconds,
        ),
    ]


def _of_certificates() -> list[Metric]:
    first_end, ending = stats.client_certificates(CERTIFICATE_DAYS)
    first = GaugeMetricFamily(
        "triggers_client_certificate_end_timestamp_seconds",
        "When the first client certificate of an active subscription ends.",
    )
    if first_end is not None:
        first.add_metric([], first_end)
    return [
        _gauge(
            "triggers_client_certificates_ending",
            f"Active subscriptions whose client certificate ends within {CERTIFICATE_DAYS} days, or has ended.",
            ending,
        ),
        first,
    ]


class DatabaseMetrics:
    """The metrics of the database, read by a separate thread: a database that hangs must not hang the page."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reading: threading.Thread | None = None
        self._metrics: list[Metric] = []
        self._read_at = float("-inf")
        self._took = 0.0

    def read(self) -> list[Metric]:
        """Return metrics that are fresh; none if the database doesn't give them in time."""
        with self._lock:
            fresh = max(FRESH_SECONDS, min(MOST_FRESH_SECONDS, FRESH_PER_SECOND_READ * self._took))
            if time.monotonic() - self._read_at >= fresh and self._reading is None:
                self._reading = threading.Thread(target=self._read, name="metrics", daemon=True)
                self._reading.start()
            reading = self._reading
        if reading is not None:
            reading.join(PATIENCE_SECONDS)
        with self._lock:
            is_up = time.monotonic() - self._read_at < fresh + PATIENCE_SECONDS
            metrics = self._metrics if is_up else []
            took = self._took
        return [
            _gauge("triggers_database_up", "1 if the database gave its metrics, 0 if it is away.", int(is_up)),
            _gauge("triggers_metrics_query_seconds", "How long the database took for its metrics.", took),
            *metrics,
        ]

    def _read(self) -> None:
        started = time.monotonic()
        metrics: list[Metric] | None = None
        try:
            metrics = borrow_connection(_read_database)
        except (DatabaseError, PsycopgError) as error:
            log.warning("metrics_database_down", error=type(error).__name__)
        finally:
            with self._lock:
                self._reading = None
                if metrics is not None:
                    self._metrics, self._read_at = metrics, time.monotonic()
                    self._took = self._read_at - started
                else:
                    self._read_at = float("-inf")


_database_metrics = DatabaseMetrics()


def _limits() -> list[Metric]:
    return [
        _gauge(
            "triggers_events_waiting_limit",
            "Accepted events above which all organizations are refused (MAX_QUEUE_LENGTH).",
            settings.MAX_QUEUE_LENGTH,
        ),
    ]


def read_metrics() -> Iterable[Metric]:
    """Return what is looked up when the page is read."""
    yield from _database_metrics.read()
    redis = check_redis()
    yield _gauge("triggers_redis_up", "1 if Redis responds and takes writes, else 0.", int(redis.state == "up"))
    if redis.workers is not None:
        yield _gauge("triggers_workers", "Workers that sent a heartbeat in the last 30 seconds.", redis.workers)
    yield from _limits()


registry = make_registry(read_metrics)
port = MetricsPort(registry)


def page(request: HttpRequest) -> HttpResponse:
    """Return the metrics to whoever has METRICS_TOKEN."""
    if (refusal := only_get(request)) is not None:
        return refusal
    if not (settings.METRICS_DIR and settings.METRICS_TOKEN):
        return HttpResponse("There are no metrics here.\n", status=404, content_type="text/plain")
    expected = f"Bearer {settings.METRICS_TOKEN}".encode()
    if not hmac.compare_digest(request.headers.get("Authorization", "").encode("utf-8", "replace"), expected):
        headers = {"WWW-Authenticate": 'Bearer realm="metrics"'}
        return HttpResponse("METRICS_TOKEN is missing.\n", status=401, content_type="text/plain", headers=headers)
    body, media_type = render(registry, request.headers.get("Accept", ""))
    return HttpResponse(body, content_type=media_type, headers={"Cache-Control": "no-store"})


class MetricsService:
    """A service of the front door: says every few seconds how the web process is, and serves METRICS_BIND."""

    async def __aenter__(self) -> MetricsService:
        # What an alert asks for begins with 0: Prometheus doesn't see the first of a series that wasn't there.
        for route in ("/api/events", "/api/events/batch"):
            for code in BACKLOG_CODES:
                PROBLEMS.inc(route, code, by=0)
        fetching.CHANGES.inc(fetching.ItemStatus.LEASE_EXPIRED.value, by=0)
        self._task = asyncio.create_task(self._run(), name="metrics")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        port.close()

    async def _run(self) -> None:
        while True:
            publish("web")
            port.open()
            await asyncio.sleep(PUBLISH_SECONDS)
