"""The WSGI application that gunicorn serves."""

import os

from django.core.wsgi import get_wsgi_application
from django.urls import resolve

from core.garbage_collection import freeze_gc
from core.url_prefix import serve_below_prefix

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "triggers_project.settings")

application = serve_below_prefix(get_wsgi_application())

# Django imports the views on the first request.  No client should wait for that, and what is loaded after
# `freeze_gc` is walked by every collection.
resolve("/api/events")
freeze_gc()
