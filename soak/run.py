"""A run: load from the beginning to the end, a round for each fault or pair, then the report."""

from __future__ import annotations

import dataclasses
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from devstack.stack import Stack
from devstack.waiting import wait_until
from soak.checks import Report
from soak.clock import Clock
from soak.faults import Fault, Missed, Row
from soak.load import Load

RECOVERY_SECONDS = 90.0


@dataclass
class Round:
    """What a round did.  recovered: seconds from the strike until what was sent afterward had arrived."""

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
    """One run on a stack that is started and empty.

    quiet: shortest and longest wait before a round, in seconds.  pace: how much is posted, as `Load` says.
    """

    def __init__(
        self, stack: Stack, seed: int, tell: Callable[[str], None], quiet: tuple[float, float], pace: float = 1.0
    ) -> None:
        self._stack = stack
        self._seed = seed
        self._tell = tell
        self._quiet = quiet
        self._chance = random.Random(f"{seed} run")
        self._load = Load(stack, seed, [stack.port], pace)
        self._in_flight: set[Row] = set()
        self._violations: list[str] = []
        self._used: list[Fault] = []

    def run(self, planned: Sequence[tuple[type[Fault], ...]]) -> Outcome:
        """Do the planned rounds under load and check what is there when the load has drained."""
        started = time.monotonic()
        outcome = Outcome(self._seed)
        try:
            self._stack.start_web()
            self._load.set_up()
            self._stack.start_workers(Clock(self._stack.home).environment(), {})
            self._load.start()
            for number, kinds in enumerate(planned, start=1):
                outcome.rounds.append(self._round(number, kinds))
            self._load.stop_producers()
            for producer in self._load.producers:
                producer.repeat()
            self._drain()
            for fault in self._used:
                self._violations += fault.clear_up()
            outcome.report = self._load.check(self._in_flight)
            outcome.report.violations += self._violations
        finally:
            self._load.end()
            self._stack.stop_processes()
        outcome.responses = dict(sorted(self._load.ledger.responses.items()))
        outcome.seconds = time.monotonic() - started
        return outcome

    # --- parts ----------------------------------------------------------------------------------------

    def _round(self, number: int, kinds: tuple[type[Fault], ...]) -> Round:
        time.sleep(self._chance.uniform(*self._quiet))
        this = Round(number, [kind.name for kind in kinds])
        before = self._load.ledger.accepted
        chances = [random.Random(f"{self._seed} {number} {position}") for position, _ in enumerate(kinds)]
        faults = [
            kind(self._stack, self._load.receiver, self._load.consumers, chance)
            for kind, chance in zip(kinds, chances, strict=True)
        ]
        ready: list[Fault] = []
        struck_at = time.monotonic()
        try:
            for fault in sorted(faults, key=lambda fault: (fault.is_brief, not fault.needs_traffic)):
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
        this.accepted = self._load.ledger.accepted - before
        self._tell(
            f"{number:>3}  {' + '.join(this.faults):<75} {this.in_flight:>9} {this.accepted:>9} {this.recovered:>9.1f}"
        )
        return this

    def _wait_for_recovery(self, number: int) -> None:
        """Wait until every organization gets a new event accepted and delivered, and no lease is overdue."""
        known = set(self._load.ledger.offered)

        def no_lease_is_over() -> bool:
            return not self._stack.sql(
                "SELECT 1 FROM webhooks_delivery WHERE status = 'delivering'"
                " AND (lease_expires_at < clock_timestamp() - interval '3 s'"
                "      OR (subscription_id, event_id) IN (SELECT * FROM unnest(%s::uuid[], %s::uuid[])))"
                " LIMIT 1",
                ([row[0] for row in self._in_flight], [row[1] for row in self._in_flight]),
            )

        try:
            wait_until(
                lambda: self._load.has_arrived_since(known),
                f"round {number}: nothing was accepted and delivered again",
                RECOVERY_SECONDS,
                0.1,
            )
            wait_until(
                no_lease_is_over, f"round {number}: leases of the dead weren't taken back", RECOVERY_SECONDS, 0.1
            )
        except TimeoutError as error:
            self._violations.append(str(error))

    def _drain(self) -> None:
        """Wait until nothing is on its way any more."""
        try:
            self._load.drain()
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
