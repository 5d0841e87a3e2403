"""django-rq's pages under the admin: for staff who may see deliveries; its buttons for those who may repair."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import wraps
from typing import Any

from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.urls import re_path
from django_rq import stats_views
from django_rq.urls import get_admin_urlpatterns

# The pages' inline scripts and handlers, which our content security policy refuses: the script calls
# a jQuery plugin that Django's admin no longer has, the handlers double links that are there as well.
_INLINE = re.compile(r'<script type="text/javascript">.*?</script>| (?:onclick|style)="[^"]*"', re.DOTALL)

# Pages that change something, whatever the method.
_CHANGING = frozenset(
    {"confirm_action", "actions", "clear_queue", "requeue_all", "delete_failed_jobs", "delete_job", "requeue_job_view",
     "enqueue_job", "stop_job"}
)  # fmt: skip


def guard(view: Callable[..., HttpResponse]) -> Callable[..., HttpResponse]:
    """Return the view for staff with the right permission, without inline scripts."""

    @wraps(view)
    def guarded(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        changes = request.method not in {"GET", "HEAD"} or view.__name__ in _CHANGING
        needed = "webhooks.repair_delivery" if changes else "webhooks.view_delivery"
        if not request.user.has_perm(needed):
            raise PermissionDenied
        response = view(request, *args, **kwargs)
        if not response.streaming and response.headers.get("Content-Type", "").startswith("text/html"):
            response.content = _INLINE.sub("", response.content.decode()).encode()
        return response

    return admin.site.admin_view(guarded)


app_name = "django_rq"
urlpatterns = [
    re_path(r"^stats.json/?$", guard(stats_views.stats_json), name="home_json"),
    *get_admin_urlpatterns(view_wrapper=guard),
]
