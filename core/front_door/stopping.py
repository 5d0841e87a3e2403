"""Whether this web process is about to stop, so that requests that wait can end."""

from __future__ import annotations

import asyncio


class Stopping:
    """Set when the server begins to stop.  For one event loop."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def begin(self) -> None:
        """Let every waiting request end."""
        self._event.set()

    @property
    def has_begun(self) -> bool:
        """Return whether the server stops."""
        return self._event.is_set()

    async def wait(self) -> None:
        """Wait until the server begins to stop."""
        await self._event.wait()


stopping = Stopping()
