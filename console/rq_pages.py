"""django-rq's pages in the admin, for staff who may view deliveries; the buttons, for those who may manage them."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import wraps
from typing import Any

from django.contrib import admin, messages
from django.core.exceptions import ImproperlyConfigured, PermissionDenied
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseRedirect
from django.templatetags.static import static
from django.urls import re_path, reverse
from django_rq import stats_views
from django_rq.urls import get_admin_urlpatterns
from redis.exceptions import RedisError
from rq.exceptions import NoSuchJobError

# The pages' inline scripts, styles and handlers, which our content security policy refuses: the script calls
# a jQuery plugin that Django's admin no longer has, the handlers double links that are there as well.
_INLINE = re.compile(
    r'<script type="text/javascript">.*?</script>|<style>.*?</style>| (?:onclick|style)="[^"]*"', re.DOTALL
)

# Views that change something, whatever the method.
_CHANGING = frozenset(
    {"confirm_action", "actions", "clear_queue", "requeue_all", "delete_failed_jobs", "delete_job", "requeue_job_view",
     "enqueue_job", "stop_job"}
)  # fmt: skip


def guard(view: Callable[..., HttpResponse]) -> Callable[..., HttpResponse]:
    """Return the view for staff with the permission it needs, without inline scripts."""

    @wraps(view)
    def guarded(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        changes = request.method not in {"GET", "HEAD"} or view.__name__ in _CHANGING
        needed = "webhooks.manage_delivery" if changes else "webhooks.view_delivery"
        if not request.user.has_perm(needed):
            raise PermissionDenied
        try:
            response = view(request, *args, **kwargs)
        except (IndexError, ValueError, ImproperlyConfigured, NoSuchJobError):
            # A queue, page, job or scheduler that doesn't exist; the library doesn't catch these.
            raise Http404 from None
        except RedisError:
            messages.error(
                request, "Redis is not responding, so its queues can't be shown. Deliveries continue without it."
            )
            return HttpResponseRedirect(reverse("admin:index"))
        if not response.streaming and response.headers.get("Content-Type", "").startswith("text/html"):
            page = _INLINE.sub("", response.content.decode())
            response.content = page.replace(static("admin/js/actions.js"), static("console/select_all.js")).encode()
        return response

    return admin.site.admin_view(guarded)


app_name = "django_rq"
urlpatterns = [
    re_path(r"^stats.json/?$", guard(stats_views.stats_json), name="home_json"),
    *get_admin_urlpatterns(view_wrapper=guard),
]
