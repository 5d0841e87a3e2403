"""What a process reports about itself every few seconds: that it is alive, and the state of its database pool."""

from __future__ import annotations

import structlog
from django.db import DEFAULT_DB_ALIAS, connections

from core.metrics.kinds import Gauge

log = structlog.get_logger()

PUBLISH_SECONDS = 5.0

PROCESSES = Gauge(
    "triggers_processes",
    "Processes that live, on the machine or in the containers that share METRICS_DIR.",
    ["service"],
)
POOL_CONNECTIONS = Gauge(
    "triggers_database_pool_connections", "Connections in the database pools.", ["service", "state"]
)
POOL_CONNECTIONS_MAX = Gauge(
    "triggers_database_pool_connections_max", "Connections that the database pools may open.", ["service"]
)
POOL_WAITING = Gauge(
    "triggers_database_pool_waiting", "Threads that wait for a connection of a database pool.", ["service"]
)


def publish(service: str) -> None:
    """Record the state of this process; never raises.  service: `web`, `worker`, or `backlog_sender`."""
    try:
        _publish(service)
    except Exception as error:
        log.error("metrics_not_kept", setting="METRICS_DIR", reason=repr(error)[:300])


def _publish(service: str) -> None:
    PROCESSES.set(1, service)
    pool = connections[DEFAULT_DB_ALIAS].pool  # type: ignore[attr-defined]
    stats = pool.get_stats() if pool is not None else {}
    size, idle = stats.get("pool_size", 0), stats.get("pool_available", 0)
    POOL_CONNECTIONS.set(idle, service, "idle")
    POOL_CONNECTIONS.set(max(0, size - idle), service, "in_use")
    POOL_CONNECTIONS_MAX.set(stats.get("pool_max", 0), service)
    POOL_WAITING.set(stats.get("requests_waiting", 0), service)
