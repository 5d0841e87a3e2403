"""How a test that commits leaves the database empty for the next one.

Django's own `flush` truncates each table and then creates all permissions again.  With some 30 tables, most of them
partitioned and nearly all of them empty, that took longer than most tests do.
"""

from __future__ import annotations

from typing import Any

from django.core.management import get_commands
from django.core.management.base import BaseCommand
from django.db import connections

# What `migrate` writes and no test changes.
_KEPT = ("django_content_type", "auth_permission", "django_migrations")

# Tables are emptied one after the other in whatever order, so foreign keys aren't checked meanwhile, and neither is
# the rule that nobody deletes audit entries.  What a big test leaves is truncated: deleted rows slow later tests down.
_EMPTY = """
DO $$
DECLARE
    one record;
    deleted bigint;
    total bigint := 0;
BEGIN
    SET LOCAL session_replication_role = replica;
    FOR one IN
        SELECT oid::regclass AS name FROM pg_class
        WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p') AND NOT relispartition
          AND relname NOT IN ({kept})
    LOOP
        EXECUTE format('DELETE FROM %s', one.name);
        GET DIAGNOSTICS deleted = ROW_COUNT;
        total := total + deleted;
    END LOOP;
    IF total > 500 THEN
        EXECUTE (
            SELECT 'TRUNCATE ' || string_agg(oid::regclass::text, ', ') FROM pg_class
            WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p') AND NOT relispartition
              AND relname NOT IN ({kept})
        );
    END IF;
END $$
""".format(kept=", ".join(f"'{table}'" for table in _KEPT))


class Flush(BaseCommand):
    """Deletes all rows but those that `migrate` wrote, in one statement."""

    # The options that Django's test case passes.
    stealth_options = ("interactive", "database", "reset_sequences", "allow_cascade", "inhibit_post_migrate")

    def handle(self, *_args: Any, **options: Any) -> None:
        """Empty the database that `database` names."""
        with connections[options["database"]].cursor() as cursor:
            cursor.execute(_EMPTY)


def install() -> None:
    """Let `call_command("flush")`, which ends each test that commits, run `Flush`."""
    get_commands()["flush"] = Flush()
