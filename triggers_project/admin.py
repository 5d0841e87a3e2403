"""The admin site."""

from __future__ import annotations

from django.contrib.admin import AdminSite


class TriggersAdminSite(AdminSite):
    """Django's admin under our name."""

    site_header = "Triggers API"
    site_title = "Triggers API"
    index_title = "Operations"
