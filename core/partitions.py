"""A migration operation for tables that are partitioned."""

from __future__ import annotations

import time
from typing import Any

import psycopg
from django.contrib.postgres.operations import AddIndexConcurrently
from django.db import NotSupportedError, OperationalError
from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.migrations.state import ProjectState

# SQL, because the ORM knows neither partitions nor catalogs.  The partitions of a table, each with the name of its part
# of an index, and whether that part exists.
_PARTITIONS = """
SELECT c.relname, 'p' || i.inhrelid || '_' || %(name)s, to_regclass('p' || i.inhrelid || '_' || %(name)s) IS NOT NULL
FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = %(table)s::regclass ORDER BY c.relname
"""


class AddIndexToPartitionsConcurrently(AddIndexConcurrently):
    """Builds an index on each partition while others write, and then one for the whole table from them.

    PostgreSQL has no CREATE INDEX CONCURRENTLY for a partitioned table.  One that was interrupted can be run again.
    """

    def database_forwards(
        self, app_label: str, schema_editor: BaseDatabaseSchemaEditor, from_state: ProjectState, to_state: ProjectState
    ) -> None:
        _require_no_transaction(schema_editor)
        model = to_state.apps.get_model(app_label, self.model_name)
        name, table = self.index.name, model._meta.db_table
        whole = str(self.index.create_sql(model, schema_editor))
        start, separator, rest = whole.partition(f' ON "{table}" ')
        if not separator or not start.endswith(f'"{name}"'):
            raise ValueError(f"can't build {whole}")
        kind = start.removesuffix(f'"{name}"').rstrip()
        with schema_editor.connection.cursor() as cursor:
            # An interrupted CREATE INDEX CONCURRENTLY leaves an invalid index.
            cursor.execute(
                "SELECT c.relname FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid"
                " WHERE NOT i.indisvalid AND c.relkind = 'i' AND c.relname LIKE %s",
                [f"p%\\_{name}"],
            )
            for (part,) in cursor.fetchall():
                cursor.execute(f'DROP INDEX CONCURRENTLY "{part}"')
            cursor.execute(_PARTITIONS, {"name": name, "table": table})
            for partition, part, exists in cursor.fetchall():
                if not exists:
                    cursor.execute(f'{kind} CONCURRENTLY "{part}" ON "{partition}" {rest}')
            # This waits for writers, and others wait for it, but only for moments: it takes over the indexes of the
            # partitions, and builds only that of a partition that was created just now.
            cursor.execute("SET lock_timeout = '200ms'")
            while not _was_quick(cursor, f'{kind} IF NOT EXISTS "{name}" ON "{table}" {rest}'):
                time.sleep(1)
            cursor.execute("RESET lock_timeout")

    def database_backwards(
        self, app_label: str, schema_editor: BaseDatabaseSchemaEditor, from_state: ProjectState, to_state: ProjectState
    ) -> None:
        _require_no_transaction(schema_editor)
        with schema_editor.connection.cursor() as cursor:
            cursor.execute("SET lock_timeout = '200ms'")  # PostgreSQL can't drop one concurrently, either
            while not _was_quick(cursor, f'DROP INDEX IF EXISTS "{self.index.name}"'):
                time.sleep(1)
            cursor.execute("RESET lock_timeout")


def _require_no_transaction(schema_editor: BaseDatabaseSchemaEditor) -> None:
    if schema_editor.connection.in_atomic_block:
        raise NotSupportedError("Set atomic = False on the migration: an index is built concurrently.")


def _was_quick(cursor: Any, statement: str) -> bool:
    """Run a statement; return False if it had to wait for a lock too long."""
    try:
        cursor.execute(statement)
    except OperationalError as error:
        if not isinstance(error.__cause__, psycopg.errors.LockNotAvailable):
            raise
        return False
    return True
