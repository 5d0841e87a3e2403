"""How gunicorn serves the API."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from core.garbage_collection import collect_seldom

_CHECK = """
import os
import sys
from core.garbage_collection import collect_seldom
collect_seldom()
import django
from django.core.exceptions import ImproperlyConfigured
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "triggers_project.settings")
try:
    django.setup()
    from triggers_project.start_checks import check_services
    check_services()
except ImproperlyConfigured as error:
    sys.exit(str(error))
"""

collect_seldom()  # which its workers inherit

# As a container's first process, gunicorn would not notice SIGTERM before it installs its own handler.  (This file is
# read again for a reload, when that is in place.)
if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
    signal.signal(signal.SIGTERM, lambda signum, frame: os._exit(0))


def _read_settings(*names: str) -> dict[str, Any]:
    """Return the values of these settings, or end with a line for each setting of the application that is wrong.

    In a separate process: what gunicorn's master has imported, a reload would not read again.
    """
    command = [sys.executable, "-m", "triggers_project.options", *names]
    read = subprocess.run(command, stdout=subprocess.PIPE, check=False)  # noqa: S603
    if read.returncode:
        sys.exit(read.returncode)
    values: dict[str, Any] = json.loads(read.stdout)
    return values


def on_starting(server: Any) -> None:
    """End with the line that names a setting that leads nowhere, instead of failing in each worker.

    In a separate process, as above.
    """
    checked = subprocess.run([sys.executable, "-c", _CHECK], check=False)  # noqa: S603
    if checked.returncode:
        sys.exit(checked.returncode)


def child_exit(server: Any, worker: Any) -> None:
    """Let the other workers know that this one, however it ended, accepts no more connections."""
    web_loop = sys.modules.get("triggers_project.web_loop")
    if web_loop is not None:
        web_loop.counts.leave(worker.age)


def worker_exit(server: Any, worker: Any) -> None:
    """Wake the workers for the last events before the process ends, so that a deploy delays no webhook."""
    wakeups = sys.modules.get("core.wakeups")
    if wakeups is not None:  # None when the application failed to load
        wakeups.wait_until_woken(2.0)


_settings = _read_settings("BIND", "WEB_CONCURRENCY", "GUNICORN_LOG_LEVEL")
bind = _settings["BIND"]
worker_class = "triggers_project.web_worker.WebWorker"
workers = _settings["WEB_CONCURRENCY"]

keepalive = 75  # longer than the usual load balancer's, so that it is never we who close first
# A worker whose event loop stands still for so long, or that takes so long to load, is killed and replaced.  The loop
# reports to gunicorn after each half of it.  A request may take longer; nothing here limits one that Django serves.
timeout = 60
graceful_timeout = 35  # after SIGTERM, how long requests in flight may finish
backlog = 2048

accesslog = None  # the application logs each request as one JSON line
errorlog = "-"
loglevel = _settings["GUNICORN_LOG_LEVEL"]
# gunicorn's heartbeat files: in memory, so that a busy disk can't make a worker look dead.
worker_tmp_dir = "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108
control_socket_disable = True
