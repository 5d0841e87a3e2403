"""The stack deletes what migrations made that have changed since, and keeps everything else."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from psycopg import sql

from devstack.binaries import copy_postgres, valkey_program
from devstack.errors import DevstackError
from devstack.postgres import DATABASE
from devstack.sql import uuid7
from devstack.stack import Stack


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Return a stack of its own, whose schema may be dropped."""
    stack = Stack(Path(tmp_path_factory.mktemp("old")))
    try:
        stack.start_servers()
        yield stack
    finally:
        stack.stop()
        stack.postgres.destroy()  # its data may lie outside the folder


def _made_by(stack: Stack) -> dict[str, str]:
    rows = stack.sql("SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = current_database()")
    made_by: dict[str, str] = json.loads(rows[0][0])
    return made_by


def _say_made_by(stack: Stack, made_by: object) -> None:
    stack.sql(sql.SQL("COMMENT ON DATABASE {} IS {}").format(sql.Identifier(DATABASE), made_by))


def _organizations(stack: Stack) -> list[str]:
    return [row[0] for row in stack.sql("SELECT name FROM orgs_organization")]


@pytest.mark.slow
def test_data_of_older_migrations_is_deleted_and_any_other_stays(old: Stack) -> None:
    assert not old.migrate(), "there was nothing"
    made_by = _made_by(old)
    assert {"events", "orgs", "webhooks"} <= {name.split("/")[0] for name in made_by}

    old.make_organization("first")
    assert not old.migrate()
    assert _organizations(old) == ["first"]

    # A migration that came since is no reason: it leads from there to here.
    _say_made_by(old, json.dumps({name: digest for name, digest in made_by.items() if "orgs" in name}))
    assert not old.is_older_than(made_by)
    for other in ({"webhooks/0001_initial": "changed"}, {"webhooks/0002_gone": "gone"}):
        _say_made_by(old, json.dumps({**made_by, **other}))
        assert old.is_older_than(made_by), other

    # Nor does anything lead from a schema of which nobody knows what made it.
    _say_made_by(old, None)
    old.sql("ALTER TABLE orgs_organization DROP COLUMN is_active")
    assert old.migrate()
    assert _organizations(old) == []
    assert _made_by(old) == made_by


def test_a_redis_of_the_machine_is_run_by_the_name_that_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "redis-check-rdb"  # Debian's package has one program, which does what it is called as
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    link = tmp_path / "redis-server"
    link.symlink_to(program.name)
    monkeypatch.setenv("DEVSTACK_REDIS", str(link))
    assert valkey_program() == link


def test_another_postgresql_than_the_one_that_was_asked_for_is_never_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEVSTACK_POSTGRES", "/srv/closed/pg17/bin")
    with pytest.raises(DevstackError, match=r"^DEVSTACK_POSTGRES: /srv/closed/pg17/bin isn't open to every user"):
        copy_postgres(tmp_path)
    assert not list(tmp_path.iterdir())


def test_ids_made_by_sql_are_in_the_order_of_their_times(old: Stack) -> None:
    ids = [old.value(f"SELECT {uuid7(shift)}") for shift in ("interval '-1 day'", "interval '0'", "interval '1 day'")]
    assert sorted(ids) == ids
    assert [one.version for one in ids] == [7, 7, 7]
    assert {one.variant for one in ids} == {uuid.RFC_4122}
    times = [one.int >> 80 for one in ids]
    assert [round((at - times[1]) / 86_400_000, 3) for at in times] == [-1, 0, 1]
