"""A pytest plugin, loaded before Django's settings: a PostgreSQL and a Valkey of the tests' own.

They live under .local/test/, listen on sockets there, and stop when the run ends.  What DATABASE_URL
and REDIS_URL name outside is never touched: tests empty their database and kill their servers.
"""

from __future__ import annotations

import atexit
import os
import sys
from pathlib import Path

from devstack.postgres import Postgres
from devstack.valkey import Valkey

ROOT = Path(__file__).resolve().parent.parent
# Two runs at a time in one checkout need a folder each.
HOME = Path(os.environ.get("TRIGGERS_TEST_HOME", ROOT / ".local" / "test"))

postgres = Postgres(HOME / "postgres", durable=False)
valkey = Valkey(HOME / "valkey")

# What the whole run, and each process that a test starts, is set up with.
ENVIRONMENT = {
    "ENVIRONMENT": "development",
    "SECRET_KEY": "only-for-tests-0123456789abcdefghijklmnop",
    "SECRETS_ENCRYPTION_KEYS": "dGVzdHMtb25seS10ZXN0cy1vbmx5LXRlc3RzLW9ubHk=",
    "WEBHOOK_ALLOWED_SUBNETS": "127.0.0.0/8,::1/128",
    "ALLOWED_HOSTS": "localhost,127.0.0.1,[::1],testserver",
    "LOG_LEVEL": "INFO",
    "DJANGO_SETTINGS_MODULE": "triggers_project.settings",
}


def _start() -> None:
    postgres.start()
    atexit.register(postgres.stop)
    valkey.start()
    atexit.register(valkey.stop)
    from triggers_project.options import OPTIONS

    # Read again under the settings, so that the coverage of its lines is counted.
    del sys.modules["triggers_project.options"]

    # A setting of the shell that runs the tests must not change what they test.
    for option in OPTIONS:
        os.environ.pop(option.name, None)
    os.environ.update(ENVIRONMENT, DATABASE_URL=postgres.url(), REDIS_URL=valkey.url())


_start()
