"""`manage.py rqworker`: runs a worker (triggers_project/worker.py)."""

from __future__ import annotations

from django_rq.management.commands.rqworker import Command as RqCommand


class Command(RqCommand):
    # They would load every route and every page of the admin, which takes a third of the start and 20 MB, and a worker
    # serves none.  `manage.py check` and `migrate` check everything.
    requires_system_checks = ()
