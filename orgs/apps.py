from importlib import import_module

from django.apps import AppConfig


class OrgsConfig(AppConfig):
    name = "orgs"
    verbose_name = "Organizations"

    def ready(self) -> None:
        import_module("orgs.signals")  # connects its receivers
