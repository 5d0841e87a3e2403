"""The WSGI application that gunicorn serves."""

import os

from django.core.wsgi import get_wsgi_application
from django.urls import resolve

from core.garbage_collection import freeze_gc

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "triggers_project.settings")

application = get_wsgi_application()

# Django imports the views on the first request.  No client should wait for that, and what is loaded after
# `freeze_gc` is walked by every collection.
resolve("/api/events")
freeze_gc()
