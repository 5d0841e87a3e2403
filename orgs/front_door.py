"""Authentication for the requests that the front door serves."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from core.client_address import client_address, client_network
from core.db import borrow_connection
from core.front_door.http import Request, Response, Stream
from core.problems import Problem
from orgs.authentication import authenticate_key, key_in
from orgs.caller_cache import CallerCache
from orgs.keys import Caller
from orgs.permissions import require_scope
from orgs.scopes import Scope
from orgs.verified_keys import verified_keys

# Threads that look up keys; a key that is in use is looked up once in ten seconds.
LOOKUP_THREADS = 4
# How often a request starts over because its key was changed while it was served.
MOST_CHANGES = 5

R = TypeVar("R", bound=Response | Stream)


class KeyChanged(Exception):
    """What was remembered about the caller has changed: nothing was stored, and the key has to be looked up again."""


def whose(request: Request) -> Hashable:
    """Return the organization whose working key a request has, or else the client's network: who takes turns.

    The key may have been revoked since.  One that this process hasn't seen working doesn't count, because it could be
    any text.
    """
    organization_id = verified_keys.organization_of(_key_of(request))
    return organization_id or client_network(client_address(request))


def _key_of(request: Request) -> str:
    """Return the key that a request has, as `orgs.authentication` finds it; empty when there is none."""
    return key_in(request.header(b"x-api-key"), request.header(b"authorization"))


class Authenticator:
    """Looks up keys in separate threads, and remembers them for some seconds."""

    def __init__(self) -> None:
        self.cache = CallerCache()
        self._executor = ThreadPoolExecutor(LOOKUP_THREADS, thread_name_prefix="keys")

    def requires(
        self, scope: Scope, serve: Callable[[Request, Caller], Awaitable[R]]
    ) -> Callable[[Request], Awaitable[R]]:
        """Return a handler that calls `serve` for callers whose key has the scope.

        serve: may raise KeyChanged.
        """

        async def handle(request: Request) -> R:
            key = _key_of(request)
            caller = self.cache.get(key)
            is_remembered = caller is not None
            if caller is None:
                caller = await self._look_up(request, key)
            for _ in range(MOST_CHANGES):
                try:
                    require_scope(caller, scope)
                    return await serve(request, caller)
                except KeyChanged:
                    caller, is_remembered = await self._look_up(request, key), False
                except Problem:
                    # A remembered caller is refused only if what was remembered still holds.
                    if not is_remembered:
                        raise
                    remembered, is_remembered = caller, False
                    caller = await self._look_up(request, key)
                    if caller == remembered:
                        raise
            raise KeyChanged("the key changes faster than it can be looked up")

        return handle

    async def _look_up(self, request: Request, key: str) -> Caller:
        address = client_address(request)
        caller = await asyncio.get_running_loop().run_in_executor(
            self._executor, lambda: borrow_connection(lambda: authenticate_key(key, address))
        )
        self.cache.add(key, caller)
        return caller
