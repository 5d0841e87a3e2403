"""Redis comes later, moves to another server, or can't be used at all: workers and web go on, or say why not."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from devstack.http_receiver import Receiver
from devstack.processes import ROOT
from devstack.sentinel import Server, Watched
from devstack.sockets import free_port
from devstack.stack import Stack
from devstack.waiting import wait_until
from tests.system import Account, log_of, wait_until_settled
from tests.webhooks.helpers import raw_server
from triggers_project.start_checks import CLUSTER

pytestmark = pytest.mark.slow


def _healthy(account: Account) -> bool:
    answer = account.call("GET", "/api/health/detailed")
    return answer.status == 200 and answer.document["workers"] == 1


def _lines(stack: Stack, name: str, event: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in log_of(stack, name).splitlines() if line.startswith("{")]
    return [line for line in lines if line["event"] == event]


class Route:
    """A TCP port that leads to a server of our choice, as a name or a virtual address does."""

    def __init__(self, server: Server) -> None:
        self.leads_to = server
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port: int = self._listening.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client = self._listening.accept()[0]
                try:
                    server = socket.create_connection(self.leads_to.address)
                except OSError:
                    client.close()
                    continue
                for source, sink in ((client, server), (server, client)):
                    threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    @staticmethod
    def _pump(source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """Return a Valkey on a port of its own, not started."""
    server = Server(tmp_path, "server")
    yield server
    server.kill()


def test_a_worker_that_starts_without_redis_works_and_uses_it_when_it_is_there(
    stack: Stack, account: Account, server: Server
) -> None:
    env = {"REDIS_URL": server.url()}
    stack.start_web(workers=1, env=env)
    stack.start_workers(env)
    with Receiver() as receiver:
        account.subscribe(receiver.url())
        assert account.post_event(1).status == 202
        receiver.wait_for(1)
        (said,) = _lines(stack, "worker_1", "redis_unavailable")
        assert said["setting"] == "REDIS_URL"
        assert "Connection refused" in said["reason"]

        server.start()
        wait_until(lambda: _healthy(account), "the worker doesn't use Redis", pause=0.2)
        assert account.post_event(2).status == 202
        receiver.wait_for(2)
        wait_until(lambda: server.client().llen("rq:queue:events") == 0, "no worker takes wake-ups")
    assert len(_lines(stack, "worker_1", "redis_unavailable")) == 1
    assert len(_lines(stack, "worker_1", "worker_reconnecting")) <= 1
    assert stack.workers[0].restarts == 0
    assert "Traceback" not in log_of(stack, "worker_1")


@pytest.fixture
def untrusted() -> Iterator[int]:
    """Return a TLS port whose certificate nobody here trusts."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    with raw_server(lambda stream: None, context) as port:
        yield port


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("rediss://127.0.0.1:{tls}/0", "certificate verify failed"),
        ("redis://:hunter2@127.0.0.1:{port}/0", "invalid username-password pair"),
        ("redis://no-such-host.invalid/0", "no-such-host.invalid"),
    ],
    ids=["certificate", "password", "host"],
)
def test_a_worker_that_can_t_use_redis_works_and_says_why_once(
    stack: Stack, account: Account, server: Server, untrusted: int, url: str, reason: str
) -> None:
    server.start().client().config_set("requirepass", "right")
    env = {"REDIS_URL": url.format(tls=untrusted, port=server.port)}
    stack.start_web(workers=1, env=env)
    stack.start_workers(env)
    with Receiver() as receiver:
        account.subscribe(receiver.url())
        for number in range(3):
            assert account.post_event(number).status == 202
            receiver.wait_for(number + 1)
    (said,) = _lines(stack, "worker_1", "redis_unavailable")
    assert said["setting"] == "REDIS_URL"
    assert reason in said["reason"]
    assert stack.workers[0].restarts == 0
    assert "hunter2" not in log_of(stack, "worker_1") + log_of(stack, "web")
    assert "Traceback" not in log_of(stack, "worker_1")


