from django.apps import AppConfig
from django.core.signals import got_request_exception


class CoreConfig(AppConfig):
    name = "core"

    def ready(self) -> None:
        from core.fast_paths.request_signals import disconnect_idle_receivers
        from core.problems import log_page_error

        got_request_exception.connect(log_page_error, dispatch_uid="core.problems")
        disconnect_idle_receivers()
