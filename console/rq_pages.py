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
from django_rq import cron_views, stats_views, utils, views
from django_rq.queues import DjangoRQ
from django_rq.urls import get_admin_urlpatterns
from redis import Redis
from redis.exceptions import RedisError
from rq.exceptions import NoSuchJobError
from rq.job import Job

from core.wakeups import WakeUp

# The pages read jobs through RQ's own class, one of them with RQ's default serializer, which unpickles.  Ours reads
# JSON within bounds, and nothing else.
DjangoRQ.job_class = WakeUp
for _module in (views, utils, cron_views):
    _module.Job = WakeUp  # type: ignore[attr-defined]


def _requeue_job(job_id: str, connection: Redis, serializer: Any = None) -> Job:
    """Put a failed job into its queue again."""
    return WakeUp.fetch(job_id, connection).requeue()


views.requeue_job = _requeue_job  # type: ignore[attr-defined]

# With prometheus_client installed, the first page would link to metrics of the library's own, which aren't routed: ours
# are at /metrics.
stats_views.RQCollector = None  # type: ignore[assignment, attr-defined]

# The pages' inline scripts, styles and handlers, which our content security policy refuses: the script calls
# a jQuery plugin that Django's admin no longer has, the handlers double links that are there as well.
_INLINE = re.compile(
    r'<script type="text/javascript">.*?</script>|<style>.*?</style>| (?:onclick|style)="[^"]*"', re.DOTALL
)

# The names that the checkboxes of the lists lack.
_LABELS = (
    ('id="action-toggle"', 'id="action-toggle" aria-label="Select all jobs on this page"'),
    ('class="action-select"', 'class="action-select" aria-label="Select this job"'),
)

# Views that change something, whatever the method.
_CHANGING = frozenset(
    {"confirm_action", "actions", "clear_queue", "requeue_all", "delete_failed_jobs", "delete_job", "requeue_job_view",
     "enqueue_job", "stop_job"}
)  # fmt: skip


def guard(view: Callable[..., HttpResponse]) -> Callable[..., HttpResponse]:
    """Return the view for staff with the permission it needs, without inline scripts, its checkboxes named."""

    @wraps(view)
    def guarded(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        changes = request.method not in {"GET", "HEAD"} or view.__name__ in _CHANGING
        needed = "webhooks.manage_delivery" if changes else "webhooks.view_delivery"
        if not request.user.has_perm(needed):
            raise PermissionDenied
        try:
            response = view(request, *args, **kwargs)
        except (IndexError, ValueError, RecursionError, ImproperlyConfigured, NoSuchJobError):
            # A queue, page, job or scheduler that doesn't exist or can't be read; the library doesn't catch these.
            raise Http404 from None
        except RedisError:
            messages.error(
                request, "Redis is not responding, so its queues can't be shown. Deliveries continue without it."
            )
            return HttpResponseRedirect(reverse("admin:index"))
        if not response.streaming and response.headers.get("Content-Type", "").startswith("text/html"):
            page = _INLINE.sub("", response.content.decode())
            page = page.replace(static("admin/js/actions.js"), static("console/select_all.js"))
            for bare, labeled in _LABELS:
                page = page.replace(bare, labeled)
            response.content = page.encode()
        return response

    return admin.site.admin_view(guarded)


app_name = "django_rq"
urlpatterns = [
    re_path(r"^stats.json/?$", guard(stats_views.stats_json), name="home_json"),
    *get_admin_urlpatterns(view_wrapper=guard),
]
