"""Our own processes, started for real: gunicorn and the RQ worker."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from devstack.errors import DevstackError, last_line_of, reason
from devstack.logfiles import open_log
from devstack.sockets import free_port
from devstack.waiting import wait_until

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Code:
    """A checkout, and the Python that has what it requires."""

    root: Path = ROOT
    python: str = sys.executable


OURS = Code()


class Process:
    """A child process in its own session, with its output in a log file."""

    def __init__(
        self, name: str, command: Sequence[str], log: Path, env: Mapping[str, str] | None = None, cwd: Path = ROOT
    ) -> None:
        self.name = name
        self.cwd = cwd
        self.command = list(command)
        self.log = log
        self.env = {**os.environ, **(env or {})}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """Return the process id.  Raises DevstackError when it wasn't started."""
        if self._process is None:
            raise DevstackError(f"{self.name} was not started.")
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """Return the exit code, or None while the process lives."""
        return None if self._process is None else self._process.poll()

    @property
    def alive(self) -> bool:
        """Return whether the process lives."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> Process:
        with open_log(self.log) as log:
            self._process = subprocess.Popen(
                self.command,
                cwd=self.cwd,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return self

    def wait_for_url(self, url: str, timeout: float = 60.0) -> None:
        """Wait until `url` returns 200.  Raises DevstackError when the process ends or time does."""

        def is_up() -> bool:
            try:
                with urllib.request.urlopen(url, timeout=5) as response:
                    return bool(response.status == 200)
            except OSError:
                return False

        with contextlib.suppress(TimeoutError):
            if wait_until(lambda: is_up() or not self.alive, timeout=timeout) and self.alive:
                return
        raise DevstackError(f"{self.name} did not start ({self.log}): {self.last_line()}")

    def last_line(self) -> str:
        """Return the last line of the log."""
        return last_line_of(self.log)

    def signal(self, how: signal.Signals) -> None:
        """Send a signal, if the process lives."""
        if self.alive:
            os.kill(self.pid, how)

    def stop(self, timeout: float = 45.0) -> int | None:
        """Ask the process to end (SIGTERM); kill it after `timeout` seconds.  Returns its exit code."""
        self.signal(signal.SIGTERM)
        return self.wait(timeout)

    def wait(self, timeout: float = 45.0) -> int | None:
        """Wait for the end; kill the whole session after `timeout` seconds."""
        if self._process is None:
            return None
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            return self._process.returncode

    def kill(self) -> None:
        """Kill the process and everything in its session with SIGKILL."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(30)


def manage(*arguments: str, env: Mapping[str, str] | None = None, timeout: float = 120.0, code: Code = OURS) -> str:
    """Run a management command and return what it printed.  Raises DevstackError when it fails."""
    return run_python("manage.py", *arguments, env=env, timeout=timeout, code=code)


def run_python(*arguments: str, env: Mapping[str, str] | None = None, timeout: float = 120.0, code: Code = OURS) -> str:
    """Run a program of the checkout and return what it printed.  Raises DevstackError when it fails."""
    done = subprocess.run(
        [code.python, *arguments],
        cwd=code.root,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    if done.returncode:
        raise DevstackError(f"{' '.join(arguments[:2])} failed: {reason(done.stderr)}")
    return done.stdout.strip()


def web_command(code: Code = OURS) -> list[str]:
    """Return the command that serves the API."""
    has_front_door = (code.root / "triggers_project" / "asgi.py").exists()  # an older checkout may not
    application = "triggers_project.asgi" if has_front_door else "triggers_project.wsgi"
    return [code.python, "-m", "gunicorn", "-c", "gunicorn.conf.py", application]


def worker_command(code: Code = OURS) -> list[str]:
    """Return the command that runs a worker."""
    return [code.python, "manage.py", "rqworker", "events", "webhooks"]


def web(
    log: Path, port: int | None = None, env: Mapping[str, str] | None = None, workers: int = 2
) -> tuple[Process, str]:
    """Start gunicorn on 127.0.0.1 and return it with its base URL, once it responds."""
    port = port or free_port()
    given = {"BIND": f"127.0.0.1:{port}", "WEB_CONCURRENCY": str(workers), **(env or {})}
    process = Process("gunicorn", web_command(), log, given).start()
    base = f"http://127.0.0.1:{port}"
    process.wait_for_url(f"{base}/api/health")
    return process, base


def worker(log: Path, env: Mapping[str, str] | None = None) -> Process:
    """Start `manage.py rqworker events webhooks`."""
    return Process("worker", worker_command(), log, env).start()
