"""The spans of a request that brings events."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

from core import tracing
from core.db import after_transaction
from events.origin import Origin


def traced(
    origin: Origin,
    route: str,
    organization_id: uuid.UUID,
    events: Sequence[object],
    started: float,
    is_replay: Callable[[], bool] = lambda: False,
) -> AbstractContextManager[Origin]:
    """Return a context with the origin that the events are stored with: if traces are on, one that continues with this
    request's span.

    started: `time.perf_counter()` when the request came.  is_replay: asked at the end whether a kept response was given
    again.  That stored nothing, so it has no span, and neither has an attempt that a deadlock rolled back.
    """
    if not tracing.is_on():
        return nullcontext(origin)
    return _traced(origin, route, organization_id, events, started, is_replay)


@contextmanager
def _traced(
    origin: Origin,
    route: str,
    organization_id: uuid.UUID,
    events: Sequence[object],
    started: float,
    is_replay: Callable[[], bool],
) -> Iterator[Origin]:
    attributes: dict[str, Any] = {
        "http.request.method": "POST",
        "http.route": route,
        "triggers.organization_id": str(organization_id),
        "triggers.events": len(events),
    }
    span = tracing.start_span(f"POST {route}", origin.trace, "SERVER", attributes, time.perf_counter() - started)
    try:
        yield Origin(origin.request_id, tracing.stored(span, origin.trace))
    except Exception as error:
        after_transaction(partial(tracing.end_span, span, type(error).__name__), even_if_it_fails=True)
        raise
    if not is_replay():
        after_transaction(partial(tracing.end_span, span))
