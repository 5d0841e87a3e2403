"""The faults.  Each has three steps: get to the moment, strike, repair what nothing else would.

A kill "in the middle of" something is a real SIGKILL at a moment that is held still from outside: a
table lock stops the process inside its transaction, a standby that doesn't exist stops it between
its commit and the server's response, a receiver that is silent stops it while its requests are on the
wire.  The product has no hooks for any of it.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import signal
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg

from devstack.http_receiver import Receiver
from devstack.stack import Stack
from devstack.waiting import wait_until
from soak.clock import Clock
from soak.consumers import Consumers
from soak.endpoints import PROMPT
from webhooks.dispatch.claim import BACKLOG_SECONDS, LEASE_DELIVERIES
from webhooks.dispatch.hand_over import INSERT_LEASED
from webhooks.dispatch.record import RECORD_ATTEMPTS
from webhooks.routing.insert import INSERT_DELIVERIES

MOMENT_SECONDS = 20.0
# No longer than that is a receiver silent: senders must not give up for it.
HOLD_SECONDS = 0.4
# No longer than that is a worker frozen that goes on afterward: its leases must not end.
FROZEN_SECONDS = 1.0
Row = tuple[str, str]  # the ids of a subscription and of an event


class Missed(Exception):
    """The moment didn't come."""


class Fault:
    """One fault.  in_flight: the deliveries that were claimed when it struck, and may come twice."""

    name = ""
    stops_database = False
    is_brief = False  # its moment doesn't last while another fault gets to its own
    needs_traffic = False  # its moment doesn't come while another fault holds the others up

    def __init__(self, stack: Stack, receiver: Receiver, consumers: Consumers, chance: random.Random) -> None:
        self.stack = stack
        self.receiver = receiver
        self.consumers = consumers
        self.chance = chance
        self.in_flight: set[Row] = set()

    def prepare(self) -> None:
        """Get to the moment.  Raises Missed."""

    def strike(self) -> None:
        """Do it."""
        raise NotImplementedError

    def mend(self) -> None:
        """Bring back what no supervisor brings back."""

    def clear_up(self) -> list[str]:
        """Remove what the fault added, when the load has drained; return what became of it that must not have."""
        return []

    # --- for the faults -----------------------------------------------------------------------------

    def _note_in_flight(self) -> None:
        """Note what is claimed.  The workers are frozen; what they had asked PostgreSQL for comes to its end first."""
        with contextlib.suppress(TimeoutError):
            wait_until(
                lambda: (
                    not self.stack.sql(
                        "SELECT 1 FROM pg_stat_activity WHERE usename LIKE 'worker%' AND state = 'active'"
                        " AND coalesce(wait_event_type, '') <> 'Lock' AND coalesce(wait_event, '') <> 'SyncRep'"
                    )
                ),
                "workers' sessions stay busy",
                1.0,
                pause=0.002,
            )
        self._note()

    def _note(self) -> None:
        """Note what is claimed at this moment."""
        self.in_flight |= {
            (str(subscription), str(event))
            for subscription, event in self.stack.sql(
                "SELECT subscription_id, event_id FROM webhooks_delivery WHERE status = 'delivering'"
            )
        }

    def _kill_frozen(self, *victims: int) -> None:
        """Freeze the processes, note what is in flight, and kill them: nothing moves in between."""
        for pid in victims:
            _send(pid, signal.SIGSTOP)
        try:
            self._note_in_flight()
        finally:
            for pid in victims:
                _send(pid, signal.SIGKILL)

    def _wait(self, condition: Callable[[], Any], seconds: float = MOMENT_SECONDS) -> Any:
        try:
            return wait_until(condition, "the moment didn't come", seconds, pause=0.005)
        except TimeoutError:
            raise Missed(self.name) from None


def _send(pid: int, how: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, how)


# --- workers -----------------------------------------------------------------------------------------


