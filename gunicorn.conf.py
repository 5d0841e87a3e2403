"""How gunicorn serves the API.  Each value can be set through the environment."""

import os
from pathlib import Path

bind = os.environ.get("BIND", f"0.0.0.0:{os.environ.get('PORT', '8000')}")
worker_class = "gthread"
workers = int(os.environ.get("WEB_CONCURRENCY", "2"))
threads = int(os.environ.get("WEB_THREADS", "8"))

keepalive = 75  # longer than the usual load balancer's, so that it is never we who close first
timeout = 60  # above the 30 s that a request may wait for a database connection
graceful_timeout = 35
backlog = 2048

limit_request_line = 8190
limit_request_fields = 100
limit_request_field_size = 8190

accesslog = None  # the application logs each request as one JSON line
errorlog = "-"
loglevel = os.environ.get("GUNICORN_LOG_LEVEL", "warning")
# gunicorn's heartbeat files: in memory, so that a busy disk can't make a worker look dead.
worker_tmp_dir = "/dev/shm" if Path("/dev/shm").is_dir() else None  # noqa: S108
control_socket_disable = True
