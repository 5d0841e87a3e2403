"""A PgBouncer in transaction mode, in front of a PostgreSQL of ours; for tests and the soak.

There is no wheel of it.  The program is the installed one; without it, where apt-get exists, Debian's package is
unpacked under the folder `download`, for which nobody needs to be root.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import psycopg

from devstack.errors import DevstackError, last_line
from devstack.locks import locked
from devstack.postgres import DATABASE
from devstack.processes import ROOT, Process
from devstack.sockets import free_port

DOWNLOADS = ROOT / ".local" / "packages"
DOWNLOAD_SECONDS = 120.0
START_SECONDS = 20.0
ADMIN = "pgbouncer"  # the name of its own user and database, which show its state

_SETTINGS = {
    "listen_addr": "127.0.0.1",
    "unix_socket_dir": "",
    "auth_type": "trust",
    "pool_mode": "transaction",
    "max_client_conn": "500",
    "default_pool_size": "3",
    "server_login_retry": "1",
    "query_wait_timeout": "10",
    "stats_users": ADMIN,
    "admin_users": ADMIN,
}


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=DOWNLOAD_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DevstackError(f"PgBouncer could not be fetched: {error}") from None
    if done.returncode:
        raise DevstackError(f"PgBouncer could not be fetched: {last_line(done.stderr)}")


def fetch(into: Path = DOWNLOADS) -> Path:
    """Return the folder that Debian's package of PgBouncer and the libraries it lacks here are unpacked in.

    apt-get gets folders of its own, so that it needs no rights and changes nothing.  Raises DevstackError.
    """
    unpacked = into / "pgbouncer"
    into.mkdir(parents=True, exist_ok=True)
    with locked(into / "pgbouncer.lock"):
        if unpacked.exists():
            return unpacked
        if shutil.which("apt-get") is None:
            raise DevstackError("PgBouncer is not installed, and there is no apt-get to fetch it with.")
        state, cache, unfinished = into / "apt-state", into / "apt-cache", into / "pgbouncer.new"
        for folder in (state / "lists" / "partial", cache / "archives" / "partial"):
            folder.mkdir(parents=True, exist_ok=True)
        apt = ["apt-get", "-q", "-y"]
        for option in (
            f"Dir::State={state}",
            f"Dir::Cache={cache}",
            "Dir::State::status=/var/lib/dpkg/status",
            "Debug::NoLocking=true",
            "APT::Sandbox::User=root",
            "Acquire::Retries=1",
        ):
            apt += ["-o", option]
        _run([*apt, "update"])
        _run([*apt, "install", "--download-only", "--no-install-recommends", "pgbouncer"])
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        for package in (cache / "archives").glob("*.deb"):
            _run(["dpkg-deb", "-x", str(package), str(unfinished)])
        unfinished.rename(unpacked)
        for folder in (state, cache):
            shutil.rmtree(folder, ignore_errors=True)
    return unpacked


def find() -> tuple[str, dict[str, str]]:
    """Return the program and the environment that it needs.  Raises DevstackError with the reason."""
    installed = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin")
    if installed:
        return installed, {}
    unpacked = fetch()
    program = unpacked / "usr" / "sbin" / "pgbouncer"
    if not program.exists():
        raise DevstackError(f"There is no pgbouncer in the package that was unpacked in {unpacked}.")
    libraries = {str(path.parent) for path in unpacked.rglob("*.so.*")}
    return str(program), {"LD_LIBRARY_PATH": ":".join(sorted(libraries))}


class PgBouncer:
    """One PgBouncer on a TCP port.

    server: the DATABASE_URL of the PostgreSQL behind it.  users: who may log in, all without a password.
    settings: more of pgbouncer.ini's, by name.
    """

    def __init__(
        self, home: Path, server: str, users: Iterable[str], settings: Mapping[str, str] | None = None
    ) -> None:
        self.home = home.absolute()
        self.port = free_port()
        self._server = psycopg.conninfo.conninfo_to_dict(server)
        self._users = [*users, ADMIN]
        self._settings = {**_SETTINGS, **(settings or {})}
        self._process: Process | None = None

    @property
    def log(self) -> Path:
        """Return its log file."""
        return self.home / "pgbouncer.log"

    def url(self, user: str, database: str = DATABASE) -> str:
        """Return the DATABASE_URL of one of `users`."""
        return f"postgres://{user}@127.0.0.1:{self.port}/{database}"

    def start(self) -> PgBouncer:
        """Start it; it takes connections when this returns.  Raises DevstackError."""
        program, env = find()
        self.home.mkdir(parents=True, exist_ok=True)
        users = self.home / "users.txt"
        users.write_text("".join(f'"{user}" ""\n' for user in self._users))
        server = f"host={self._server['host']} port={self._server.get('port', 5432)}"
        lines = ["[databases]", f"* = {server}", "[pgbouncer]", f"auth_file = {users}", f"listen_port = {self.port}"]
        if os.geteuid() == 0:  # as whom it refuses to run; our PostgreSQL's socket is this user's
            lines.append("user = nobody")
        lines += [f"{name} = {value}" for name, value in self._settings.items()]
        ini = self.home / "pgbouncer.ini"
        ini.write_text("\n".join(lines) + "\n")
        self._process = Process("pgbouncer", [program, str(ini)], self.log, env).start()
        ends = time.monotonic() + START_SECONDS
        while self._process.alive and time.monotonic() < ends:
            try:
                self.show("VERSION")
            except psycopg.OperationalError:
                time.sleep(0.05)
            else:
                return self
        raise DevstackError(f"PgBouncer did not start ({self.log}): {self._process.last_line()}")

    def show(self, what: str) -> list[dict[str, Any]]:
        """Return what `SHOW what` shows, such as POOLS, SERVERS, or CLIENTS."""
        with psycopg.connect(
            self.url(ADMIN, ADMIN),
            autocommit=True,
            connect_timeout=5,
            cursor_factory=psycopg.ClientCursor,
            row_factory=psycopg.rows.dict_row,
        ) as connection:
            return list(connection.execute(f"SHOW {what}").fetchall())

    def stop(self) -> None:
        """Stop it at once, with its clients' connections."""
        if self._process is not None:
            self._process.kill()
