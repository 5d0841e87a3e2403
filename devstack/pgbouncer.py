"""A PgBouncer in transaction mode, in front of a PostgreSQL of ours; for tests and the soak.

There is no wheel of it: the program is the machine's, or Debian's, unpacked under .local/.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import psycopg

from devstack import debian
from devstack.errors import DevstackError
from devstack.locks import locked
from devstack.postgres import DATABASE
from devstack.processes import ROOT, Process
from devstack.sockets import free_port

HOME = ROOT / ".local" / "pgbouncer"
HINT = "Install PgBouncer (Debian: apt-get install pgbouncer)."
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


def find() -> tuple[str, dict[str, str]]:
    """Return the program and the environment that it needs, downloaded if necessary.  Raises DevstackError."""
    installed = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin")
    return (installed, {}) if installed else fetch(HOME)


def fetch(home: Path) -> tuple[str, dict[str, str]]:
    """Return the program in `home`, downloaded and unpacked there once, and its environment.  Raises DevstackError."""
    home.mkdir(parents=True, exist_ok=True)
    root = home / "root"
    with locked(home / "lock"):
        if not (home / "complete").exists():
            try:
                debian.unpack(home, ["pgbouncer"])
            except DevstackError as error:
                raise DevstackError(f"No PgBouncer here: {error}. {HINT}") from None
            (home / "complete").touch()
    return str(root / "usr/sbin/pgbouncer"), {"LD_LIBRARY_PATH": ":".join(debian.library_folders(root))}


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
