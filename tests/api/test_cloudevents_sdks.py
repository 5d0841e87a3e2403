"""The CloudEvents SDKs for Python and JavaScript send to us in all three modes, and read what we deliver."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
from cloudevents.core.bindings.http import HTTPMessage, from_http_event, to_binary_event, to_structured_event
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent
from dateutil.parser import isoparse

from devstack.http_receiver import Receiver
from devstack.waiting import wait_until
from events.models import Event
from orgs.keys import create_api_key
from orgs.models import Organization
from tests.servers import ROOT
from tests.webhooks.helpers import fan_out, sending, subscribe

pytestmark = pytest.mark.django_db(transaction=True)

JAVASCRIPT_SDK = "10.0.0"
BATCH = "application/cloudevents-batch+json"
# By id: the attributes that both SDKs can send.  JavaScript's sends headers as they are, so its texts are ASCII here.
EVENT: dict[str, Any] = {
    "specversion": "1.0",
    "source": "/shop/1",
    "type": "com.example.order-created",
    "subject": "order 4711",
    "dataschema": "https://example.com/order.json",
    "datacontenttype": "application/json",
    "time": "2026-01-31T12:00:00.000Z",
    "partner": "acme",
}
DATA = {"order": 4711, "total": "19.90", "text": "Käse"}

Send = Callable[[str, str, list[dict[str, Any]]], tuple[int, Any]]  # mode, path, events
Read = Callable[[dict[str, str], bytes], dict[str, Any]]


@pytest.fixture
def port(request: pytest.FixtureRequest) -> int:
    """Return the front door's port."""
    running: int = request.getfixturevalue("_door")
    return running


def deliver(receiver: Receiver, read: Read) -> dict[str, list[dict[str, Any]]]:
    """Deliver all events; return by id what the SDK reads."""
    fan_out()
    with sending():
        wait_until(lambda: len(receiver.requests) == 2 * Event.objects.count(), timeout=30)
    events: dict[str, list[dict[str, Any]]] = {}
    for request in receiver.requests:
        event = read(dict(request.headers), request.body)
        events.setdefault(event["id"], []).append(event)
    return events


def check(send: Send, read: Read, receiver: Receiver, organization: Organization, more: dict[str, Any]) -> None:
    """Send an event in each mode, more than once, and have it delivered in both forms."""
    for form in ("cloudevents", "cloudevents-binary"):
        subscribe(organization, receiver.url(f"/{form}"), format=form)
    sent = {f"{mode} {n}": {**EVENT, **more, "id": f"{mode} {n}", "data": DATA} for mode, n in MODES}
    for mode, n in MODES:
        if mode != "batch":
            event = sent[f"{mode} {n}"]
            assert send(mode, "/api/events", [event])[0] == 202
            status, answer = send(mode, "/api/events", [event])
            assert (status, answer["status"]) == (200, "duplicate")
    batch = [sent["batch 1"], sent["batch 2"], sent["batch 1"]]
    for path in ("/api/events/batch", "/api/events"):
        status, answer = send("batch", path, batch)
        assert status == (202 if path == "/api/events/batch" else 200), answer
    delivered = deliver(receiver, read)
    assert delivered.keys() == sent.keys()
    for name, event in sent.items():
        assert len(delivered[name]) == 2
        for got in delivered[name]:
            assert {**got, "time": isoparse(got["time"])} == {**event, "time": isoparse(event["time"])}


MODES = [("structured", 1), ("binary", 1), ("batch", 1), ("batch", 2)]


def test_the_python_sdk(port: int, receiver: Receiver, organization: Organization) -> None:
    key = create_api_key(organization)[1]

    def send(mode: str, path: str, events: list[dict[str, Any]]) -> tuple[int, Any]:
        made = []
        for event in events:
            attributes = {name: value for name, value in event.items() if name != "data"}
            made.append(CloudEvent({**attributes, "time": isoparse(event["time"])}, event["data"]))
        if mode == "batch":
            body = b"[" + b",".join(JSONFormat().write(one) for one in made) + b"]"
            message = HTTPMessage({"content-type": BATCH}, body)
        else:
            message = to_binary_event(made[0]) if mode == "binary" else to_structured_event(made[0])
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}{path}", message.body, {**message.headers, "X-API-Key": key}
        )
        with urllib.request.urlopen(request, timeout=30) as response:
            return response.status, json.load(response)

    def read(headers: dict[str, str], body: bytes) -> dict[str, Any]:
        event = from_http_event(HTTPMessage(headers, body))
        attributes = event.get_attributes()
        return {**attributes, "time": attributes["time"].isoformat(), "data": event.get_data()}

    check(send, read, receiver, organization, {"subject": 'Käse "50%" 😀', "partner": "ä%20"})


def _leave_out(reason: str) -> NoReturn:
    """Skip the test; in CI, where Node.js is, fail, or nobody would notice that it isn't run any more."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="module")
def javascript() -> Iterator[Callable[[dict[str, Any]], Any]]:
    """Return a function that has the JavaScript SDK answer a request, in one process of Node.js."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        _leave_out("the JavaScript SDK needs node and npm")
    home = ROOT / ".local" / "javascript" / f"cloudevents-{JAVASCRIPT_SDK}"
    if not (home / "node_modules" / "cloudevents" / "package.json").exists():
        home.mkdir(parents=True, exist_ok=True)
        command = [npm, "install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix", str(home)]
        try:
            done = subprocess.run(
                [*command, f"cloudevents@{JAVASCRIPT_SDK}"], capture_output=True, timeout=120, check=False
            )
        except subprocess.TimeoutExpired:
            _leave_out("npm can't reach its registry")
        if done.returncode:
            _leave_out(f"npm can't install cloudevents@{JAVASCRIPT_SDK}: {done.stderr.decode()[-200:]}")
    script = Path(__file__).with_name("cloudevents_sdk.mjs")
    process = subprocess.Popen([node, script, home], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        reader, writer = process.stdout, process.stdin

        def ask(request: dict[str, Any]) -> Any:
            writer.write(json.dumps(request) + "\n")
            writer.flush()
            answer = json.loads(reader.readline())
            assert "error" not in answer, answer["error"]
            return answer

        yield ask
        writer.close()


def test_the_javascript_sdk(
    port: int, receiver: Receiver, organization: Organization, javascript: Callable[[dict[str, Any]], Any]
) -> None:
    key = create_api_key(organization)[1]

    def send(mode: str, path: str, events: list[dict[str, Any]]) -> tuple[int, Any]:
        url = f"http://127.0.0.1:{port}{path}"
        answer = javascript({"url": url, "key": key, "mode": mode, "events": events})
        return answer["status"], answer["body"]

    def read(headers: dict[str, str], body: bytes) -> dict[str, Any]:
        event: dict[str, Any] = javascript({"headers": headers, "body": body.decode()})
        # This SDK doesn't decode the percent-encoding of headers, as it doesn't encode them.
        return {**event, "id": event["id"].replace("%20", " "), "subject": event["subject"].replace("%20", " ")}

    check(send, read, receiver, organization, {})
