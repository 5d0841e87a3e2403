"""What replays and recoveries of many deliveries share: their place is kept in the database.

A run goes through the rows that existed when it began, oldest first, in chunks.  A chunk and the place after it are
committed together, so that the run continues after a crash, never processes a row twice, and has only one chunk in
memory.
"""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from django.db import transaction
from django.db.models import Q, QuerySet
from django.db.models.functions import Now

from core.db import after_transaction
from core.wakeups import WEBHOOKS, wake
from webhooks.models import BulkRun

CHUNK = 500


def advance(run_id: uuid.UUID, step: Callable[[BulkRun, int], None], rows: int) -> BulkRun | None:
    """Process the next `rows` rows of a run and return its state; None if another process is doing so.

    step: processes the rows after the run's place, and moves the place.
    """
    with transaction.atomic():
        run = BulkRun.objects.select_for_update(skip_locked=True).filter(pk=run_id).first()
        if run is None:
            return None
        if run.state == BulkRun.State.RUNNING:
            step(run, rows)
            run.updated_at = Now()
            run.save(update_fields=[
                "visited", "queued", "held", "cursor_at", "cursor_id", "state", "updated_at", "finished_at",
            ])  # fmt: skip
            run.refresh_from_db()
    after_transaction(lambda: wake(WEBHOOKS))
    return run


def from_place(run: BulkRun, rows: QuerySet[Any]) -> QuerySet[Any]:
    """Return the rows that the run hasn't seen yet, in its order."""
    rows = rows.filter(created_at__lte=run.before)
    if run.cursor_at is not None:
        rows = rows.filter(created_at__gte=run.cursor_at).filter(
            Q(created_at__gt=run.cursor_at) | Q(id__gt=run.cursor_id)
        )
    return rows.order_by("created_at", "id")


class Seen(Protocol):
    """A row that a run has seen."""

    @property
    def id(self) -> uuid.UUID: ...
    @property
    def created_at(self) -> datetime.datetime: ...


def move_on(run: BulkRun, seen: Sequence[Seen], rows: int) -> None:
    """Move the place to the last row seen; a short chunk was the last one."""
    run.visited += len(seen)
    if seen:
        run.cursor_id, run.cursor_at = seen[-1].id, seen[-1].created_at
    if len(seen) < rows:
        finish(run)


def cancel(run_id: uuid.UUID) -> bool:
    """End a run early; what it has done stays.  Return False if it wasn't running."""
    with transaction.atomic():
        run = BulkRun.objects.select_for_update().filter(pk=run_id, state=BulkRun.State.RUNNING).first()
        if run is None:
            return False
        run.state = BulkRun.State.CANCELLED
        run.updated_at = run.finished_at = Now()
        run.save(update_fields=["state", "updated_at", "finished_at"])
        return True


def finish(run: BulkRun) -> None:
    """Mark the run as done."""
    run.state = BulkRun.State.DONE
    run.finished_at = Now()
