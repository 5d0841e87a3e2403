"""Saves each request the work that Django's signals do at its start and end for nothing; `make bench SCENARIO=single`.

No connection outlives its request (CONN_MAX_AGE is 0), so none can be stale when the next one begins; django-redis
keeps its connections open, so there is no cache to close; and only DEBUG logs queries.
"""

from __future__ import annotations

from django.conf import settings
from django.core.cache import close_caches
from django.core.signals import request_finished, request_started
from django.db import close_old_connections, reset_queries


def disconnect_idle_receivers() -> None:
    """Disconnect those of Django's receivers that have nothing to do here.

    `close_old_connections` stays connected to `request_finished`: it returns the connection to the pool.
    """
    request_started.disconnect(close_old_connections)
    request_finished.disconnect(close_caches)
    if not settings.DEBUG:
        request_started.disconnect(reset_queries)
