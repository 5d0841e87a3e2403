"""Producers as real ones are: they retry blindly what has a dedup id or a key, and can't know about the rest.

When the load has ended, each request with an `Idempotency-Key` is sent once more (`Producer.repeat`): it gets the
response that it got the first time, or, if it got none, is served now unless it was served then.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import threading
from collections import Counter
from dataclasses import dataclass, field

REQUEST_SECONDS = 15.0
# How long a producer goes on trying after it was told to stop.
LAST_TRIES_SECONDS = 60.0


@dataclass(slots=True)
class Offered:
    """An event that was offered.  event_id: what the 202, or the batch's item, called it; None without one."""

    organization: str
    retried: bool
    event_id: str | None = None


@dataclass(slots=True)
class Keyed:
    """A request with an `Idempotency-Key`.  response: the body that it got; None without one."""

    key: str
    events: list[dict[str, object]]
    response: bytes | None = None


@dataclass
class Ledger:
    """What was offered, by the token in its data, and how the requests ended."""

    offered: dict[str, Offered] = field(default_factory=dict)
    responses: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    repeated: int = 0  # requests with a key, at the end
    served_late: int = 0  # those of them that hadn't been served

    @property
    def accepted(self) -> int:
        """Return how many events were promised to be kept."""
        return sum(1 for offered in list(self.offered.values()) if offered.event_id)


class Producer:
    """One thread that posts events with one key, one by one or in batches.  pace: 0.5 posts half as often as 1."""

    def __init__(
        self, name: str, port: int, organization: str, key: str, seed: int, ledger: Ledger, *, batch: bool, pace: float
    ):
        self.name = name
        self.port = port  # may change, if another web process takes over
        self._organization = organization
        self._key = key
        self._random = random.Random(f"{seed} {name}")
        self._ledger = ledger
        self._batch = batch
        self._pace = pace
        self._count = 0
        self._keyed: list[Keyed] = []
        self._stopping = threading.Event()
        self._connection: http.client.HTTPConnection | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin to post."""
        self._thread.start()

    def stop(self) -> None:
        """Begin nothing new."""
        self._stopping.set()

    def join(self) -> None:
        """Wait until what was begun has a response, or won't get one."""
        self._thread.join(LAST_TRIES_SECONDS + REQUEST_SECONDS)
        if self._thread.is_alive():
            self._ledger.faults.append(f"{self.name} hangs")

    def _run(self) -> None:
        while not self._stopping.wait(self._random.expovariate(self._pace * (1 if self._batch else 4))):
            size = self._random.randint(2, 12) if self._batch else 1
            chance = self._random.random()
            with_dedup, with_key = chance < 0.4, chance > 0.6
            # Of those with a key, some are left alone for now.
            retried = with_dedup or chance > 0.7
            events = [self._new_event(with_dedup, retried) for _ in range(size)]
            keyed = Keyed(_token(events[0]), events) if with_key else None
            if keyed is not None:
                self._keyed.append(keyed)
            self._offer(events, retried, keyed)

    def repeat(self) -> None:
        """Send each request with a key once more, for use when all is over."""
        for keyed in self._keyed:
            status, response, is_replay = self._post(keyed.events, keyed.key)
            self._ledger.repeated += 1
            if status not in {200, 202}:
                self._ledger.faults.append(f"{keyed.key}, repeated, got {status}: {response[:300]!r}")
            elif keyed.response is None:
                self._ledger.served_late += not is_replay
                self._note(keyed.events, status, response)
            elif not is_replay or response != keyed.response:
                self._ledger.faults.append(f"{keyed.key}, repeated, got another response: {response[:300]!r}")

    def _new_event(self, with_dedup: bool, retried: bool) -> dict[str, object]:
        self._count += 1
        token = f"{self.name}-{self._count}"
        self._ledger.offered[token] = Offered(self._organization, retried)
        event: dict[str, object] = {"type": "soak.happened", "data": {"token": token, "amount": 12345678901234567890}}
        if with_dedup:
            event["dedup_id"] = token
        return event

    def _offer(self, events: list[dict[str, object]], retry: bool, keyed: Keyed | None) -> None:
        """Post until there is a clear response; without `retry` only once."""
        pauses = 0.0
        while True:
            status, response, _ = self._post(events, keyed.key if keyed else None)
            self._ledger.responses[str(status or "none")] += 1
            if status in {200, 202}:
                self._note(events, status, response)
                if keyed is not None:
                    keyed.response = response
                return
            # The connection of a process that was killed may hold the key's lock for a moment more.
            is_running = status == 409 and b"idempotency_key_in_use" in response
            if status not in {0, 502, 503, 504} and not is_running:
                self._ledger.faults.append(f"{self.name} got {status}: {response[:300]!r}")
                return
            if not retry:
                return
            pause = self._random.uniform(0.1, 0.5)
            pauses += pause if self._stopping.is_set() else 0
            if pauses > LAST_TRIES_SECONDS:
                self._ledger.faults.append(f"{self.name} got no response for {LAST_TRIES_SECONDS:g} s")
                return
            threading.Event().wait(pause)

    def _note(self, events: list[dict[str, object]], status: int, response: bytes) -> None:
        document = json.loads(response)
        items = document["data"] if self._batch else [document]
        for event, item in zip(events, items, strict=True):
            if item["status"] in {"accepted", "duplicate"}:
                self._ledger.offered[_token(event)].event_id = item["id"]
            else:
                self._ledger.faults.append(f"{self.name} got {item}")

    def _post(self, events: list[dict[str, object]], key: str | None) -> tuple[int, bytes, bool]:
        """Return status, body, and whether it is a replay.  Status 0: no response came; the events may be stored."""
        path, body = ("/api/events/batch", events) if self._batch else ("/api/events", events[0])
        headers = {"X-API-Key": self._key, "Content-Type": "application/json"}
        if key is not None:
            headers["Idempotency-Key"] = key
        try:
            port = self.port
            if self._connection is not None and self._connection.port != port:
                self._connection.close()
                self._connection = None
            if self._connection is None:
                self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=REQUEST_SECONDS)
            self._connection.request("POST", path, json.dumps(body), headers)
            response = self._connection.getresponse()
            return response.status, response.read(), response.getheader("Idempotency-Replayed") == "true"
        except (OSError, http.client.HTTPException):
            if self._connection is not None:
                with contextlib.suppress(OSError):
                    self._connection.close()
            self._connection = None
            return 0, b"", False


def _token(event: dict[str, object]) -> str:
    data = event["data"]
    assert isinstance(data, dict)
    return str(data["token"])
