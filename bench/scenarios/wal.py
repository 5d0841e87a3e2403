"""How much PostgreSQL writes for an event that is accepted, delivered, and in the end deleted."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator

from bench.figures import Figure
from bench.load import Load, send
from bench.stack import BenchStack, Tenant
from devstack.processes import OURS

CONNECTIONS = 16
WARM_UP = 2_000
SINGLE_REQUESTS = 10_000
STEADY_RATE = 100.0  # a second, at which events are stored with their deliveries
STEADY_REQUESTS = 2_000
BATCH_REQUESTS = 300
EVENTS_A_BATCH = 100
OLD_EVENTS = 50_000

# What belongs to an event: its tables, with their partitions, by the table that they are part of.
_SIZES = """
SELECT sum(pg_table_size(oid)), sum(pg_indexes_size(oid))
FROM pg_class WHERE relkind = 'r' AND relname ~ '^(events_event|webhooks_delivery)'
"""
_HOT_SHARE = """
SELECT coalesce(100.0 * sum(n_tup_hot_upd) / nullif(sum(n_tup_upd), 0), 100)
FROM pg_stat_user_tables WHERE relname ~ '^(events_event|webhooks_delivery)'
"""
_KEEPS_EXCHANGES = """
SELECT EXISTS (SELECT FROM information_schema.columns WHERE column_name = 'keep_exchanges')
"""


def wal(stack: BenchStack) -> list[Figure]:
    """WAL bytes per event with one delivery, by single POSTs and by batches; sizes; heap-only updates; VACUUM.

    Against a version that keeps no exchanges, or has other tables, the figures that need them are left out.
    """
    tenant = stack.tenant()
    with stack.receiver() as receiver, _settings(stack, autovacuum="off"), stack.running_web(), stack.running_worker():
        subscription = stack.subscribe(tenant, receiver.url("/ok/1"))
        _bytes(stack, tenant, WARM_UP, 0)
        with _settings(stack, full_page_writes="off"):
            steady, _ = _bytes(stack, tenant, STEADY_REQUESTS, 0, STEADY_RATE)
            single, kinds = _bytes(stack, tenant, SINGLE_REQUESTS, 0)
            bare = []
            if stack.value(_KEEPS_EXCHANGES):
                stack.sql("UPDATE orgs_organization SET keep_exchanges = false")
                bare.append(_bytes(stack, tenant, SINGLE_REQUESTS, 0)[0])
                stack.sql("UPDATE orgs_organization SET keep_exchanges = true")
            batches, _ = _bytes(stack, tenant, BATCH_REQUESTS, EVENTS_A_BATCH)
        with_images, _ = _bytes(stack, tenant, SINGLE_REQUESTS, 0)
        events = stack.value("SELECT count(*) FROM events_event")
        stack.sql("SELECT pg_stat_force_next_flush()")
        hot_share = float(stack.value(_HOT_SHARE))
        table_size, index_size = stack.sql(_SIZES)[0]
        start = _position(stack)
        stack.sql("VACUUM events_event, webhooks_delivery, webhooks_deliveryattempt")
        vacuum = _position(stack) - start
        deleted = [_delete_old(stack, tenant, subscription)] if stack.code is OURS else []
    name = "wal"
    return [
        Figure(name, "POSTs at 100/s, without full-page images", steady, "bytes/event"),
        Figure(name, "single POSTs, without full-page images", single, "bytes/event"),
        *(Figure(name, f"of these in {kind}", size, "bytes/event") for kind, size in kinds.items()),
        *(Figure(name, "single POSTs, exchanges not kept", size, "bytes/event") for size in bare),
        Figure(name, "single POSTs, from a checkpoint on", with_images, "bytes/event"),
        Figure(name, "batches of 100, without full-page images", batches, "bytes/event"),
        Figure(name, "VACUUM afterward", vacuum / events, "bytes/event"),
        *(Figure(name, "deleting it after its retention", size, "bytes/event") for size in deleted),
        Figure(name, "size of the tables", float(table_size) / events, "bytes/event"),
        Figure(name, "size of the indexes", float(index_size) / events, "bytes/event"),
        Figure(name, "heap-only updates of events and deliveries", hot_share, "%"),
    ]


def _bytes(
    stack: BenchStack, tenant: Tenant, requests: int, batch: int, rate: float = 0.0
) -> tuple[float, dict[str, float]]:
    """Send events until all are delivered; return the WAL's bytes per event, all and by what was written."""
    stack.sql("CHECKPOINT")
    stack.sql("CREATE EXTENSION IF NOT EXISTS pg_walinspect")
    start = stack.value("SELECT pg_current_wal_insert_lsn()")
    sent = send(Load(stack.url, tenant.key, requests, CONNECTIONS, rate, batch))
    stack.wait_until_delivered()
    stack.wait_until("SELECT NOT EXISTS (SELECT FROM webhooks_delivery WHERE status <> 'delivered')")
    events = sent.statuses[202] * (batch or 1)
    size = stack.value("SELECT pg_current_wal_insert_lsn() - %s::pg_lsn", (start,))
    kinds = stack.sql(
        "SELECT CASE \"resource_manager/record_type\" WHEN 'Heap' THEN 'tables' WHEN 'Heap2' THEN 'tables'"
        " WHEN 'Btree' THEN 'indexes' ELSE 'transactions' END AS kind, sum(combined_size)"
        " FROM pg_get_wal_stats(%s, pg_current_wal_flush_lsn(), false) GROUP BY kind ORDER BY kind DESC",
        (start,),
    )
    return float(size) / events, {kind: float(total) / events for kind, total in kinds}


