"""The ASGI application that gunicorn serves: the front door, with Django behind it."""

from __future__ import annotations

from triggers_project.wsgi import application as site  # first: it loads the apps

# isort: split
from django.conf import settings

from core.front_door.app import FrontDoor
from core.garbage_collection import freeze_gc
from events.api.front_door import EventsDoor
from orgs.front_door import whose
from triggers_project.metrics import MetricsService
from triggers_project.served_lately import served_lately
from webhooks.api.inbox_door import InboxDoor
from webhooks.dispatch.leases import release
from webhooks.routing.routing_commit import RoutingCommit

events_door = EventsDoor(lambda on_accepted: RoutingCommit(on_accepted, release))
inbox_door = InboxDoor(events_door.authenticator, served_lately.another_than)
application = FrontDoor(
    {**events_door.routes(), **inbox_door.routes()},
    site,
    settings.WEB_THREADS,
    [*events_door.services, inbox_door.room, MetricsService()],
    whose,
    served_lately,
)

freeze_gc()