def test_an_old_primary_that_stays_up_as_a_replica_is_left_at_once(
    stack: Stack, account: Account, tmp_path: Path
) -> None:
    old, new = Server(tmp_path, "old").start(), Server(tmp_path, "new").start()
    route = Route(old)
    try:
        env = {"REDIS_URL": f"redis://127.0.0.1:{route.port}/0"}
        # With one thread, so that no other thread's new connection hides one that stays.
        stack.start_web(workers=1, env={**env, "WEB_THREADS": "1"})
        stack.start_workers(env)
        with Receiver() as receiver:
            account.subscribe(receiver.url())
            wait_until(lambda: _healthy(account), "not healthy before", pause=0.2)
            assert account.post_event(1).status == 202
            receiver.wait_for(1)

            route.leads_to = new
            old.client().replicaof(*new.address)
            assert account.post_event(2).status == 202
            receiver.wait_for(2)
            wait_until(lambda: new.client().scard("rq:workers") == 1, "the worker stays with the replica", pause=0.2)
            wait_until(lambda: _healthy(account), "the web process stays with the replica", pause=0.2)
            assert account.post_event(3).status == 202
            receiver.wait_for(3)
            wait_until(lambda: new.client().keys("triggers:rate:*"), "rates aren't counted there")
            wait_until(lambda: new.client().llen("rq:queue:events") == 0, "no worker takes wake-ups")
        assert "Traceback" not in log_of(stack, "worker_1") + log_of(stack, "web")
    finally:
        route.close()
        for server in (old, new):
            server.kill()


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    """Return two servers and three sentinels, running."""
    watched = Watched(tmp_path)
    try:
        yield watched.start()
    finally:
        watched.stop()


def test_sentinel_leads_everybody_to_the_primary_through_one_failover_and_another(
    stack: Stack, account: Account, watched: Watched
) -> None:
    stack.start_web(workers=1, env=watched.env)
    stack.start_workers(watched.env)
    with Receiver() as receiver:
        account.subscribe(receiver.url())

        def works_through(server: Server) -> None:
            wait_until(lambda: server.client().scard("rq:workers") == 1, f"no worker at {server.name}", pause=0.2)
            wait_until(lambda: _healthy(account), f"not healthy with {server.name}", pause=0.2)
            count = receiver.count
            assert account.post_event(count).status == 202
            receiver.wait_for(count + 1)
            wait_until(lambda: server.client().keys("triggers:rate:*"), f"rates aren't counted at {server.name}")
            wait_until(lambda: server.client().llen("rq:queue:events") == 0, f"no wake-ups through {server.name}")

        first, second = watched.servers
        works_through(first)
        watched.fail_over()  # the old primary stays up
        wait_until(lambda: watched.primary() is second, "the sentinels changed nothing")
        works_through(second)
        wait_until(lambda: first.client().info("replication")["role"] == "slave", "the old primary is no replica")
        second.kill()
        assert account.post_event(-1).status == 202  # before anybody has noticed
        wait_until(lambda: watched.primary() is first, "the sentinels didn't notice")
        works_through(first)
        wait_until_settled(stack)
    assert stack.workers[0].restarts == 0
    assert "Traceback" not in log_of(stack, "worker_1") + log_of(stack, "web")


@pytest.mark.parametrize("make", ["make_web", "make_worker"])
def test_a_redis_cluster_is_refused_in_one_line(stack: Stack, tmp_path: Path, make: str) -> None:
    # Its second port would be 10,000 above the first, where a client of anybody's may have its own.
    cluster = Server(tmp_path, "cluster", "--cluster-enabled", "yes", "--cluster-port", str(free_port())).start()
    try:
        process = stack.make_web() if make == "make_web" else stack.make_worker(1)
        ended = subprocess.run(
            process.command,
            cwd=ROOT,
            env={**process.env, "REDIS_URL": cluster.url()},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (ended.returncode, ended.stderr.splitlines()) == (1, [CLUSTER])
    finally:
        cluster.kill()