class _KilledInStatement(Fault):
    """A worker killed inside a transaction that a table lock holds still."""

    table = ""
    mode = "EXCLUSIVE"  # reading goes on
    statements: tuple[str, ...] = ()

    def prepare(self) -> None:
        ends = time.monotonic() + MOMENT_SECONDS
        while True:
            self._session = self.stack.connect()
            try:
                self._session.execute("SET lock_timeout = '3s'")
                self._session.execute("BEGIN")
                self._session.execute(f"LOCK TABLE {self.table} IN {self.mode} MODE".encode())
                self._worker = self._wait(self._find_waiting, 2.0)
                return
            except (Missed, psycopg.Error) as error:
                self._session.close()
                if time.monotonic() > ends:
                    raise Missed(self.name) from error

    def _find_waiting(self) -> int:
        """Return the number of a worker that waits in one of the statements, or 0."""
        beginnings = [statement.split("%(")[0] for statement in self.statements]
        found = self.stack.sql(
            "SELECT right(usename, 1)::int FROM pg_stat_activity WHERE usename LIKE 'worker%%'"
            " AND wait_event_type = 'Lock'"
            " AND EXISTS (SELECT FROM unnest(%s::text[]) AS beginning WHERE starts_with(query, beginning))",
            (beginnings,),
        )
        return int(self.chance.choice(found)[0]) if found else 0

    def strike(self) -> None:
        self._kill_frozen(*self.stack.worker_processes(self._worker))

    def mend(self) -> None:
        self._session.close()


class WorkerClaiming(_KilledInStatement):
    """Queues are locked, the deliveries are being marked."""

    name = "worker killed while claiming"
    table = "events_event"
    mode = "ACCESS EXCLUSIVE"  # a claim only reads this table
    statements = (LEASE_DELIVERIES,)


class WorkerRecording(_KilledInStatement):
    """Responses came, their queues are locked, the attempts are being written."""

    name = "worker killed while recording"
    table = "webhooks_deliveryattempt"
    statements = (RECORD_ATTEMPTS,)


class WorkerFanningOut(_KilledInStatement):
    """Events are locked, their deliveries are being inserted."""

    name = "worker killed while fanning out"
    table = "webhooks_delivery"
    # What is handed over is inserted first.  Beyond `created_at`, the other one differs where there are inboxes.
    statements = (INSERT_LEASED, INSERT_DELIVERIES.partition("created_at")[0])


class WorkerSending(Fault):
    """Requests are on the wire and no receiver has responded to them."""

    name = "worker killed while sending"
    is_brief = True

    def prepare(self) -> None:
        ends = time.monotonic() + MOMENT_SECONDS
        while True:
            self.receiver.hold()
            try:
                self._worker = self._wait(self._find_sender, HOLD_SECONDS)
                return
            except Missed:
                self.receiver.release()
                if time.monotonic() > ends:
                    raise
                time.sleep(HOLD_SECONDS)

    def _find_sender(self) -> int:
        """Return the number of a worker with requests on the wire, or 0."""
        numbers = list(range(1, len(self.stack.workers) + 1))
        self.chance.shuffle(numbers)
        ports = {request.port for request in self.receiver.unanswered}
        for number in numbers:
            if len(ports & {port for pid in self.stack.worker_processes(number) for port in _ports_of(pid)}) >= 2:
                return number
        return 0

    def strike(self) -> None:
        try:
            self._kill_frozen(*self.stack.worker_processes(self._worker))
        finally:
            self.receiver.release()

    def mend(self) -> None:
        self.receiver.release()  # also when it didn't come to the strike


def _ports_of(pid: int) -> set[int]:
    """Return the local TCP ports of a process's connections."""
    try:
        sockets = set()
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                sockets.add(os.readlink(entry).removeprefix("socket:[").removesuffix("]"))
        lines = Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]
    except OSError:
        return set()
    fields = [line.split() for line in lines]
    return {int(field[1].split(":")[1], 16) for field in fields if field[9] in sockets}


