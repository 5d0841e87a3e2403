"""A consumer of an inbox, as a process that can be killed: `python -m soak.consumer NAME PORT INBOX SEED JOURNAL`.

It fetches under leases and acknowledges, gives back, or forgets what it fetched.  Each step is a line of JSON in the
journal, written before the next step begins, so that a kill loses none.  The key is in the environment, as SOAK_KEY.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

VISIBILITY_SECONDS = 3
REQUEST_SECONDS = 20.0
# Of what it fetched, a consumer gives so much back, and forgets so much; it extends some leases before it acknowledges.
NACKED, FORGOTTEN, EXTENDED = 0.05, 0.05, 0.10
# Each step of the journal that says what became of events.
FETCHED, EXTENDS, NACKS, ACKED = "fetched", "extends", "nacks", "acked"


class Consumer:
    """Fetches and acknowledges until it is killed."""

    def __init__(self, name: str, port: int, inbox: str, seed: str, journal: Path) -> None:
        self._port = port
        self._inbox = inbox
        self._random = random.Random(f"{seed} {name}")
        self._journal = os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._headers = {"X-API-Key": os.environ["SOAK_KEY"], "Content-Type": "application/json"}

    def run(self) -> None:
        """Fetch and settle for ever."""
        while True:
            limit = self._random.randint(1, 20)
            fetched = self._request(
                "GET", f"/api/inbox?inbox={self._inbox}&limit={limit}&wait=2&visibility={VISIBILITY_SECONDS}"
            )
            if fetched and fetched["events"]:
                self._settle(fetched["lease_id"], fetched["lease_expires_at"], fetched["events"])

    def _settle(self, lease: str, expires: str, events: list[dict[str, Any]]) -> None:
        ids = [event["id"] for event in events]
        tokens = {event["id"]: event["payload"]["token"] for event in events}
        self._note(FETCHED, ids, expires=expires, tokens=tokens)
        time.sleep(self._random.uniform(0, 0.1))  # what the consumer does with them
        chance = self._random.random()
        if chance < FORGOTTEN:
            return
        if chance < FORGOTTEN + NACKED:
            self._note(NACKS, ids)  # before the request: others may fetch them before its response is here
            self._request("POST", "/api/inbox/nack", {"lease_id": lease, "event_ids": ids})
            return
        if chance < FORGOTTEN + NACKED + EXTENDED:
            done = self._request("POST", "/api/inbox/extend", {"lease_id": lease, "event_ids": ids})
            extended = [one for one in (done or {}).get("results", []) if one["status"] == "extended"]
            if extended:
                self._note(EXTENDS, [one["event_id"] for one in extended], expires=extended[0]["lease_expires_at"])
        while not (done := self._request("POST", "/api/inbox/ack", {"lease_id": lease, "event_ids": ids})):
            pass  # a consumer asks again until it knows
        acknowledged = {"acknowledged", "already_acknowledged"}
        self._note(ACKED, [one["event_id"] for one in done["results"] if one["status"] in acknowledged])

    def _note(self, step: str, ids: list[str], **more: Any) -> None:
        line = json.dumps({"step": step, "at": time.time(), "ids": ids, **more})
        os.write(self._journal, line.encode() + b"\n")

    def _request(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """Return the response's JSON; None, after a moment, when none came or the servers were away."""
        if body is not None:
            body["inbox"] = self._inbox
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=REQUEST_SECONDS)
        try:
            connection.request(method, path, json.dumps(body) if body else None, self._headers)
            response = connection.getresponse()
            text = response.read()
            if response.status == 200:
                return json.loads(text)
            if response.status not in {502, 503, 504}:
                self._note(f"{method} {path} returned {response.status}: {text[:300]!r}", [])
        except (OSError, http.client.HTTPException):
            pass
        finally:
            connection.close()
        time.sleep(self._random.uniform(0.1, 0.5))
        return None


if __name__ == "__main__":
    name, port, inbox, seed, journal = sys.argv[1:]
    Consumer(name, int(port), inbox, seed, Path(journal)).run()
