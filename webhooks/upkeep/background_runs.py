"""Runs in the background, which workers advance: recoveries, and retries and replays from the admin."""

from __future__ import annotations

import random
import time
import uuid
from collections import defaultdict

import structlog
from django.db.models import QuerySet

from core.db import is_transient
from webhooks.models import BulkRun
from webhooks.upkeep import recovery, replay

log = structlog.get_logger()

RUNS_AT_A_TIME = 20


def advance(run: BulkRun) -> BulkRun | None:
    """Process the next rows of a run and return its state; None if another process is doing so."""
    return recovery.advance(run.pk) if run.kind == BulkRun.Kind.RECOVER else replay.advance(run.pk)


def advance_all(seconds: float) -> bool:
    """Advance the runs that are under way, in turns, for about `seconds`; return whether any of them has rows left.

    A run that raises stays where it is, and doesn't delay the others.  One that another process is advancing is left
    to it.
    """
    ends = time.monotonic() + seconds
    waiting = _one_of_each_organization()
    while waiting:
        run = waiting.pop(0)
        try:
            following = advance(run)
        except Exception as error:
            if is_transient(error):
                raise
            log.error("bulk_run_failed", run=str(run.pk), kind=run.kind, error=repr(error)[:300])
            continue
        if following is not None and following.state == BulkRun.State.RUNNING:
            waiting.append(following)
        if time.monotonic() >= ends:
            break
    return bool(waiting)


def are_running() -> bool:
    """Return whether any run is under way."""
    return _running().exists()


def _running() -> QuerySet[BulkRun]:
    return BulkRun.objects.filter(state=BulkRun.State.RUNNING, in_background=True)


def _one_of_each_organization() -> list[BulkRun]:
    """Return running runs, one for each organization, in random order, so that each has its turn."""
    by_organization: dict[uuid.UUID | None, list[BulkRun]] = defaultdict(list)
    for run in _running():
        by_organization[run.organization_id].append(run)
    chosen = [random.choice(runs) for runs in by_organization.values()]
    random.shuffle(chosen)
    return chosen[:RUNS_AT_A_TIME]
