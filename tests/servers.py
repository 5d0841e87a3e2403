"""A pytest plugin, loaded before Django's settings: a PostgreSQL and a Valkey of the tests' own.

They live under .local/test/, listen on sockets there, and stop when the run ends.  What DATABASE_URL
and REDIS_URL name outside is never touched: tests empty their database and kill their servers.  Each of
the processes that pytest-xdist runs tests in has servers for itself; the one that hands tests out has none.
"""

from __future__ import annotations

import atexit
import os
import sys
from pathlib import Path

import pytest

from devstack.postgres import Postgres
from devstack.valkey import Valkey

ROOT = Path(__file__).resolve().parent.parent
# Two runs at a time in one checkout need a folder each.
_PROCESS = os.environ.get("PYTEST_XDIST_WORKER", "main")
HOME = Path(os.environ.get("TRIGGERS_TEST_HOME", ROOT / ".local" / "test")) / _PROCESS

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


def _set_environment() -> None:
    from triggers_project.options import OPTIONS

    # Read again under the settings, so that the coverage of its lines is counted.
    del sys.modules["triggers_project.options"]

    # A setting of the shell that runs the tests must not change what they test.
    for option in OPTIONS:
        os.environ.pop(option.name, None)
    os.environ.update(ENVIRONMENT, DATABASE_URL=postgres.url(), REDIS_URL=valkey.url())


_set_environment()


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """Start the servers, except in the process that only hands tests out."""
    if _PROCESS == "main" and getattr(early_config.known_args_namespace, "numprocesses", None):
        return
    postgres.start()
    atexit.register(postgres.stop)
    valkey.start()
    atexit.register(valkey.stop)