class WorkerTaking(Fault):
    """The front door has leased deliveries, Redis has told the worker, and it hasn't read them."""

    name = "worker killed with leases it has just taken"
    is_brief = True

    def prepare(self) -> None:
        self._frozen = self.stack.worker_processes(self.chance.randint(1, len(self.stack.workers)))
        ends = time.monotonic() + MOMENT_SECONDS
        while True:
            for pid in self._frozen:
                _send(pid, signal.SIGSTOP)
            try:
                self._wait(self._has_taken, FROZEN_SECONDS)
                return
            except Missed:
                self.mend()
                if time.monotonic() > ends:
                    raise
                time.sleep(FROZEN_SECONDS)  # it wasn't waiting for an event

    def _has_taken(self) -> bool:
        """Return whether a delivery has been leased for so long that the frozen worker must have it.

        No endpoint of that organization is slow.
        """
        return bool(
            self.stack.sql(
                "SELECT 1 FROM webhooks_delivery d JOIN orgs_organization o ON o.id = d.organization_id"
                " WHERE o.name = %s AND d.status = 'delivering' AND d.lease_id = d.event_id"
                " AND d.created_at < clock_timestamp() - interval '0.2 s'",
                (PROMPT,),
            )
        )

    def strike(self) -> None:
        self._kill_frozen(*self._frozen)

    def mend(self) -> None:
        for pid in self._frozen:
            _send(pid, signal.SIGCONT)  # also when it didn't come to the strike


class BacklogSenderKilled(Fault):
    """A worker loses its backlog sender; the worker itself goes on."""

    name = "backlog sender killed"

    def prepare(self) -> None:
        ends = time.monotonic() + MOMENT_SECONDS
        while True:
            try:
                self._victim = self._wait(self._find, HOLD_SECONDS)
                return
            except Missed:
                if time.monotonic() > ends:
                    raise
            self._make_backlog()

    def _make_backlog(self) -> None:
        """Let deliveries wait for so long that their queues have a backlog once there is room again."""
        self.receiver.hold()
        time.sleep(2 * BACKLOG_SECONDS)
        self.receiver.release()

    def _find(self) -> int:
        numbers = range(1, len(self.stack.workers) + 1)
        found = [pid for number in numbers for pid in self.stack.worker_processes(number)[1:]]
        return self.chance.choice(found) if found else 0

    def strike(self) -> None:
        # The others go on: what this one holds is noted at once, before its leases end, and again for a commit
        # that was on its way.
        _send(self._victim, signal.SIGSTOP)
        self._note()
        _send(self._victim, signal.SIGKILL)
        self._note()


class WorkerClockWrong(Fault):
    """The date of a worker's machine jumps by an hour while it runs."""

    name = "worker's date an hour wrong"

    def strike(self) -> None:
        Clock(self.stack.home).set(self.chance.choice(["+1h", "-1h"]))


