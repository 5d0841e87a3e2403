"""A run: load from the beginning to the end, a round for each fault or pair, then the report."""

from __future__ import annotations

import dataclasses
import http.client
import json
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from devstack.http_receiver import Receiver
from devstack.stack import Stack
from devstack.waiting import wait_until
from soak.checks import Report, check, check_consumed
from soak.clock import Clock
from soak.consumers import INBOX, Consumers
from soak.endpoints import Endpoints, Kind, token_of
from soak.faults import Fault, Missed, Row
from soak.producers import Ledger, Producer

ORGANIZATIONS = ("first", "second")
CONSUMING = "first"  # the organization with an inbox
RECOVERY_SECONDS = 90.0
DRAIN_SECONDS = 180.0


@dataclass
class Round:
    """What a round did.  recovered: seconds from the strike until what was sent afterwards had arrived."""

    number: int
    faults: list[str]
    in_flight: int = 0
    accepted: int = 0
    recovered: float = 0.0


@dataclass
class Outcome:
    """A whole run."""

    seed: int
    rounds: list[Round] = field(default_factory=list)
    report: Report = field(default_factory=Report)
    responses: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """Return what .local/soak.json holds."""
        return {
            "seed": self.seed,
            "rounds": len(self.rounds),
            **dataclasses.asdict(self.report),
            "responses": self.responses,
            "seconds": round(self.seconds, 1),
            "table": [dataclasses.asdict(one) for one in self.rounds],
        }


