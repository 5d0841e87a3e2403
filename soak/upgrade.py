"""`make upgrade-check`: upgrade from an earlier commit under load, and check that nothing is lost: FROM=ref.

Two web processes and two workers of the earlier code run on a new database.  Producers post and consumers fetch all
the time while the schema is migrated and the processes are replaced one after the other; some of them go back to the
earlier code once.  A web process gets no new requests while it is replaced, as a load balancer would do it.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from devstack import processes
from devstack.errors import DevstackError
from devstack.processes import OURS, ROOT, Code, Process
from devstack.sockets import free_port
from devstack.stack import Stack, forget_settings_of_the_shell, stop_on_signals
from devstack.versions import check_out, git, new_migrations, previous
from devstack.waiting import wait_until
from soak.__main__ import SETTINGS
from soak.result import conclude, write

if TYPE_CHECKING:
    from soak.checks import Report

SEED = 1
STEP_SECONDS = 4.0
ARRIVAL_SECONDS = 60.0
# More than WORKER_SHUTDOWN_GRACE, and than gunicorn's graceful_timeout.
STOP_SECONDS = 60.0


@dataclass
class Step:
    """What happened while the system was in one state.  delivered: webhooks that were answered with 200."""

    name: str
    seconds: float
    accepted: int
    delivered: int
    responses: dict[str, int]


class Upgrade:
    """One run.  old, new: the two checkouts."""

    def __init__(self, stack: Stack, old: Code, new: Code, seconds: float, tell: Callable[[str], None]) -> None:
        from soak.load import Load  # which knows statements of the product: Django has to be set up

        self._stack = stack
        self._old = old
        self._new = new
        self._seconds = seconds
        self._tell = tell
        self._ports = [stack.port, free_port()]
        self._load = Load(stack, SEED, self._ports)
        self._webs: list[Process] = []
        self._workers: list[Process] = []
        self._violations: list[str] = []
        self.steps: list[Step] = []

    def run(self) -> Report:
        """Upgrade, go back once, and return what the checks found."""
        try:
            self._migrate(self._old)
            self._stack.make_roles()
            self._webs = [self._start_web(number, self._old) for number in (0, 1)]
            self._load.set_up()
            self._workers = [self._start_worker(number, self._old) for number in (0, 1)]
            self._load.start()
            self._step("the old code", lambda: None)
            self._step("the new schema under the old code", lambda: self._migrate(self._new))
            self._step("web 1 is new", lambda: self._replace_web(0, self._new))
            self._step("worker 1 is new", lambda: self._replace_worker(0, self._new))
            self._step("web 2 is new", lambda: self._replace_web(1, self._new))
            self._step("worker 2 is new", lambda: self._replace_worker(1, self._new))
            self._step("web 1 is old again", lambda: self._replace_web(0, self._old))
            self._step("worker 1 is old again", lambda: self._replace_worker(0, self._old))
            self._step("worker 2 is old again", lambda: self._replace_worker(1, self._old))
            self._step("workers are new for good", self._replace_workers)
            self._step("web 1 is new for good", lambda: self._replace_web(0, self._new))
            self._load.stop_producers()
            try:
                self._load.drain()
            except TimeoutError as error:
                self._violations.append(str(error))
            report = self._load.check(set())
        finally:
            self._load.end()
            for process in [*self._webs, *self._workers]:
                process.stop(STOP_SECONDS)
        report.violations += self._violations
        refused = {status: count for status, count in self.responses.items() if status not in {"200", "202"}}
        if refused:
            report.violations.append(f"responses to POST other than 200 and 202: {refused}")
        return report

    @property
    def responses(self) -> dict[str, int]:
        """Return how many requests ended with which status; `none` without a response."""
        return dict(sorted(self._load.ledger.responses.items()))

    # --- parts ----------------------------------------------------------------------------------------

    def _step(self, name: str, change: Callable[[], None]) -> None:
        """Make a change under load, and wait until what was posted afterward has arrived."""
        started, accepted, delivered = time.monotonic(), self._load.ledger.accepted, self._delivered()
        before = self.responses
        change()
        known = set(self._load.ledger.offered)
        time.sleep(self._seconds)  # the load goes on
        try:
            wait_until(
                lambda: self._load.has_arrived_since(known), f"{name}: nothing arrives any more", ARRIVAL_SECONDS, 0.1
            )
        except TimeoutError as error:
            raise DevstackError(f"{error}; responses to POST: {self.responses}") from error
        for process in [*self._webs, *self._workers]:
            if not process.alive:
                raise DevstackError(f"{name}: {process.name} ended by itself ({process.log}): {process.last_line()}")
        step = Step(
            name,
            round(time.monotonic() - started, 1),
            self._load.ledger.accepted - accepted,
            self._delivered() - delivered,
            {status: more for status, count in self.responses.items() if (more := count - before.get(status, 0))},
        )
        self.steps.append(step)
        told = ", ".join(f"{status}: {count}" for status, count in step.responses.items())
        self._tell(f"{name:<35} {step.seconds:>7} {step.accepted:>9} {step.delivered:>10}   {told}")

    def _delivered(self) -> int:
        return sum(request.status == 200 for request in list(self._load.receiver.requests))

    def _migrate(self, code: Code) -> None:
        processes.manage("migrate", "--verbosity", "0", env=self._stack.environment(), code=code)

    def _start_web(self, number: int, code: Code) -> Process:
        port = self._ports[number]
        env = {**self._stack.environment("web"), "BIND": f"127.0.0.1:{port}", "WEB_CONCURRENCY": "1"}
        process = self._make(f"web_{number + 1}", processes.web_command(code), env, code)
        process.wait_for_url(f"http://127.0.0.1:{port}/api/health")
        return process

    def _start_worker(self, number: int, code: Code) -> Process:
        name = f"worker_{number + 1}"
        wait_until(lambda: not self._sessions(name), f"sessions of the {name} before are left")
        process = self._make(name, processes.worker_command(code), self._stack.environment(name), code)
        wait_until(lambda: self._sessions(name) or not process.alive, f"{name} didn't start")
        return process

    def _make(self, name: str, command: list[str], env: dict[str, str], code: Code) -> Process:
        return Process(name, command, self._stack.logs / f"{name}.log", env, code.root).start()

    def _sessions(self, role: str) -> list[Any]:
        return self._stack.sql("SELECT 1 FROM pg_stat_activity WHERE usename = %s", (role,))

    def _replace_web(self, number: int, code: Code) -> None:
        """Replace a web process; meanwhile, the producers use the other one."""
        moved = [producer for producer in self._load.producers if producer.port == self._ports[number]]
        for producer in moved:
            producer.port = self._ports[1 - number]
        self._stop(self._webs[number])
        self._webs[number] = self._start_web(number, code)
        for producer in moved:
            producer.port = self._ports[number]

    def _replace_worker(self, number: int, code: Code) -> None:
        self._stop(self._workers[number])
        self._workers[number] = self._start_worker(number, code)

    def _replace_workers(self) -> None:
        for number, _ in enumerate(self._workers):
            self._replace_worker(number, self._new)

    def _stop(self, process: Process) -> None:
        """Ask a process to end; it has to do so by itself, and without an error."""
        if code := process.stop(STOP_SECONDS):
            self._violations.append(f"{process.name} ended with {code} on SIGTERM ({process.log})")


def main() -> int:
    """Run the upgrade, print its table, write its result; 1 when a promise was broken.

    Check the earlier version out, start the servers with an empty database, run the steps of the upgrade under load,
    stop the servers whatever came of them, and write and print the result.
    """
    parser = argparse.ArgumentParser(prog="python -m soak.upgrade", description="Upgrade under load.")
    parser.add_argument(
        "--from", dest="ref", default="", help="the commit to upgrade from; default: the version before"
    )
    parser.add_argument("--seconds", type=float, default=STEP_SECONDS, help="how long each step lasts at least")
    parser.add_argument("--home", type=Path, default=ROOT / ".local", help="the folder of the servers and the result")
    options = parser.parse_args()
    forget_settings_of_the_shell()
    stop_on_signals()
    stack = Stack(options.home / "upgrade", SETTINGS)
    stack.set_django_up()
    try:
        ref = options.ref or previous()
        old = check_out(ref, options.home / "upgrade" / "code")
        stack.start_servers()
        stack.make_database_again()
        stack.redis.flushall()
        print(
            f"from {ref} ({old.root.name}) to {git('describe', '--always', '--dirty')};"
            f" new migrations: {', '.join(new_migrations(old.root)) or 'none'}\n"
        )
        print(f"{'':<35} {'seconds':>7} {'accepted':>9} {'delivered':>10}   responses")
        upgrade = Upgrade(stack, old, OURS, options.seconds, lambda line: print(line, flush=True))
        report = upgrade.run()
    except DevstackError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except Exception:
        traceback.print_exc()
        return 1
    finally:
        stack.stop_servers()
    result = {
        "from": ref,
        "steps": [dataclasses.asdict(step) for step in upgrade.steps],
        "responses": upgrade.responses,
        **dataclasses.asdict(report),
    }
    path = options.home / "upgrade.json"
    write(result, path)
    print(
        f"\n{report.accepted} events accepted, {report.received} webhooks received, {report.consumed} fetched from the"
        f" inbox, {report.lost} lost, {report.duplicates} received twice; responses to POST: {upgrade.responses}"
    )
    return conclude(report.violations, path)


if __name__ == "__main__":
    sys.exit(main())
