"""`make clean`: stop and delete the servers of this checkout, also what root keeps outside of it."""

from __future__ import annotations

import sys

from devstack.errors import DevstackError
from devstack.postgres import Postgres
from devstack.processes import ROOT
from devstack.valkey import Valkey


def main() -> int:
    """Destroy every server that has a home under .local; return the exit code."""
    for lock in sorted((ROOT / ".local").glob("**/postgres.lock")):
        try:
            Valkey(lock.parent.parent / "valkey").stop()
            Postgres(lock.parent).destroy()
        except DevstackError as error:
            print(error, file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
