"""One line in the log for each event that was sent, and the metric of what became of them."""

from __future__ import annotations

import time
import uuid
from collections import Counter as Counts
from collections.abc import Sequence
from types import TracebackType

import structlog

from core.db import after_transaction
from core.metrics.kinds import Counter
from core.problems import Problem
from events.ingest import Ingested, IngestStatus
from events.payload import NewEvent

log = structlog.get_logger()

# The words of the log that operators' dashboards search for.
_LOGGED = {
    IngestStatus.ACCEPTED: "persisted",
    IngestStatus.DUPLICATE: "duplicate",
    IngestStatus.CONFLICT: "already_exists",
}

EVENTS = Counter(
    "triggers_events_total",
    "Events that were read, by what became of each. Those of a request that was refused as a whole are not in it.",
    ["outcome"],
)
INVALID = "invalid"  # an item of a batch


class failure_logged:
    """Log each of the events with the outcome `error` when storing them raises something other than a Problem.

    started: `time.perf_counter()` when the request came.
    """

    def __init__(self, organization_id: uuid.UUID, events: Sequence[NewEvent], started: float) -> None:
        self._of = organization_id, events
        self._started = started

    def __enter__(self) -> None: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, Exception) and not isinstance(error, Problem):
            name = type(error).__name__
            # Not for an attempt that is repeated.
            after_transaction(lambda: _log_failure(*self._of, name, self._started), even_if_it_fails=True)


def _log_failure(organization_id: uuid.UUID, events: Sequence[NewEvent], error: str, started: float) -> None:
    for event in events:
        log.warning(
            "event_ingested",
            outcome="error",
            error=error,
            type=event.type,
            organization_id=str(organization_id),
            duration_ms=round((time.perf_counter() - started) * 1000, 3),
        )


def count_conflicts(events: int) -> None:
    """Count the events of a request that is refused because of its idempotency key or a dedup id."""
    if events:
        EVENTS.inc(IngestStatus.CONFLICT.value, by=events)


def count_events(results: Sequence[Ingested], invalid: int = 0) -> None:
    """Count the events of a request.  invalid: how many of a batch weren't valid."""
    if len(results) == 1:  # nearly always
        EVENTS.inc(results[0].status.value)
    else:
        for status, number in Counts(result.status for result in results).items():
            EVENTS.inc(status.value, by=number)
    if invalid:
        EVENTS.inc(INVALID, by=invalid)


def log_result(organization_id: uuid.UUID, event: NewEvent, result: Ingested, started: float) -> None:
    """Log the result of an event."""
    log.info(
        "event_ingested",
        outcome=_LOGGED[result.status],
        event_id=result.event_id,
        type=event.type,
        organization_id=organization_id,
        duration_ms=round((time.perf_counter() - started) * 1000, 3),
    )
