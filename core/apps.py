from django.apps import AppConfig
from django.core.signals import got_request_exception
from django.utils.module_loading import autodiscover_modules


class CoreConfig(AppConfig):
    name = "core"

    def ready(self) -> None:
        from core.exceptions import log_page_error

        autodiscover_modules("problems")  # registers each app's problem codes
        autodiscover_modules("deprecations")
        got_request_exception.connect(log_page_error, dispatch_uid="core.exceptions")
