from django.apps import AppConfig
from django.core.signals import got_request_exception


class CoreConfig(AppConfig):
    name = "core"

    def ready(self) -> None:
        """Log the cause of each 500 page."""
        from core.problems import log_page_error

        got_request_exception.connect(log_page_error, dispatch_uid="core.problems")
