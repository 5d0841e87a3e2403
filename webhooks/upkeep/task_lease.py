"""A lease on a task that one process does at a time.  It outlives a crash by no more than LEASE_SECONDS."""

from __future__ import annotations

import time
import uuid

from django.db import transaction

from core.db import server_cursor

LEASE_SECONDS = 10.0

# SQL, because the ORM's ON CONFLICT has no condition.  One statement, so that only one of two processes gets an expired
# lease.
_TAKE = """
INSERT INTO webhooks_tasklease AS l (task, holder, expires_at)
VALUES (%(task)s, %(holder)s, clock_timestamp() + make_interval(secs => %(seconds)s))
ON CONFLICT (task) DO UPDATE SET holder = EXCLUDED.holder, expires_at = EXCLUDED.expires_at
WHERE l.holder = EXCLUDED.holder OR l.expires_at <= clock_timestamp()
RETURNING task
"""
_GIVE_BACK = """
UPDATE webhooks_tasklease SET expires_at = clock_timestamp() WHERE task = %(task)s AND holder = %(holder)s
"""


class Lease:
    """One process's hold on a task."""

    def __init__(self, task: str) -> None:
        self._task = task
        self._holder = uuid.uuid4()
        self._taken_at = float("-inf")

    def take(self) -> bool:
        """Take the lease for LEASE_SECONDS; False while another process holds it."""
        self._taken_at = time.monotonic()
        return bool(self._run(_TAKE))

    def keep(self) -> bool:
        """Renew the lease if a third of it has passed; False if another process took it over."""
        return time.monotonic() - self._taken_at < LEASE_SECONDS / 3 or self.take()

    def give_back(self) -> None:
        """Let the next process take the lease at once."""
        self._run(_GIVE_BACK)

    def _run(self, statement: str) -> int:
        with transaction.atomic(), server_cursor() as cursor:
            # If a crash forgets this commit, the lease stays as it was, which does no harm.
            cursor.execute("SET LOCAL synchronous_commit = off")
            parameters = {"task": self._task, "holder": self._holder, "seconds": LEASE_SECONDS}
            return cursor.execute(statement, parameters).rowcount
