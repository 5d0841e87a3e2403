"""Partitions events, deliveries, and attempts by the time in their ids, and defines the functions that look after it.

Deliveries have the time of their event (`core.ids.derive_id`), and attempts belong to the partition of their delivery.
So an event and everything that belongs to it are in partitions of the same period, which are dropped together.

The functions run with the rights of the role that owns the tables, because the system's own role needn't be allowed to
create or drop tables (docs/operations.md, "Least privilege").  What they do is decided here, not by who calls them.
"""

from __future__ import annotations

from typing import Any

from django.apps.registry import Apps
from django.conf import settings
from django.db import migrations
from django.db.backends.base.schema import BaseDatabaseSchemaEditor

# Table, the column that it is partitioned by, and its primary key.  Events first: that is the order of the locks.
TABLES = (
    ("events_event", "id", "id"),
    ("webhooks_delivery", "id", "id"),
    ("webhooks_deliveryattempt", "delivery_id", "delivery_id, number"),
)
# The primary key of a partitioned table has to contain the column that it is partitioned by.  Attempts have the one
# that finds them; what is left is an index by their id for the admin, which writes next to nothing.
OF_PLAIN_TABLES = {
    "webhooks_attempt_delivery": (
        "CREATE INDEX webhooks_attempt_delivery ON webhooks_deliveryattempt (delivery_id, number)"
    )
}
OF_PARTITIONED_TABLES = {
    "webhooks_attempt_id": (
        "CREATE INDEX webhooks_attempt_id ON webhooks_deliveryattempt USING brin (id)"
        " WITH (pages_per_range = 32, autosummarize = on)"
    )
}

FIRST_ID = """
CREATE FUNCTION triggers_first_id(at timestamptz) RETURNS uuid LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT rpad(lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0'), 32, '0')::uuid
$$;
COMMENT ON FUNCTION triggers_first_id IS 'The least UUIDv7 of a moment.';
"""

PARTITIONS = """
CREATE FUNCTION triggers_partitions()
RETURNS TABLE (suffix text, starts timestamptz, ends timestamptz) LANGUAGE sql STABLE AS $$
    SELECT substr(part.relname, length('events_event_') + 1), bound.at[1], bound.at[2]
    FROM pg_inherits i JOIN pg_class part ON part.oid = i.inhrelid,
    LATERAL (
        SELECT array_agg(to_timestamp(('x' || lpad(substr(replace(m[1], '-', ''), 1, 12), 16, '0'))::bit(64)::bigint
                                      / 1000.0) ORDER BY m[1]) AS at
        FROM regexp_matches(pg_get_expr(part.relpartbound, part.oid), '[(]''([0-9a-f-]{36})''[)]', 'g') AS m
    ) AS bound
    WHERE i.inhparent = 'events_event'::regclass AND bound.at[2] IS NOT NULL
$$;
COMMENT ON FUNCTION triggers_partitions IS 'The periods that have a partition of each table; not the default.';
"""

