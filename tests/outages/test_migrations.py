"""Migrations run while the old code serves, on tables of any size, and can be taken back."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import psycopg
import pytest
from django.contrib.postgres.operations import AddIndexConcurrently, RemoveIndexConcurrently
from django.db import migrations, models
from django.db.migrations.operations.base import Operation

from devstack import processes
from devstack.stack import Stack
from devstack.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
APPS = ("orgs", "events", "webhooks")
FILES = [path for app in APPS for path in sorted((ROOT / app / "migrations").glob("0*.py"))]
DATABASE = "migrations"


def _load(path: Path) -> type[migrations.Migration]:
    found: type[migrations.Migration] = importlib.import_module(f"{path.parts[-3]}.migrations.{path.stem}").Migration
    return found


def _on_tables(operations: Iterable[Operation]) -> Iterator[Operation]:
    """Yield the operations that reach the database: what changes only Django's state of the models holds nobody up."""
    for operation in operations:
        if isinstance(operation, migrations.SeparateDatabaseAndState):
            yield from _on_tables(operation.database_operations)
        else:
            yield operation


def _faults(migration: type[migrations.Migration]) -> list[str]:
    """Return what of a migration could stop the old code or hold up a big live table."""
    made: set[str] = set()
    found = []
    for operation in _on_tables(migration.operations):
        name = type(operation).__name__
        if isinstance(operation, migrations.CreateModel):
            made.add(operation.name.lower())
            continue
        if str(getattr(operation, "model_name", "")).lower() in made:
            continue  # nobody uses a table that is being made
        if isinstance(operation, AddIndexConcurrently | RemoveIndexConcurrently):
            if migration.atomic:
                found.append(f"{name} in a transaction")
        elif isinstance(operation, migrations.AddField):
            if not operation.field.null and not operation.field.has_db_default():
                found.append(f"{name} {operation.name}: old code can't insert without a database default")
        elif isinstance(operation, migrations.AlterModelOptions):
            pass  # changes no table
        elif isinstance(operation, migrations.RunPython | migrations.RunSQL):
            if not operation.reversible:
                found.append(f"{name} can't be taken back")
        else:
            found.append(f"{name} locks, rewrites or takes away what the old code uses")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parts[-3]}-{path.stem}")
def test_a_migration_holds_up_no_live_table_and_takes_nothing_from_the_old_code(path: Path) -> None:
    assert not _faults(_load(path))


@pytest.mark.parametrize(
    "operation",
    [
        migrations.AddIndex("delivery", models.Index(fields=["status"], name="x")),
        migrations.RemoveField("event", "type"),
        migrations.DeleteModel("Event"),
        migrations.RunSQL("SELECT 1"),
        migrations.SeparateDatabaseAndState(database_operations=[migrations.RemoveField("event", "type")]),
    ],
    ids=lambda operation: type(operation).__name__,
)
def test_an_unsafe_migration_is_found(operation: Operation) -> None:
    class Unsafe(migrations.Migration):
        operations = [operation]  # noqa: RUF012

    assert _faults(Unsafe)


@pytest.fixture
def env(stack: Stack) -> Iterator[dict[str, str]]:
    """Return the environment of an empty database of its own."""
    stack.sql(f"DROP DATABASE IF EXISTS {DATABASE} WITH (FORCE)".encode())
    stack.postgres.create_database(DATABASE)
    yield {**os.environ, **stack.env, "DATABASE_URL": stack.postgres.url(DATABASE), "REDIS_URL": stack.valkey.url()}
    stack.sql(f"DROP DATABASE {DATABASE} WITH (FORCE)".encode())


def _tables(stack: Stack) -> list[str]:
    with psycopg.connect(stack.postgres.url(DATABASE)) as session:
        rows = session.execute(
            "SELECT relname FROM pg_class WHERE relkind IN ('r', 'p', 'i', 'I')"
            " AND relname ~ '^(orgs|events|webhooks)_' ORDER BY 1"
        )
        return [row[0] for row in rows]


@pytest.mark.slow
def test_every_migration_can_be_taken_back_and_done_again(stack: Stack, env: dict[str, str]) -> None:
    processes.manage("migrate", "--verbosity", "0", env=env)
    there = _tables(stack)
    assert there
    processes.manage("migrate", "orgs", "zero", "--verbosity", "0", env=env)  # and what stands on it
    assert _tables(stack) == []
    processes.manage("migrate", "--verbosity", "0", env=env)
    assert _tables(stack) == there


# How a migration of ours builds an index, on a table that is in use.
BUILD = """
import django
django.setup()
from django.apps import apps
from core.partitions import AddIndexToPartitionsConcurrently
from django.db import connection, models
from django.db.migrations.state import ProjectState
index = models.Index(fields=["cause"], name="webhooks_delivery_by_cause")
operation = AddIndexToPartitionsConcurrently("delivery", index)
before = ProjectState.from_apps(apps)
after = before.clone()
operation.state_forwards("webhooks", after)
with connection.schema_editor(atomic=False) as editor:
    operation.database_forwards("webhooks", editor, before, after)
"""


@pytest.mark.slow
def test_while_indexes_are_built_the_old_code_goes_on_writing(stack: Stack, env: dict[str, str]) -> None:
    processes.manage("migrate", "--verbosity", "0", env=env)
    url = stack.postgres.url(DATABASE)
    insert = (
        "INSERT INTO webhooks_delivery (id, organization_id, event_id, subscription_id, status, cause, attempts_used,"
        " attempt_count, last_error) SELECT id, id, id, id, 'pending', 'schedule', 0, 0, ''"
        " FROM gen_random_uuid() AS id"
    )
    with psycopg.connect(url, autocommit=True) as old, psycopg.connect(url, autocommit=True) as other:
        old.execute("BEGIN")
        old.execute(insert)  # the index waits for this transaction ...
        building = subprocess.Popen([sys.executable, "-c", BUILD], cwd=ROOT, env=env)
        wait_until(
            lambda: stack.sql(
                "SELECT 1 FROM pg_stat_activity WHERE query LIKE 'CREATE INDEX CONCURRENTLY%'"
                " AND wait_event_type = 'Lock'"
            ),
            "the migration doesn't wait",
        )
        other.execute("SET lock_timeout = '20s'")
        for _ in range(10):
            other.execute(insert)  # ... and nobody waits for the index
        other.execute("UPDATE webhooks_delivery SET status = 'failed'")
        old.execute("COMMIT")
        assert building.wait(60) == 0
    made = _tables(stack)
    assert "webhooks_delivery_by_cause" in made
    # Those that were built are the ones that it consists of.
    assert not [index for index in made if index.endswith("_cause_idx")]
