"""The load of a run: organizations whose producers post, and whose endpoints receive; one of them has an inbox."""

from __future__ import annotations

import http.client
import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from devstack.http_receiver import Receiver
from devstack.stack import Stack
from devstack.waiting import wait_until
from soak.checks import Report, check, check_consumed
from soak.consumers import INBOX, Consumers
from soak.endpoints import PROMPT, Endpoints, Kind, token_of
from soak.faults import Row
from soak.producers import Ledger, Producer

# With their endpoints.
ORGANIZATIONS: Mapping[str, Sequence[Kind]] = {"first": list(Kind), "second": list(Kind), PROMPT: [Kind.STEADY]}
CONSUMING = "first"  # the organization with an inbox
PROMPT_PACE = 4.0
DRAIN_SECONDS = 180.0


class Load:
    """Producers, endpoints, and consumers on a stack that is started and empty.

    ports: of the web processes; the producers are spread over them, the consumers use the last one.  pace: 0.5 posts
    half as often as 1.
    """

    def __init__(self, stack: Stack, seed: int, ports: Sequence[int], pace: float = 1.0) -> None:
        self._stack = stack
        self._seed = seed
        self._ports = ports
        self._pace = pace
        self._secrets: dict[str, str] = {}
        self._paths: dict[str, str] = {}
        self._organizations: dict[str, list[str]] = {}
        self._consumers: Consumers | None = None
        self.receiver = Receiver(Endpoints(seed))
        self.ledger = Ledger()
        self.producers: list[Producer] = []

    @property
    def consumers(self) -> Consumers:
        """Return the consumers of the inbox.  Only after `set_up`."""
        assert self._consumers is not None
        return self._consumers

    def set_up(self) -> None:
        """Make the organizations and subscriptions; web has to answer, workers don't matter yet."""
        self.receiver.start()
        for name, kinds in ORGANIZATIONS.items():
            organization = self._stack.make_organization(name)
            keys = [self._stack.make_key(organization), self._stack.make_key(organization)]
            self._organizations[name] = []
            for kind in kinds:
                path = f"/{name}/{kind}"
                made = self._subscribe(keys[0], {"url": self.receiver.url(path), "event_types": ["*"]})
                self._paths[path] = made["id"]
                self._secrets[path] = made["secret"]
                self._organizations[name].append(path)
            for number, key in enumerate(keys):
                for batch in (False,) if name == PROMPT else (False, True):
                    label = f"{name}-{number}-{'batch' if batch else 'single'}"
                    port = self._ports[len(self.producers) % len(self._ports)]
                    made_of = (label, port, name, key, self._seed, self.ledger)
                    pace = self._pace * (PROMPT_PACE if name == PROMPT else 1)
                    self.producers.append(Producer(*made_of, batch=batch, pace=pace))
            if name == CONSUMING:
                self._subscribe(keys[0], {"kind": "inbox", "inbox": INBOX, "event_types": ["*"]})
                self._consumers = Consumers(self._stack.home, self._ports[-1], keys[0], self._seed)

    def start(self) -> None:
        """Begin to post and to fetch."""
        self.consumers.start()
        for producer in self.producers:
            producer.start()

    def stop_producers(self) -> None:
        """Post nothing new, and wait for the responses to what was posted."""
        for producer in self.producers:
            producer.stop()
        for producer in self.producers:
            producer.join()

    def end(self) -> None:
        """Stop everything, in whatever state it is."""
        for producer in self.producers:
            producer.stop()
        if self._consumers is not None:
            self._consumers.stop()
        self.receiver.stop()

    def has_arrived_since(self, known: Collection[str]) -> bool:
        """Return whether every organization got an event accepted and delivered whose token isn't among `known`."""
        new = {
            name
            for request in self.receiver.requests[-5000:]
            if request.status == 200 and token_of(request) not in known
            for name in ORGANIZATIONS
            if request.path == f"/{name}/{Kind.STEADY}"
        }
        return len(new) == len(ORGANIZATIONS)

    def drain(self) -> None:
        """Wait until nothing is on its way any more.  Raises TimeoutError."""
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

    def check(self, in_flight: set[Row]) -> Report:
        """Compare what was promised, what is stored, and what was received.  in_flight: what may have come twice."""
        report = check(
            self._stack, self.ledger, self.receiver.requests, self._secrets, self._paths, self._organizations, in_flight
        )
        check_consumed(report, self.ledger, self.consumers.read(), CONSUMING)
        return report

    def _subscribe(self, key: str, body: object) -> dict[str, Any]:
        path, headers = "/api/subscriptions", {"X-API-Key": key, "Content-Type": "application/json"}
        connection = http.client.HTTPConnection("127.0.0.1", self._ports[0], timeout=30)
        try:
            connection.request("POST", path, json.dumps(body), headers)
            response = connection.getresponse()
            text = response.read()
        finally:
            connection.close()
        if response.status >= 300:
            raise RuntimeError(f"POST {path} returned {response.status}: {text[:300]!r}")
        document: dict[str, Any] = json.loads(text)
        return document
