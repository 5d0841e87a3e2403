"""Valkey servers on TCP ports: a primary with a replica, watched by sentinels; for tests and the soak."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from redis import Redis
from redis.exceptions import RedisError

from devstack.binaries import valkey_program
from devstack.errors import DevstackError
from devstack.processes import Process
from devstack.sockets import free_port

START_SECONDS = 20.0
SERVICE = "mymaster"
# How long the primary must be silent before the sentinels look for another.
DOWN_MILLISECONDS = 1000
SENTINEL_PASSWORD = "only-for-sentinels"


class Server:
    """One server.  options: valkey-server's, such as `--replicaof`."""

    _password: str | None = None

    def __init__(self, home: Path, name: str, *options: str) -> None:
        self.port = free_port()
        self.name = name
        self._home = home / name
        self._options = options
        self._process: Process | None = None

    @property
    def address(self) -> tuple[str, int]:
        """Return where it listens."""
        return "127.0.0.1", self.port

    def url(self, credentials: str = "") -> str:
        """Return a REDIS_URL.  credentials: `user:password@`, or nothing."""
        return f"redis://{credentials}127.0.0.1:{self.port}/0"

    def client(self) -> Redis:
        """Return a client of our own."""
        return Redis(
            port=self.port, password=self._password, socket_timeout=5, socket_connect_timeout=5, decode_responses=True
        )

    def start(self) -> Server:
        """Start it; it responds when this returns.  Raises DevstackError."""
        self._home.mkdir(parents=True, exist_ok=True)
        command = [str(valkey_program()), *self._command(), "--port", str(self.port), "--bind", "127.0.0.1"]
        command += ["--dir", str(self._home), "--protected-mode", "no", *self._options]
        self._process = Process(self.name, command, self._home / "server.log").start()
        ends = time.monotonic() + START_SECONDS
        while self._process.alive and time.monotonic() < ends:
            try:
                self.client().ping()
            except RedisError:
                time.sleep(0.02)
            else:
                return self
        raise DevstackError(f"{self.name} did not start: {self._process.last_line()}")

    def _command(self) -> list[str]:
        return ["--save", "", "--appendonly", "no"]

    def kill(self) -> None:
        """Kill it with SIGKILL."""
        if self._process is not None:
            self._process.kill()


class _Sentinel(Server):
    """A sentinel, which keeps what it knows in its configuration file."""

    _password = SENTINEL_PASSWORD

    def __init__(self, home: Path, name: str, primary: Server, quorum: int) -> None:
        super().__init__(home, name, "--sentinel")
        self._watched, self._quorum = primary, quorum

    def _command(self) -> list[str]:
        host, port = self._watched.address
        configuration = self._home / "sentinel.conf"
        configuration.write_text(
            f"sentinel monitor {SERVICE} {host} {port} {self._quorum}\n"
            f"sentinel down-after-milliseconds {SERVICE} {DOWN_MILLISECONDS}\n"
            f"sentinel failover-timeout {SERVICE} 5000\n"
            f"requirepass {SENTINEL_PASSWORD}\n"
            f"sentinel sentinel-pass {SENTINEL_PASSWORD}\n"
        )
        return [str(configuration)]


class Watched:
    """A primary, its replica, and three sentinels, two of which must agree."""

    def __init__(self, home: Path) -> None:
        primary = Server(home, "server-1")
        host, port = primary.address
        self.servers = [primary, Server(home, "server-2", "--replicaof", f"{host} {port}")]
        self.sentinels = [_Sentinel(home, f"sentinel-{number}", primary, 2) for number in (1, 2, 3)]

    @property
    def env(self) -> dict[str, str]:
        """Return the settings of a process that uses it."""
        return {
            "REDIS_URL": f"redis://{SERVICE}/0",
            "REDIS_SENTINELS": ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels),
            "REDIS_SENTINEL_PASSWORD": SENTINEL_PASSWORD,
        }

    def start(self) -> Watched:
        """Start all; the sentinels know each other and the replica when this returns.  Raises DevstackError."""
        for server in [*self.servers, *self.sentinels]:
            server.start()
        ends = time.monotonic() + START_SECONDS
        while not all(self._knows_all(sentinel) for sentinel in self.sentinels):
            if time.monotonic() > ends:
                raise DevstackError("The sentinels did not find each other and the replica.")
            time.sleep(0.05)
        return self

    def _knows_all(self, sentinel: Server) -> bool:
        state: Any = sentinel.client().sentinel_master(SERVICE)
        return int(state["num-other-sentinels"]) == len(self.sentinels) - 1 and int(state["num-slaves"]) == 1

    def primary(self) -> Server:
        """Return the server that the sentinels call the primary."""
        address: Any = self.sentinels[0].client().sentinel_get_master_addr_by_name(SERVICE)
        return next(server for server in self.servers if server.address == tuple(address))

    def fail_over(self) -> None:
        """Have the sentinels make the replica the primary; the old one stays up, as its replica."""
        self.sentinels[0].client().sentinel_failover(SERVICE)

    def stop(self) -> None:
        """Kill all."""
        for server in [*self.sentinels, *self.servers]:
            server.kill()
