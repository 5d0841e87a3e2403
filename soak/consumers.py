"""The consumers that share one inbox, and what their journals say: `python -m soak.consumers FOLDER` tells it again."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from devstack.processes import Process
from soak.consumer import ACKED, EXTENDS, FETCHED, NACKS, VISIBILITY_SECONDS

INBOX = "soak"
COUNT = 10


class Consumers:
    """COUNT processes that fetch from the inbox; one that is killed gets a successor.  home: the folder of journals."""

    def __init__(self, home: Path, port: int, key: str, seed: int) -> None:
        self._home = home / "consumers"
        self._home.mkdir(parents=True, exist_ok=True)
        for old in self._home.iterdir():
            old.unlink()
        self._port = port
        self._key = key
        self._seed = seed
        self._made = 0
        self._running: dict[Path, Process] = {}

    def start(self) -> None:
        """Start as many as are missing."""
        while len(self._running) < COUNT:
            self._made += 1
            name = f"consumer_{self._made}"
            journal = self._home / f"{name}.jsonl"
            command = [sys.executable, "-m", "soak.consumer", name, str(self._port), INBOX, str(self._seed)]
            log, env = self._home / f"{name}.log", {"SOAK_KEY": self._key}
            self._running[journal] = Process(name, [*command, str(journal)], log, env).start()

    def freeze_holders(self, wanted: int) -> list[Path]:
        """Stop consumers where they are until `wanted` of them hold leases; return their journals, or none."""
        frozen: list[Path] = []
        for journal, process in self._running.items():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGSTOP)
                steps = list(_steps(journal))
                if len(frozen) < wanted and steps and steps[-1]["step"] == FETCHED:
                    frozen.append(journal)
                else:
                    os.kill(process.pid, signal.SIGCONT)
        if len(frozen) == wanted:
            return frozen
        for journal in frozen:
            os.kill(self._running[journal].pid, signal.SIGCONT)
        return []

    def kill(self, journals: list[Path]) -> None:
        """Kill the consumers that write these journals."""
        for journal in journals:
            self._running.pop(journal).kill()

    def stop(self) -> None:
        """Kill all: what they do at the end of a run is over."""
        self.kill(list(self._running))

    def read(self) -> Consumed:
        """Return what all journals say, those of the dead too."""
        consumed = read_journals(self._home)
        for process in self._running.values():
            if not process.alive:
                consumed.faults.append(f"{process.name} ended by itself: {process.last_line()}")
        return consumed


@dataclass
class _Fetch:
    """An event under one lease.  begins, ends: of the lease, by the database's clock; given_back: it may end sooner."""

    begins: float
    ends: float
    given_back: bool = False


@dataclass
class Consumed:
    """What the consumers did.  faults: what must not have been."""

    tokens: dict[str, str] = field(default_factory=dict)  # by event
    fetches: dict[str, list[_Fetch]] = field(default_factory=lambda: defaultdict(list))
    acknowledged: dict[str, float] = field(default_factory=dict)  # when the consumer knew
    faults: list[str] = field(default_factory=list)

    def add(self, steps: list[dict[str, Any]]) -> None:
        """Take in one journal, in its order."""
        own: dict[str, _Fetch] = {}
        for step in steps:
            if step["step"] == FETCHED:
                ends = datetime.fromisoformat(step["expires"]).timestamp()
                for event in step["ids"]:
                    own[event] = _Fetch(ends - VISIBILITY_SECONDS, ends)
                    self.fetches[event].append(own[event])
                self.tokens.update(step["tokens"])
            elif step["step"] == EXTENDS:
                for event in step["ids"]:
                    own[event].ends = datetime.fromisoformat(step["expires"]).timestamp()
            elif step["step"] == NACKS:
                for event in step["ids"]:
                    own[event].given_back = True
            elif step["step"] == ACKED:
                for event in step["ids"]:
                    self.acknowledged[event] = min(step["at"], self.acknowledged.get(event, step["at"]))
            else:
                self.faults.append(step["step"])

    def fetched_again(self) -> int:
        """Return how many times an event was fetched that had been fetched before."""
        return sum(len(fetches) - 1 for fetches in self.fetches.values())

    def overlapping(self) -> list[str]:
        """Return the events that two consumers held at the same time."""
        found = []
        for event, fetches in self.fetches.items():
            fetches.sort(key=lambda fetch: fetch.begins)
            if any(
                after.begins < before.ends and not before.given_back for before, after in itertools.pairwise(fetches)
            ):
                found.append(event)
        return found

    def fetched_after_their_acknowledgement(self) -> list[str]:
        """Return the events that were fetched once more although a consumer had been told that they are done."""
        return [
            event
            for event, at in self.acknowledged.items()
            if any(fetch.begins > at for fetch in self.fetches.get(event, []))
        ]


def read_journals(folder: Path) -> Consumed:
    """Return what the journals of a folder say."""
    consumed = Consumed()
    for journal in sorted(folder.glob("*.jsonl")):
        consumed.add(list(_steps(journal)))
    return consumed


def _steps(journal: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of a journal; one that a kill cut short can't be, because each is one write."""
    if journal.exists():
        for line in journal.read_text().splitlines():
            yield json.loads(line)


if __name__ == "__main__":
    told = read_journals(Path(sys.argv[1]))
    found = {
        "fetched": len(told.fetches),
        "fetched_again": told.fetched_again(),
        "overlapping": told.overlapping(),
        "fetched_after_their_acknowledgement": told.fetched_after_their_acknowledgement(),
        "faults": told.faults,
    }
    print(json.dumps(found))
