import django.contrib.admin.apps


class TriggersAdminConfig(django.contrib.admin.apps.AdminConfig):
    """Django's admin, with our site in its place."""

    default_site = "triggers_project.admin.TriggersAdminSite"
