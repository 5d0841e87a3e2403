"""Ready for millions of rows: partitions for the past, and no indexes while rows come."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from bench.stack import BenchStack

TABLES = ("events_event", "webhooks_delivery", "webhooks_deliveryattempt")
# For this session only.
_SETTINGS = ("work_mem = '512MB'", "maintenance_work_mem = '1GB'", "synchronous_commit = off")


def partition_the_past(stack: BenchStack, days: int) -> None:
    """Make partitions as an installation has them whose first event came so many days ago.  The tables are empty."""
    for (suffix,) in stack.sql("SELECT suffix FROM triggers_partitions()"):
        for table in reversed(TABLES):
            stack.sql(f"DROP TABLE {table}_{suffix}")
    stack.sql(
        "INSERT INTO events_event (id, organization_id, type, data, status, failed_attempts, last_error, due_at,"
        " created_at) SELECT uuidv7(at - now()), uuidv7(), 'first', '{}', 'processed', 0, '', at, at"
        " FROM (SELECT now() - make_interval(days => %s) AS at) AS first",
        (days,),
    )
    stack.sql("SELECT triggers_make_partitions(7, 2)")
    stack.sql("TRUNCATE events_event")


@contextlib.contextmanager
def without_indexes() -> Iterator[None]:
    """Drop the indexes of the large tables, and build them at the end: that takes a fraction of the time.

    A run that is killed in between leaves a database without them; `make clean` deletes it.
    """
    from django.db import connection

    with connection.cursor() as cursor:
        for setting in _SETTINGS:
            cursor.execute(f"SET {setting}")
        cursor.execute(
            "SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid) FROM pg_constraint"
            " WHERE contype = 'p' AND conrelid = ANY (%s::regclass[])",
            [list(TABLES)],
        )
        keys = cursor.fetchall()
        cursor.execute(
            "SELECT indexrelid::regclass::text, pg_get_indexdef(indexrelid) FROM pg_index"
            " WHERE NOT indisprimary AND indrelid = ANY (%s::regclass[])",
            [list(TABLES)],
        )
        indexes = cursor.fetchall()
        for table, name, _ in keys:
            cursor.execute(f'ALTER TABLE {table} DROP CONSTRAINT "{name}"')
        for name, _ in indexes:
            cursor.execute(f"DROP INDEX {name}")
        try:
            yield
        finally:
            for table, name, definition in keys:
                cursor.execute(f'ALTER TABLE {table} ADD CONSTRAINT "{name}" {definition}')
            for _, definition in indexes:
                cursor.execute(definition.replace(" ON ONLY ", " ON "))
            for setting in _SETTINGS:
                cursor.execute(f"RESET {setting.split()[0]}")