# ATTACH doesn't stop those who read or write the other partitions; the default partition is locked while it is checked
# for rows of the new period, which are there only if the partition is made too late.
MAKE = """
CREATE FUNCTION triggers_make_partitions(days integer, ahead integer) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = {schema}, pg_temp SET lock_timeout = '200ms' AS $$
DECLARE
    made integer := 0;
    last timestamptz;
    following timestamptz;
    suffix text;
    parent text;
    key text;
BEGIN
    IF days NOT BETWEEN 1 AND 3650 OR ahead NOT BETWEEN 1 AND 10 THEN
        RAISE 'days must be 1 to 3650, ahead 1 to 10';
    END IF;
    SELECT max(ends) INTO last FROM triggers_partitions();
    IF last IS NULL THEN
        -- The first period begins with the oldest event.  An id may come from a clock that is behind.
        SELECT least(date_trunc('day', at, 'UTC'), date_trunc('day', now(), 'UTC') - interval '1 day') INTO last
        FROM (SELECT min(created_at) AS at FROM events_event WHERE created_at > now() - interval '2 years') AS oldest;
    END IF;
    IF last >= now() + make_interval(days => days * ahead) THEN
        RETURN 0;
    END IF;
    -- One at a time; the other finds nothing to do.
    PERFORM pg_advisory_xact_lock(71002);
    SELECT coalesce(max(ends), last) INTO last FROM triggers_partitions();
    WHILE last < now() + make_interval(days => days * ahead) LOOP
        following := last + make_interval(days => days);
        suffix := to_char(last AT TIME ZONE 'UTC', 'YYYYMMDD');
        FOREACH parent IN ARRAY ARRAY['events_event', 'webhooks_delivery', 'webhooks_deliveryattempt'] LOOP
            key := CASE parent WHEN 'webhooks_deliveryattempt' THEN 'delivery_id' ELSE 'id' END;
            EXECUTE format('CREATE TABLE %1$I (LIKE %2$I INCLUDING DEFAULTS INCLUDING CONSTRAINTS INCLUDING STORAGE'
                           ' INCLUDING INDEXES)', parent || '_' || suffix, parent);
            EXECUTE format('WITH moved AS (DELETE FROM %1$I WHERE %2$I >= %3$L AND %2$I < %4$L RETURNING *)'
                           ' INSERT INTO %5$I SELECT * FROM moved',
                           parent || '_default', key, triggers_first_id(last), triggers_first_id(following),
                           parent || '_' || suffix);
            EXECUTE format('ALTER TABLE %1$I ATTACH PARTITION %2$I FOR VALUES FROM (%3$L) TO (%4$L)',
                           parent, parent || '_' || suffix, triggers_first_id(last), triggers_first_id(following));
        END LOOP;
        last := following;
        made := made + 1;
    END LOOP;
    RETURN made;
END $$;
COMMENT ON FUNCTION triggers_make_partitions IS
    'Make partitions for so many periods of so many days ahead; return how many were made.';
"""

# Detaching and dropping lock the tables for a moment.  lock_timeout bounds how long others queue behind us for that.
DROP = """
CREATE FUNCTION triggers_drop_partition(most integer, OUT suffix text, OUT events bigint, OUT kept bigint)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = {schema}, pg_temp SET lock_timeout = '200ms' AS $$
DECLARE
    unsettled text;
    staying uuid[];
    parent text;
BEGIN
    -- A day more: the clocks that make ids may be ahead.
    SELECT p.suffix INTO suffix FROM triggers_partitions() p
    WHERE p.ends < now() - make_interval(days => 1 + (SELECT max(retention_days) FROM orgs_organization))
    ORDER BY p.ends LIMIT 1;
    IF suffix IS NULL THEN
        RETURN;
    END IF;
    -- The events that must stay, with all that belongs to them.  Small indexes find them.
    unsettled := format(
        'SELECT id FROM %1$I WHERE status = ''accepted'' UNION SELECT id FROM %1$I WHERE status = ''error'''
        ' UNION SELECT event_id FROM %2$I WHERE status = ''pending'''
        ' UNION SELECT event_id FROM %2$I WHERE status = ''held'''
        ' UNION SELECT event_id FROM %2$I WHERE status = ''delivering''',
        'events_event_' || suffix, 'webhooks_delivery_' || suffix);
    EXECUTE format('SELECT count(*) FROM (%s LIMIT %s) AS u', unsettled, most + 1) INTO kept;
    IF kept > most THEN
        suffix := NULL;
        RETURN;
    END IF;
    LOCK TABLE ONLY events_event, ONLY webhooks_delivery, ONLY webhooks_deliveryattempt IN ACCESS EXCLUSIVE MODE;
    EXECUTE format('SELECT array_agg(id), count(*) FROM (%s) AS u', unsettled) INTO staying, kept;
    SELECT greatest(0, reltuples)::bigint INTO events FROM pg_class WHERE oid = ('events_event_' || suffix)::regclass;
    FOREACH parent IN ARRAY ARRAY['events_event', 'webhooks_delivery', 'webhooks_deliveryattempt'] LOOP
        EXECUTE format('ALTER TABLE %I DETACH PARTITION %I', parent, parent || '_' || suffix);
    END LOOP;
    -- What stays goes to the default partitions.
    IF kept > 0 THEN
        EXECUTE format('INSERT INTO webhooks_deliveryattempt SELECT a.* FROM %I a JOIN %I d ON d.id = a.delivery_id'
                       ' WHERE d.event_id = ANY ($1)',
                       'webhooks_deliveryattempt_' || suffix, 'webhooks_delivery_' || suffix) USING staying;
        EXECUTE format('INSERT INTO webhooks_delivery SELECT * FROM %I WHERE event_id = ANY ($1)',
                       'webhooks_delivery_' || suffix) USING staying;
        EXECUTE format('INSERT INTO events_event SELECT * FROM %I WHERE id = ANY ($1)',
                       'events_event_' || suffix) USING staying;
    END IF;
    FOREACH parent IN ARRAY ARRAY['events_event', 'webhooks_delivery', 'webhooks_deliveryattempt'] LOOP
        EXECUTE format('DROP TABLE %I', parent || '_' || suffix);
    END LOOP;
END $$;
COMMENT ON FUNCTION triggers_drop_partition IS
    'Drop the oldest period that is past every organization''s retention, unless more than so many events must stay.';
"""