class _InDoubt(Fault):
    """Processes killed when their commit is on the disk and they haven't been told."""

    roles = ""
    at_least = 1  # sessions that wait for their commit

    def prepare(self) -> None:
        self.stack.sql("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
        self.stack.sql("SELECT pg_reload_conf()")
        try:
            self._role = self._wait(self._find_waiting)
        except Missed:
            self.mend()
            raise

    def _find_waiting(self) -> str:
        """Return the role of a process that waits for its commit, or nothing."""
        found = self.stack.sql(
            "SELECT usename FROM pg_stat_activity WHERE starts_with(usename, %s) AND wait_event = 'SyncRep'",
            (self.roles,),
        )
        return str(self.chance.choice(found)[0]) if len(found) >= self.at_least else ""

    def mend(self) -> None:
        wait_until(self._reset, "PostgreSQL keeps waiting for a standby")

    def _reset(self) -> bool:
        self.stack.sql("ALTER SYSTEM RESET synchronous_standby_names")
        self.stack.sql("SELECT pg_reload_conf()")
        return True


class WorkerInDoubt(_InDoubt):
    """What was sent is recorded, and the worker doesn't know."""

    name = "worker killed with its record in doubt"
    roles = "worker_"

    def strike(self) -> None:
        self._kill_frozen(*self.stack.worker_processes(int(self._role[-1])))


# --- web ---------------------------------------------------------------------------------------------


class WebInDoubt(_InDoubt):
    """Events are committed, and no 202 was sent."""

    name = "gunicorn workers killed with commits in doubt"
    roles = "web"

    def strike(self) -> None:
        for pid in self.stack.web_workers():
            _send(pid, signal.SIGKILL)


class WebWorker(Fault):
    """One of gunicorn's workers, at any moment."""

    name = "gunicorn worker killed"

    def strike(self) -> None:
        found = self.stack.web_workers()
        if not found:
            raise Missed(self.name)
        _send(self.chance.choice(found), signal.SIGKILL)


class WebMaster(Fault):
    """gunicorn's master, at any moment."""

    name = "gunicorn master killed"
    _restarts: int | None = None  # as many as there were when it struck

    def strike(self) -> None:
        assert self.stack.web is not None
        self._restarts = self.stack.web.restarts
        _send(self.stack.web.pid, signal.SIGKILL)

    def mend(self) -> None:
        web, before = self.stack.web, self._restarts
        assert web is not None
        if before is not None:
            wait_until(lambda: web.restarts > before, "gunicorn was not started again")


# --- servers -----------------------------------------------------------------------------------------


class ValkeyKilled(Fault):
    """Valkey is killed and comes back empty after a moment."""

    name = "Valkey killed, back empty"

    def strike(self) -> None:
        self.stack.valkey.kill()

    def mend(self) -> None:
        time.sleep(self.chance.uniform(0.2, 2.5))  # how long it is away is part of the fault
        self.stack.valkey.start()


class ValkeyFlushed(Fault):
    """Valkey forgets everything."""

    name = "FLUSHALL"

    def strike(self) -> None:
        self.stack.redis.flushall()


class ValkeyFailedOver(Fault):
    """Another, empty Valkey becomes the primary; the old one stays up as a replica."""

    name = "Valkey failed over"

    def strike(self) -> None:
        self.stack.fail_valkey_over()


class PostgresStopped(Fault):
    """PostgreSQL stops at once, as in a crash, and comes back after a moment."""

    name = "PostgreSQL stopped immediate"
    stops_database = True

    def strike(self) -> None:
        numbers = range(1, len(self.stack.workers) + 1)
        frozen = [pid for number in numbers for pid in self.stack.worker_processes(number)]
        for pid in frozen:
            _send(pid, signal.SIGSTOP)
        try:
            self._note_in_flight()
            if self.stack.postgres.pid is None:
                raise Missed(self.name)
            # Before the workers go on: what they then asked for could be committed in time and forgotten all the same,
            # after they had acted on it.
            self.stack.postgres.stop("immediate")
        finally:
            for pid in frozen:
                _send(pid, signal.SIGCONT)

    def mend(self) -> None:
        time.sleep(self.chance.uniform(0.0, 1.5))
        self.stack.postgres.start()


# --- consumers ---------------------------------------------------------------------------------------


class ConsumersKilled(Fault):
    """Two of the consumers of an inbox, while they hold what they fetched."""

    name = "two consumers killed with leases"
    needs_traffic = True  # and, stopped, the consumers keep what they hold

    def prepare(self) -> None:
        self._victims = self._wait(lambda: self.consumers.freeze_holders(2))

    def strike(self) -> None:
        self.consumers.kill(self._victims)

    def mend(self) -> None:
        self.consumers.start()


# --- neighbors ---------------------------------------------------------------------------------------


class GreedyNeighbor(Fault):
    """An organization with many subscriptions to one type sends a large batch of it."""

    name = "a greedy neighbor"
    subscriptions = 40
    events = 250

    def prepare(self) -> None:
        self._neighbor = Receiver(keep=False)
        self._neighbor.start()
        self._organization = self.stack.make_organization(f"Greedy {uuid.uuid4()}")
        self._key = self.stack.make_key(self._organization)
        for number in range(self.subscriptions):
            url = self._neighbor.url(f"/{number}")
            self._post("/api/subscriptions", {"url": url, "event_types": ["greedy"], "max_in_flight": 8}, 201)

    def strike(self) -> None:
        batch = [{"type": "greedy", "data": number, "dedup_id": str(number)} for number in range(self.events)]
        self._post("/api/events/batch", batch, 202, 200)

    def _post(self, path: str, body: object, *statuses: int) -> None:
        """Send a request again and again until it gets one of these statuses: web and servers may be away."""

        def has_responded() -> bool:
            connection = http.client.HTTPConnection("127.0.0.1", self.stack.port, timeout=30)
            headers = {"X-API-Key": self._key, "Content-Type": "application/json"}
            try:
                connection.request("POST", path, json.dumps(body), headers)
                return connection.getresponse().status in statuses
            except OSError:
                return False
            finally:
                connection.close()

        self._wait(has_responded)

    def clear_up(self) -> list[str]:
        self._neighbor.stop()
        found = self.stack.sql(
            "SELECT status, count(*) FROM webhooks_delivery WHERE organization_id = %s GROUP BY status",
            (self._organization,),
        )
        for table, column in (
            ("webhooks_deliveryattempt", "delivery_id"), ("webhooks_delivery", "id"), ("events_event", ""),
            ("events_dedupkey", ""), ("webhooks_subscriptionqueue", ""), ("webhooks_subscription", ""),
        ):  # fmt: skip
            whose = f"{column} IN (SELECT id FROM webhooks_delivery WHERE" if column else "("
            self.stack.sql(f"DELETE FROM {table} WHERE {whose} organization_id = %s)", (self._organization,))
        wanted = [("delivered", self.subscriptions * self.events)]
        return [] if found == wanted else [f"of the greedy neighbor's deliveries, {found} and not {wanted}"]


WORKER_FAULTS: tuple[type[Fault], ...] = (
    WorkerClaiming, WorkerSending, WorkerRecording, WorkerFanningOut, WorkerTaking, WorkerInDoubt, WorkerClockWrong,
    BacklogSenderKilled,
)  # fmt: skip
OTHER_FAULTS: tuple[type[Fault], ...] = (
    WebWorker, WebMaster, WebInDoubt, ValkeyKilled, ValkeyFlushed, ValkeyFailedOver, PostgresStopped,
    ConsumersKilled, GreedyNeighbor,
)  # fmt: skip
# Both stop whole transactions from outside, and would wait for each other.
_NOT_TOGETHER = {
    frozenset({first, WebInDoubt}) for first in (WorkerClaiming, WorkerRecording, WorkerFanningOut, WorkerInDoubt)
}


def plan(rounds: int, seed: int) -> list[tuple[type[Fault], ...]]:
    """Return the faults of each round, in an order that `seed` decides.

    Every second round has two at once: one of a worker, one of something else.  Twenty rounds hold
    every fault at least once.
    """
    chance = random.Random(f"{seed} plan")
    every = chance.sample([*WORKER_FAULTS, *OTHER_FAULTS], len(WORKER_FAULTS) + len(OTHER_FAULTS))
    workers = chance.sample(WORKER_FAULTS, len(WORKER_FAULTS))
    planned: list[tuple[type[Fault], ...]] = []
    others: list[type[Fault]] = []
    for number in range(rounds):
        turn = number // 2
        if number % 2 == 0:
            planned.append((every[turn % len(every)],))
            continue
        others = others or chance.sample(OTHER_FAULTS, len(OTHER_FAULTS))
        worker = workers[turn % len(workers)]
        other = next((fault for fault in others if frozenset({worker, fault}) not in _NOT_TOGETHER), PostgresStopped)
        others = [fault for fault in others if fault is not other]
        planned.append((worker, other))
    return planned


def named(text: str) -> tuple[type[Fault], ...]:
    """Return the faults whose class names are joined by `+`.  Raises KeyError."""
    every = {fault.__name__: fault for fault in (*WORKER_FAULTS, *OTHER_FAULTS)}
    return tuple(every[name] for name in text.split("+"))
