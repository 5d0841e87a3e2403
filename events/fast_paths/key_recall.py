"""Saves a POST the look-up of its key, one of two round trips to the database; `make bench SCENARIO=single`.

For some seconds after a look-up, a process recalls whose key it was, and the statement that stores the event checks
that this is still so.  Nothing is refused on the word of a memory: before a request is, and when the statement stored
nothing, the key is looked up again and the request starts over if anything about it has changed.

To remove it: delete this package, its test, and the base class KeyRecallView, whose `ingest` is `events.ingest.ingest`.
"""

from __future__ import annotations

import threading
import time
from typing import Any

from cachetools import TTLCache
from django.http import HttpResponseBase
from rest_framework.authentication import BaseAuthentication
from rest_framework.request import Request
from rest_framework.views import APIView

from core.problems import Problem
from events import ingest
from events.ingest import Ingested, IngestStatus
from events.payload import NewEvent
from orgs import keys
from orgs.authentication import ApiKeyAuthentication, caller_of, presented_key
from orgs.keys import Caller
from orgs.known_keys import digest
from orgs.models import Scope

MOST_CALLERS = 10_000
# After this the database is asked again, which also keeps the key's `last_used_at` current.
RECALL_SECONDS = 10.0

# True while the key still has the scope, and its organization the rate limit, that were recalled.
_KEY_HOLDS = f"""WHERE EXISTS (
    SELECT 1 FROM orgs_apikey k JOIN orgs_organization o ON o.id = k.organization_id
    WHERE k.id = %(key_id)s AND {keys.USABLE} AND %(scope)s = ANY (k.scopes)
      AND o.events_per_minute = %(events_per_minute)s
)"""  # noqa: S608 - a constant of ours


class RecalledCallers:
    """The callers that were looked up in the last RECALL_SECONDS, by the hash of their key."""

    def __init__(self, seconds: float = RECALL_SECONDS) -> None:
        self._lock = threading.Lock()
        self._callers: TTLCache[bytes, Caller] = TTLCache(MOST_CALLERS, seconds, timer=time.monotonic)

    def add(self, key: str, caller: Caller) -> None:
        """Remember whose the key is."""
        with self._lock:
            self._callers[digest(key)] = caller

    def get(self, key: str) -> Caller | None:
        """Return whose the key was, if this process looked it up a moment ago."""
        with self._lock:
            return self._callers.get(digest(key))

    def reset(self) -> None:
        """Forget every caller."""
        with self._lock:
            self._callers.clear()


recalled_callers = RecalledCallers()

_RECALLED = object()  # `request.auth` of a caller that was recalled, not looked up


class RecallingAuthentication(ApiKeyAuthentication):
    """Recalls a caller that may send events instead of looking up the key."""

    def authenticate(self, request: Request) -> tuple[Caller, object]:
        key = presented_key(request)
        recalled = recalled_callers.get(key)
        if recalled is not None and Scope.EVENTS_WRITE.value in recalled.scopes:
            return recalled, _RECALLED
        caller, auth = super().authenticate(request)
        recalled_callers.add(key, caller)
        return caller, auth


class KeyRecallView(APIView):
    """A view whose POST may recall its caller, and stores events through `ingest`."""

    def get_authenticators(self) -> list[BaseAuthentication]:
        is_described = getattr(self, "swagger_fake_view", False)  # set while drf-spectacular generates the schema
        if self.request is not None and self.request.method == "POST" and not is_described:
            return [RecallingAuthentication()]
        return super().get_authenticators()

    def handle_exception(self, exc: Exception) -> Any:
        """Repeat a request that was refused, if it was refused for what its key was a moment ago."""
        if isinstance(exc, Problem):
            try:
                if self._look_up_again(self.request):
                    return self._repeat(self.request)
            except Exception as error:
                exc = error
        return super().handle_exception(exc)

    def ingest(self, request: Request, event: NewEvent) -> Ingested:
        """Store `event` for the caller, as `events.ingest.ingest` does.

        Raises Problem 401, 403 or 429 when a recalled caller may no longer send events.
        """
        if request.auth is _RECALLED:
            caller = caller_of(request)
            condition_parameters = {
                "key_id": caller.key_id,
                "scope": Scope.EVENTS_WRITE.value,
                "events_per_minute": caller.events_per_minute,
            }
            event_id = ingest.insert_event(caller.organization_id, event, _KEY_HOLDS, condition_parameters)
            if event_id is not None:
                return Ingested(IngestStatus.ACCEPTED, event_id)
            self._look_up_again(request)
        return ingest.ingest(caller_of(request).organization_id, event)

    def _look_up_again(self, request: Request) -> bool:
        """Look up the key of a recalled caller, and return whether anything about it has changed.

        Raises Problem 401, 403 or 429 when it may no longer do what is requested.  Does nothing for a caller that was
        looked up.
        """
        if request.auth is not _RECALLED:
            return False
        recalled = caller_of(request)
        caller, request.auth = ApiKeyAuthentication().authenticate(request)
        request.user = caller  # type: ignore[assignment]
        recalled_callers.add(presented_key(request), caller)
        self.check_permissions(request)
        return caller != recalled

    def _repeat(self, request: Request) -> HttpResponseBase:
        response: HttpResponseBase = getattr(self, (request.method or "").lower())(request)
        return response
