from django.apps import AppConfig
from django.conf import settings
from django.core.cache import close_caches
from django.core.signals import got_request_exception, request_finished, request_started
from django.db import close_old_connections, reset_queries


class CoreConfig(AppConfig):
    name = "core"

    def ready(self) -> None:
        """Log the cause of each 500 page; spare requests what Django would do for nothing at their start and end.

        No connection outlives its request (CONN_MAX_AGE is 0), so there is none to look at when the next begins;
        django-redis keeps its connections, so there is no cache to close; and only DEBUG logs queries.
        """
        from core.problems import log_page_error

        got_request_exception.connect(log_page_error, dispatch_uid="core.problems")
        request_started.disconnect(close_old_connections)
        request_finished.disconnect(close_caches)
        if not settings.DEBUG:
            request_started.disconnect(reset_queries)
