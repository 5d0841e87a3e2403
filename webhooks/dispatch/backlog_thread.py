"""A thread of the backlog sender's process that works whenever it is woken."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod

import structlog

log = structlog.get_logger()

RETRY_SECONDS = 1.0


class BacklogThread(ABC):
    """Runs `work` on a thread of its own after each `wake`, until `stop`.

    If `work` raises, that is logged, and it runs again a moment later.
    """

    def __init__(self, name: str) -> None:
        self._woken = threading.Event()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    @abstractmethod
    def work(self) -> None:
        """Do what there is to do, and return soon after `_stopping` is set."""

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """Say that there may be something to do."""
        self._woken.set()

    def stop(self) -> None:
        """Finish the transaction that is under way and end the thread."""
        self._stopping.set()
        self._woken.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._woken.wait()
            self._woken.clear()
            if self._stopping.is_set():
                return
            try:
                self.work()
            except Exception as error:
                log.warning("backlog_work_failed", thread=self._thread.name, error=repr(error)[:300])
                self._woken.set()
                self._stopping.wait(RETRY_SECONDS)
