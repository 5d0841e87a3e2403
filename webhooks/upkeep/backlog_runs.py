"""A thread of the backlog sender's process that advances the runs in the background which a worker leaves to it."""

from __future__ import annotations

from core.db import borrow_connection
from webhooks.dispatch.backlog_thread import BacklogThread
from webhooks.upkeep.background_runs import advance_all

# After this long it looks again which organizations have runs.
SLICE_SECONDS = 1.0


class BacklogRuns(BacklogThread):
    """Advances runs until none has rows left.

    It doesn't give way: rests between the chunks were tried, and made the run slower and others no faster.
    """

    def __init__(self) -> None:
        super().__init__("runs")

    def work(self) -> None:
        """Advance all runs, in turns."""
        while not self._stopping.is_set() and borrow_connection(lambda: advance_all(SLICE_SECONDS)):
            pass