FUNCTIONS = {
    "triggers_first_id(timestamptz)": FIRST_ID,
    "triggers_partitions()": PARTITIONS,
    "triggers_make_partitions(integer, integer)": MAKE,
    "triggers_drop_partition(integer)": DROP,
}


def _replace(cursor: Any, table: str, partition_by: str | None) -> list[str]:
    """Replace a table by one with the same columns and rows, partitioned or not; return the indexes to make again."""
    cursor.execute(
        "SELECT pg_get_indexdef(i.indexrelid) FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid"
        " WHERE i.indrelid = %s::regclass AND NOT i.indisprimary AND c.relname <> ALL (%s)",
        [table, [*OF_PLAIN_TABLES, *OF_PARTITIONED_TABLES]],
    )
    indexes = [row[0].replace(" ON ONLY ", " ON ") for row in cursor.fetchall()]
    cursor.execute(f"ALTER TABLE {table} RENAME TO {table}_before")
    kind = f" PARTITION BY RANGE ({partition_by})" if partition_by else ""
    cursor.execute(
        f"CREATE TABLE {table} (LIKE {table}_before INCLUDING DEFAULTS INCLUDING CONSTRAINTS"
        f" INCLUDING IDENTITY INCLUDING STORAGE){kind}"
    )
    if partition_by:
        cursor.execute(f"CREATE TABLE {table}_default PARTITION OF {table} DEFAULT")
    cursor.execute(f"INSERT INTO {table} SELECT * FROM {table}_before")  # noqa: S608 - constants of ours
    cursor.execute(f"DROP TABLE {table}_before")
    return indexes


def _finish(cursor: Any, primary_keys: dict[str, str], indexes: list[str]) -> None:
    for table, columns in primary_keys.items():
        cursor.execute(f"ALTER TABLE {table} ADD CONSTRAINT {table}_pkey PRIMARY KEY ({columns})")
    for definition in indexes:
        cursor.execute(definition)
    cursor.execute(
        "SELECT setval(pg_get_serial_sequence('webhooks_deliveryattempt', 'id'), coalesce(max(id), 0) + 1, false)"
        " FROM webhooks_deliveryattempt"
    )


def partition(apps: Apps, schema_editor: BaseDatabaseSchemaEditor) -> None:
    """Partition the tables; their rows, and new ones until the next period, go to the default partitions."""
    with schema_editor.connection.cursor() as cursor:
        indexes = [index for table, key, _ in TABLES for index in _replace(cursor, table, key)]
        indexes += OF_PARTITIONED_TABLES.values()
        _finish(cursor, {table: primary_key for table, _, primary_key in TABLES}, indexes)
        cursor.execute("SELECT quote_ident(current_schema())")
        schema = cursor.fetchone()[0]
        for signature, definition in FUNCTIONS.items():
            cursor.execute(definition.replace("{schema}", schema))
            cursor.execute(f"REVOKE ALL ON FUNCTION {signature} FROM PUBLIC")
        cursor.execute("SELECT triggers_make_partitions(%s, 2)", [settings.PARTITION_DAYS])


def merge(apps: Apps, schema_editor: BaseDatabaseSchemaEditor) -> None:
    """Make plain tables of them again."""
    with schema_editor.connection.cursor() as cursor:
        for signature in FUNCTIONS:
            cursor.execute(f"DROP FUNCTION {signature}")
        indexes = [index for table, _, _ in TABLES for index in _replace(cursor, table, None)]
        _finish(cursor, {table: "id" for table, _, _ in TABLES}, [*indexes, *OF_PLAIN_TABLES.values()])


class Migration(migrations.Migration):
    dependencies = [
        ("orgs", "0002_staff"),
        ("events", "0001_initial"),
        ("webhooks", "0001_initial"),
    ]

    operations = [migrations.RunPython(partition, merge)]
