"""Django as a WSGI application: what the front door passes requests to (`asgi.py`).

It can also be served by itself, by any WSGI server.  Then every request takes a thread, and each event its own commit.
"""

import os

from django.core.wsgi import get_wsgi_application
from django.urls import resolve

from core.url_prefix import serve_below_prefix

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "triggers_project.settings")

application = serve_below_prefix(get_wsgi_application())

resolve("/api/events")  # imports the views, which Django would do on the first request
