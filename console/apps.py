import django.contrib.admin.apps
from django.apps import AppConfig


class ConsoleConfig(AppConfig):
    name = "console"


class TriggersAdminConfig(django.contrib.admin.apps.AdminConfig):
    """Django's admin, with our site in its place."""

    default_site = "console.site.TriggersAdminSite"
