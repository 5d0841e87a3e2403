"""Every route.  /api/ is JSON whatever happens; the admin is HTML."""

from __future__ import annotations

from django.conf import settings
from django.contrib import admin
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import include, path, reverse
from django.views.decorators.csrf import csrf_exempt
from drf_spectacular.views import SpectacularSwaggerSplitView

from core.openapi.view import schema_view
from core.problem_pages import problem_list, problem_page
from triggers_project import health, metrics


def index(request: HttpRequest) -> HttpResponse:
    """Lead a browser to the API's page."""
    return HttpResponseRedirect(reverse("docs"))


# Loads the admin's pages, which processes that serve none don't need; see console/apps.py.
admin.autodiscover()

# Nothing under /api/ believes a cookie, so nothing there needs a CSRF token; DRF exempts its views itself.
urlpatterns = [
    path("api/", include("events.api.urls")),  # first: nothing is asked for so often
    path("", index, name="index"),
    path("metrics", csrf_exempt(metrics.page), name="metrics"),
    path("api/health", csrf_exempt(health.health), name="health"),
    path("api/health/detailed", csrf_exempt(health.health_detailed), name="health-detailed"),
    path("api/schema", csrf_exempt(schema_view), name="schema"),
    path(
        "api/docs",
        csrf_exempt(SpectacularSwaggerSplitView.as_view(template_name="core/api_docs.html")),
        name="docs",
    ),
    path("api/problems", csrf_exempt(problem_list), name="problem-list"),
    path("api/problems/<slug:code>", csrf_exempt(problem_page), name="problem"),
    path("api/", include("orgs.api.urls")),
    path("api/", include("webhooks.api.urls")),
    path("api/", include("portal.api.urls")),
    path("portal/", include("portal.urls")),
    path(f"{settings.ADMIN_PATH}/rq/", include("console.rq_pages")),
    path(f"{settings.ADMIN_PATH}/", admin.site.urls),
]

handler400 = "core.error_pages.handler400"
handler403 = "core.error_pages.handler403"
handler404 = "core.error_pages.handler404"
handler500 = "core.error_pages.handler500"
