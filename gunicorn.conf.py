"""How gunicorn serves the API.  Each value can be set through the environment."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

_LOAD_SETTINGS = """
import sys
from django.core.exceptions import ImproperlyConfigured
try:
    import triggers_project.settings
except ImproperlyConfigured as error:
    sys.exit(str(error))
"""


def _count(name: str, default: str) -> int:
    text = os.environ.get(name, default)
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        sys.exit(f"{name} is wrong: expected a whole number from 1.")
    return int(text)


def on_starting(server: Any) -> None:
    """End with the line that names a wrong setting, instead of a traceback from each worker.

    In a process of its own: what gunicorn's master has imported, a reload would not read again.
    """
    checked = subprocess.run([sys.executable, "-c", _LOAD_SETTINGS], check=False)  # noqa: S603
    if checked.returncode:
        sys.exit(checked.returncode)


def worker_exit(server: Any, worker: Any) -> None:
    """Wake the workers for the last events before the process ends, so that a deploy delays no webhook."""
    wakeups = sys.modules.get("core.wakeups")
    if wakeups is not None:  # None when the application failed to load
        wakeups.wait_until_woken(2.0)


bind = os.environ.get("BIND", f"0.0.0.0:{_count('PORT', '8000')}")
worker_class = "gthread"
workers = _count("WEB_CONCURRENCY", "2")
threads = _count("WEB_THREADS", "8")

keepalive = 75  # longer than the usual load balancer's, so that it is never we who close first
timeout = 60  # above the 30 s that a request may wait for a database connection
graceful_timeout = 35
backlog = 2048

# gunicorn would take these two headers for its own word on where the application is mounted. URL_PREFIX says that.
forwarder_headers = ""
header_map = "drop"  # a header with an underscore never passes for the one with a hyphen

limit_request_line = 8190
limit_request_fields = 100
limit_request_field_size = 8190

accesslog = None  # the application logs each request as one JSON line
errorlog = "-"
loglevel = os.environ.get("GUNICORN_LOG_LEVEL", "warning")
# gunicorn's heartbeat files: in memory, so that a busy disk can't make a worker look dead.
worker_tmp_dir = "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108
control_socket_disable = True