def _delete_old(stack: BenchStack, tenant: Tenant, subscription: uuid.UUID) -> float:
    """Make events of 50 days ago, and return the WAL's bytes per event for deleting them as the workers do.

    Make partitions that cover that time, and insert events, a delivery of each, and an attempt of each.  Then note the
    position of the WAL, drop the partitions, check that nothing is left, and compare the positions.
    """
    for table in ("events_event", "webhooks_delivery", "webhooks_deliveryattempt"):
        stack.sql(
            f"CREATE TABLE {table}_old PARTITION OF {table} FOR VALUES FROM"
            " (triggers_first_id(now() - interval '60 days')) TO (triggers_first_id(now() - interval '40 days'))"
        )
    old = {"org": tenant.id, "subscription": subscription, "events": OLD_EVENTS}
    stack.sql(
        "INSERT INTO events_event"
        " (id, organization_id, type, data, status, failed_attempts, last_error, due_at, created_at, processed_at)"
        " SELECT uuidv7(t - now()), %(org)s, 'order.created', repeat('x', 130), 'processed', 0, '', t, t, t"
        " FROM (SELECT now() - interval '50 days' + n * interval '1 second' AS t"
        " FROM generate_series(1, %(events)s) AS n)",
        old,
    )
    stack.sql(
        "INSERT INTO webhooks_delivery (id, organization_id, event_id, subscription_id, status,"
        " cause, attempts_used, attempt_count, last_status_code, last_error, completed_at, created_at)"
        " SELECT uuidv7(created_at - now()), %(org)s, id, %(subscription)s, 'delivered', 'schedule', 1, 1, 200, '',"
        " created_at, created_at FROM events_event WHERE created_at < now() - interval '40 days'",
        old,
    )
    stack.sql(
        "INSERT INTO webhooks_deliveryattempt (delivery_id, number, cause, started_at, duration_ms, status_code,"
        " error, error_detail, response_body) SELECT id, 1, 'schedule', created_at, 3.2, 200, '', '', 'ok'"
        " FROM webhooks_delivery WHERE created_at < now() - interval '40 days'"
    )
    stack.settle_tables()
    stack.sql("CHECKPOINT")
    start = _position(stack)
    while stack.value("SELECT suffix FROM triggers_drop_partition(10000)"):
        pass
    left = stack.value("SELECT count(*) FROM events_event WHERE created_at < now() - interval '40 days'")
    if left:
        raise RuntimeError(f"{left} old events are left")
    return (_position(stack) - start) / OLD_EVENTS


def _position(stack: BenchStack) -> float:
    return float(stack.value("SELECT pg_current_wal_insert_lsn() - '0/0'"))


@contextlib.contextmanager
def _settings(stack: BenchStack, **settings: str) -> Iterator[None]:
    """Set server settings for a while."""
    for name, value in settings.items():
        stack.sql(f"ALTER SYSTEM SET {name} = {value}")
    stack.sql("SELECT pg_reload_conf()")
    try:
        yield
    finally:
        for name in settings:
            stack.sql(f"ALTER SYSTEM RESET {name}")
        stack.sql("SELECT pg_reload_conf()")
