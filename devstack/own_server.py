"""What our own PostgreSQL and Valkey have in common: whether they live, and how they ended."""

from __future__ import annotations

import abc
import subprocess


class OwnServer(abc.ABC):
    """A server that this process may have started, or another one, for the same home."""

    _process: subprocess.Popen[bytes] | None = None

    @property
    @abc.abstractmethod
    def pid(self) -> int | None:
        """Return the server's process id while it lives."""

    @property
    def alive(self) -> bool:
        """Return whether the server lives."""
        return self.pid is not None if self._process is None else self._process.poll() is None

    @property
    def returncode(self) -> int | None:
        """Return the server's exit code, if it has ended and this process had started it."""
        return None if self._process is None else self._process.poll()
