"""The admin site: Django's own under our name, with a dashboard on its first page."""

from __future__ import annotations

import uuid
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from django.contrib.admin import AdminSite
from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.template.response import TemplateResponse
from django.urls import path


class TriggersAdminSite(AdminSite):
    """Django's admin under our name, with the operator's figures on top."""

    site_header = "Triggers API"
    site_title = "Triggers API"
    index_title = "Operations"
    index_template = "console/home.html"

    def get_urls(self) -> list[Any]:
        """Leave out Django's "view on site" redirect: no row has such a page, and an invalid id would be an error."""
        ours = [
            path("live/", self.admin_view(self.home_live), name="home_live"),
            path("export-progress/<uuid:token>/", self.admin_view(self.export_progress), name="export_progress"),
        ]
        return ours + [route for route in super().get_urls() if getattr(route, "name", None) != "view_on_site"]

    # Logging in, logging out and changing one's password write to the audit log (orgs.signals, and below).  Each is one
    # transaction with its entry.

    def login(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        """Show the log-in form, or log in."""
        with _one_transaction(request):
            return super().login(request, extra_context)

    def logout(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> TemplateResponse:
        with _one_transaction(request):
            return super().logout(request, extra_context)

    def password_change(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> TemplateResponse:
        """Show the form for one's own password, or change it."""
        from orgs import audit  # here for the same reason as in `index`

        with _one_transaction(request):
            response = super().password_change(request, extra_context)
            if request.method == "POST" and response.status_code == 302:  # else the form is shown again
                audit.record_for_user(request, "user.change", None, request.user, {"change": "own password"})
            return response

    def index(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> TemplateResponse:
        """Show the dashboard; those who may not see deliveries see only the list of pages."""
        context: dict[str, Any] = dict(extra_context or {})
        if _may_see_figures(request):
            from console.home import home_context  # here: Django makes the site before it loads the models

            context["home"] = home_context(request)
        return super().index(request, context)

    def export_progress(self, request: HttpRequest, token: uuid.UUID) -> HttpResponse:
        """Return how many rows an export of this user has written so far."""
        from console.export import read_progress

        return JsonResponse(read_progress(request.user.pk, token) or {"rows": None, "is_complete": False})

    def home_live(self, request: HttpRequest) -> HttpResponse:
        """Return the part of the home that refreshes itself."""
        from console.home import live_context

        if not _may_see_figures(request):
            raise PermissionDenied
        return TemplateResponse(request, "console/home_live.html", {"home": live_context(request)})


def _may_see_figures(request: HttpRequest) -> bool:
    return request.user.has_perm("webhooks.view_delivery") and request.user.has_perm("events.view_event")


def _one_transaction(request: HttpRequest) -> AbstractContextManager[Any]:
    """Return a transaction for a request that changes something; showing a form needs none."""
    return transaction.atomic() if request.method == "POST" else nullcontext()
