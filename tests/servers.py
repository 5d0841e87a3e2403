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

from devstack import stack
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
    **stack.ENVIRONMENT,
    "ALLOWED_HOSTS": f"{stack.ENVIRONMENT['ALLOWED_HOSTS']},testserver",
    "LOG_LEVEL": "INFO",
}

# What Python compiles is kept, whatever the shell says: hundreds of processes start from the same modules.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

stack.forget_settings_of_the_shell()
# Read again under the settings, so that the coverage of its lines is counted.
for name in [name for name in sys.modules if name.startswith("triggers_project.options")]:
    del sys.modules[name]
os.environ.update(ENVIRONMENT, DATABASE_URL=postgres.url(), REDIS_URL=valkey.url())


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """Start the servers, except in the process that only hands tests out."""
    if _PROCESS == "main" and getattr(early_config.known_args_namespace, "numprocesses", None):
        return
    postgres.start()
    atexit.register(postgres.stop)
    valkey.start()
    atexit.register(valkey.stop)
