"""How gunicorn serves the API.  Each value can be set through the environment."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

_CHECK = """
import os
import sys
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

# As a container's first process, gunicorn would not notice SIGTERM before it installs its own handler.  (This file is
# read again for a reload, when that is in place.)
if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
    signal.signal(signal.SIGTERM, lambda signum, frame: os._exit(0))


def _count(name: str, default: str) -> int:
    text = os.environ.get(name, default)
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        sys.exit(f"{name} is wrong: expected a whole number from 1.")
    return int(text)


def on_starting(server: Any) -> None:
    """End with the line that names a wrong setting, or one that leads nowhere, instead of failing in each worker.

    In a process of its own: what gunicorn's master has imported, a reload would not read again.
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


bind = os.environ.get("BIND", f"0.0.0.0:{_count('PORT', '8000')}")
worker_class = "triggers_project.web_worker.WebWorker"
workers = _count("WEB_CONCURRENCY", "2")
_count("WEB_THREADS", "8")  # the threads that Django's views run in, of each worker process

keepalive = 75  # longer than the usual load balancer's, so that it is never we who close first
timeout = 60  # above the 30 s that a request may wait for a database connection
graceful_timeout = 35
backlog = 2048

accesslog = None  # the application logs each request as one JSON line
errorlog = "-"
loglevel = os.environ.get("GUNICORN_LOG_LEVEL", "warning")
# gunicorn's heartbeat files: in memory, so that a busy disk can't make a worker look dead.
worker_tmp_dir = "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108
control_socket_disable = True
