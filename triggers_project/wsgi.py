"""The WSGI application that gunicorn serves."""

import os

from django.core.wsgi import get_wsgi_application
from django.urls import resolve

from core.garbage_collection import settle

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "triggers_project.settings")

application = get_wsgi_application()

# Django imports the views at the first request: no client should wait for that, and what comes after
# `settle` is looked at by the garbage collector for ever.
resolve("/api/events")
settle()