class Soak:
    """One run on a stack that is started and empty.  quiet: shortest and longest wait before a round, in seconds."""

    def __init__(self, stack: Stack, seed: int, tell: Callable[[str], None], quiet: tuple[float, float]) -> None:
        self._stack = stack
        self._seed = seed
        self._tell = tell
        self._quiet = quiet
        self._chance = random.Random(f"{seed} run")
        self._receiver = Receiver(Endpoints(seed))
        self._secrets: dict[str, str] = {}
        self._ledger = Ledger()
        self._producers: list[Producer] = []
        self._paths: dict[str, str] = {}
        self._organizations: dict[str, list[str]] = {}
        self._keys: dict[str, str] = {}
        self._in_flight: set[Row] = set()
        self._violations: list[str] = []
        self._used: list[Fault] = []
        self._consumers: Consumers | None = None

    def run(self, planned: Sequence[tuple[type[Fault], ...]]) -> Outcome:
        """Do the planned rounds under load and check what is there when the load has drained."""
        started = time.monotonic()
        outcome = Outcome(self._seed)
        self._receiver.start()
        try:
            self._consumers = self._start_system()
            for producer in self._producers:
                producer.start()
            for number, kinds in enumerate(planned, start=1):
                outcome.rounds.append(self._round(number, kinds))
            for producer in self._producers:
                producer.stop()
            for producer in self._producers:
                producer.join()
            for producer in self._producers:
                producer.repeat()
            self._drain()
            for fault in self._used:
                self._violations += fault.clear_up()
            outcome.report = check(
                self._stack, self._ledger, self._receiver.requests, self._secrets, self._paths, self._organizations,
                self._in_flight,
            )  # fmt: skip
            check_consumed(outcome.report, self._ledger, self._consumers.read(), CONSUMING)
            outcome.report.violations += self._violations
        finally:
            for producer in self._producers:
                producer.stop()
            if self._consumers is not None:
                self._consumers.stop()
            self._stack.stop_processes()
            self._receiver.stop()
        outcome.responses = dict(sorted(self._ledger.responses.items()))
        outcome.seconds = time.monotonic() - started
        return outcome

    # --- parts ----------------------------------------------------------------------------------------

    def _start_system(self) -> Consumers:
        """Start web, workers, producers' subscriptions, and the consumers of the first organization's inbox."""
        keys: dict[str, list[str]] = {}
        for name in ORGANIZATIONS:
            organization = self._stack.make_organization(name)
            keys[name] = [self._stack.make_key(organization), self._stack.make_key(organization)]
            self._keys[name] = keys[name][0]
        self._stack.start_web()
        for name in ORGANIZATIONS:
            self._organizations[name] = []
            for kind in Kind:
                path = f"/{name}/{kind}"
                made = self._call("POST", "/api/subscriptions", self._keys[name], self._subscription(path))
                self._paths[path] = made["id"]
                self._secrets[path] = made["secret"]
                self._organizations[name].append(path)
        self._stack.start_workers(Clock(self._stack.home).environment(), {})
        for name in ORGANIZATIONS:
            for number, key in enumerate(keys[name]):
                for batch in (False, True):
                    label = f"{name}-{number}-{'batch' if batch else 'single'}"
                    port = self._stack.port
                    self._producers.append(Producer(label, port, name, key, self._seed, self._ledger, batch=batch))
        key = self._keys[CONSUMING]
        self._call("POST", "/api/subscriptions", key, {"kind": "inbox", "inbox": INBOX, "event_types": ["*"]})
        consumers = Consumers(self._stack.home, self._stack.port, key, self._seed)
        consumers.start()
        return consumers

    def _subscription(self, path: str) -> dict[str, object]:
        return {"url": self._receiver.url(path), "event_types": ["*"]}

    def _call(self, method: str, path: str, key: str, body: object) -> dict[str, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self._stack.port, timeout=30)
        try:
            connection.request(method, path, json.dumps(body), {"X-API-Key": key, "Content-Type": "application/json"})
            response = connection.getresponse()
            text = response.read()
        finally:
            connection.close()
        if response.status >= 300:
            raise RuntimeError(f"{method} {path} returned {response.status}: {text[:300]!r}")
        document: dict[str, Any] = json.loads(text)
        return document

    def _round(self, number: int, kinds: tuple[type[Fault], ...]) -> Round:
        time.sleep(self._chance.uniform(*self._quiet))
        this = Round(number, [kind.name for kind in kinds])
        before = self._ledger.accepted
        chances = [random.Random(f"{self._seed} {number} {position}") for position, _ in enumerate(kinds)]
        assert self._consumers is not None
        faults = [
            kind(self._stack, self._receiver, self._consumers, chance)
            for kind, chance in zip(kinds, chances, strict=True)
        ]
        ready: list[Fault] = []
        struck_at = time.monotonic()
        try:
            for fault in sorted(faults, key=lambda fault: fault.is_brief):
                fault.prepare()
                ready.append(fault)
                self._used.append(fault)
            struck_at = time.monotonic()
            for fault in sorted(faults, key=lambda fault: fault.stops_database):
                fault.strike()
        except Missed as missed:
            self._violations.append(f"round {number}: could not do “{missed}”")
        finally:
            _all_at_once([fault.mend for fault in ready])
        found = {row for fault in faults for row in fault.in_flight}
        self._in_flight |= found
        this.in_flight = len(found)
        self._wait_for_recovery(number)
        this.recovered = round(time.monotonic() - struck_at, 1)
        this.accepted = self._ledger.accepted - before
        self._tell(
            f"{number:>3}  {' + '.join(this.faults):<75} {this.in_flight:>9} {this.accepted:>9} {this.recovered:>9.1f}"
        )
        return this

    def _wait_for_recovery(self, number: int) -> None:
        """Wait until every organization gets a new event accepted and delivered, and no lease is overdue."""
        known = set(self._ledger.offered)

        def arrived() -> bool:
            new = {
                name
                for request in self._receiver.requests[-5000:]
                if request.status == 200 and token_of(request) not in known
                for name in ORGANIZATIONS
                if request.path == f"/{name}/{Kind.STEADY}"
            }
            return len(new) == len(ORGANIZATIONS)

        def no_lease_is_over() -> bool:
            return not self._stack.sql(
                "SELECT 1 FROM webhooks_delivery WHERE status = 'delivering'"
                " AND (lease_expires_at < clock_timestamp() - interval '3 s'"
                "      OR (subscription_id, event_id) IN (SELECT * FROM unnest(%s::uuid[], %s::uuid[])))"
                " LIMIT 1",
                ([row[0] for row in self._in_flight], [row[1] for row in self._in_flight]),
            )

        try:
            wait_until(arrived, f"round {number}: nothing was accepted and delivered again", RECOVERY_SECONDS, 0.1)
            wait_until(
                no_lease_is_over, f"round {number}: leases of the dead weren't taken back", RECOVERY_SECONDS, 0.1
            )
        except TimeoutError as error:
            self._violations.append(str(error))

    def _drain(self) -> None:
        """Wait until nothing is on its way any more."""
        try:
            wait_until(
                lambda: (
                    not self._stack.sql(
                        "SELECT 1 FROM events_event WHERE status = 'accepted' UNION ALL"
                        " SELECT 1 FROM webhooks_delivery WHERE status IN ('pending', 'delivering') LIMIT 1"
                    )
                ),
                "the load didn't drain",
                DRAIN_SECONDS,
                0.2,
            )
        except TimeoutError as error:
            self._violations.append(str(error))


def _all_at_once(steps: Sequence[Callable[[], None]]) -> None:
    """Run the steps side by side, wait for all, and raise what the first failing one raised."""
    errors: list[BaseException] = []

    def guarded(step: Callable[[], None]) -> None:
        try:
            step()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(step,)) for step in steps]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
