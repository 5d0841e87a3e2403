"""The commands and programs of the quickstart and of the guides do what the pages say, on a running system."""

from __future__ import annotations

import base64
import contextlib
import datetime
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import playwright
import psycopg
import pytest

from devstack.binaries import postgres_programs
from devstack.http_receiver import Receiver
from devstack.processes import ROOT
from devstack.sockets import free_port
from devstack.stack import Stack
from devstack.waiting import wait_until
from tests.system import Account, open_account
from webhooks.destinations.http.signing import new_secret, sign

pytestmark = pytest.mark.end_to_end

# A refused request ends a command with an error, and its response is shown.
CURL = 'curl() { command curl --silent --show-error --fail-with-body "$@"; }\n'


def node() -> str | None:
    """Return a Node.js: the machine's, or the one that Playwright brings."""
    own = Path(playwright.__file__).parent / "driver" / "node"
    return shutil.which("node") or (str(own) if own.exists() else None)


def go() -> str | None:
    """Return Go, if it has compiled its own library before, which takes half a minute: `go build net/http` does it."""
    program = shutil.which("go")
    if program is None or os.environ.get("CI"):
        return program
    stale = [program, "list", "-deps", "-f", "{{if .Stale}}{{.ImportPath}}{{end}}", "net/http"]
    return None if subprocess.run(stale, capture_output=True, text=True, check=True).stdout.strip() else program


@dataclass(frozen=True)
class Language:
    """How the guides' programs in a language are saved and started.  find: returns the program that runs them."""

    program: str
    sample: str
    receiver: str
    sender: str
    receive: list[str]
    send: list[str]
    prepare: tuple[list[str], ...] = ()
    known: Callable[[], str | None] | None = None

    def find(self) -> str | None:
        """Return the program, if it is on this machine."""
        return shutil.which(self.program) if self.known is None else self.known()


RUN = "{program}"
LANGUAGES = {
    "python": Language("python3", "verify.py", "receiver.py", "send.py", [RUN, "receiver.py"], [RUN, "send.py"],
                       known=lambda: sys.executable),
    "js": Language("node", "verify.js", "receiver.js", "send.js", [RUN, "receiver.js"], [RUN, "send.js"], known=node),
    "go": Language("go", "webhooks/verify.go", "receiver.go", "send.go", ["./receiver"], ["./send"],
                   (["go", "mod", "init", "receiver"], ["go", "build", "receiver.go"], ["go", "build", "send.go"]),
                   known=go),
    # Without extensions of PHP that may not be there.
    "php": Language("php", "verify.php", "receiver.php", "send.php",
                    [RUN, "-n", "-S", "localhost:{port}", "receiver.php"], [RUN, "-n", "send.php"]),
    "ruby": Language("ruby", "verify.rb", "receiver.rb", "send.rb", [RUN, "receiver.rb"], [RUN, "send.rb"]),
    "java": Language("java", "Webhooks.java", "Receiver.java", "Send.java", [RUN, "Receiver"], [RUN, "Send"],
                     (["javac", "Webhooks.java", "Receiver.java", "Send.java"],)),
}  # fmt: skip
Case = tuple[dict[str, str], str, bool]


def make_cases(secret: str) -> list[Case]:
    """Return requests to an endpoint with that secret, and whether they are genuine."""
    now, body = int(time.time()), '{"type": "order.created", "total": 12.50, "name": "Zoë"}'

    def headers(at: int, *secrets: str) -> dict[str, str]:
        signatures = " ".join(
            sign([base64.b64decode(one.removeprefix("whsec_"))], "msg_1", at, body.encode()) for one in secrets
        )
        return {"webhook-id": "msg_1", "webhook-timestamp": str(at), "webhook-signature": signatures}

    good = headers(now, secret)
    return [
        (good, body, True),
        (headers(now, new_secret(), secret), body, True),  # a rotation
        (good, body + " ", False),
        ({**good, "webhook-id": "msg_2"}, body, False),
        (headers(now, new_secret()), body, False),
        (headers(now - 400, secret), body, False),
        (headers(now + 400, secret), body, False),
        ({**good, "webhook-timestamp": "now"}, body, False),
        ({**good, "webhook-timestamp": "²"}, body, False),
        ({**good, "webhook-signature": ""}, body, False),
        ({**good, "webhook-signature": "v1,é"}, body, False),
        *(({name: value for name, value in good.items() if name != left}, body, False) for left in good),
        ({}, body, False),
    ]


@pytest.fixture(scope="module")
def system(request: pytest.FixtureRequest) -> Iterator[Stack]:
    """Return servers with web and one worker, which may send to this machine."""
    stack: Stack = request.getfixturevalue("servers")
    stack.empty()
    try:
        stack.start_web(workers=1)
        stack.start_workers({})
        yield stack
    finally:
        stack.stop_processes()


def blocks(page: str, language: str) -> list[str]:
    """Return the code of a page that is in a language, in its order."""
    found = re.findall(rf"^ *```{language}\n(.*?)^ *```$", (ROOT / "docs" / page).read_text(), re.S | re.M)
    return [textwrap.dedent(block) for block in found]


def bash(script: str, env: dict[str, str]) -> str:
    """Return what a script prints, which must end well."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", CURL + script], env={**os.environ, **env}, cwd=ROOT, capture_output=True,
        text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@contextlib.contextmanager
def running(command: list[str], folder: Path, env: dict[str, str]) -> Iterator[Path]:
    """Run a program; the context is the file with what it prints."""
    shown = folder / "shown"
    with shown.open("wb") as file:
        program = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, **env},
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            yield shown
        finally:
            os.killpg(program.pid, signal.SIGKILL)
            program.wait()


def delivered(account: Account, event: str) -> None:
    """Wait until all deliveries of an event are delivered, and there is one."""

    def look() -> bool:
        deliveries = account.call("GET", f"/api/events/{event}").document["deliveries"]
        return bool(deliveries) and all(one["status"] == "delivered" for one in deliveries)

    wait_until(look, f"{event} isn't delivered", 60)


@pytest.fixture(scope="module")
def demo(system: Stack) -> Account:
    """Return the organization of the quickstart, with the key that its command makes."""
    system.make_organization("Demo")
    make_key = blocks("quickstart.md", "sh")[1]
    assert make_key.startswith("KEY=$(.venv/bin/python manage.py create_api_key Demo)")
    make_key = make_key.replace(".venv/bin/python", sys.executable)
    return Account(system.url, bash(f'{make_key}\necho "$KEY"', system.environment()).strip())


def test_the_quickstart(system: Stack, demo: Account, tmp_path: Path) -> None:
    endpoint, key = free_port(), demo.key
    start, _, subscribe, send, look_up = (
        block.replace("localhost:8000", f"127.0.0.1:{system.port}").replace("9000", str(endpoint))
        for block in blocks("quickstart.md", "sh")
    )
    start = start.replace("python3", sys.executable)
    with running(["bash", "-c", start], tmp_path, {}) as shown:
        made = json.loads(bash(subscribe, {"KEY": key}))
        assert made["secret"].startswith("whsec_")
        head, _, body = bash(send, {"KEY": key}).replace("\r", "").partition("\n\n")
        assert head.startswith("HTTP/1.1 202 Accepted")
        event = json.loads(body)["id"]
        delivered(demo, event)
        printed = shown.read_text()
    for line in (f"webhook-id: {event}", "webhook-signature: v1,", '"data":{"id": 17, "total": 12.50}}'):
        assert line in printed
    [delivery] = json.loads(bash(look_up, {"KEY": key}))["data"]
    assert (delivery["event_id"], delivery["subscription_id"]) == (event, made["id"])


def test_the_guide_to_sending(system: Stack, tmp_path: Path) -> None:
    account = open_account(system, "Sender")
    env = {"TRIGGERS_URL": system.url, "TRIGGERS_KEY": account.key}
    one, batch, validate, read = blocks("guides/send.md", "sh")
    assert bash(one, env).startswith("HTTP/1.1 202 Accepted")
    shown: Any = json.loads(bash(batch, env))
    [example] = [json.loads(text) for text in blocks("guides/send.md", "json")]
    assert shown["accepted"] == example["accepted"]
    assert [item["status"] for item in shown["data"]] == [item["status"] for item in example["data"]]
    assert shown["data"][2]["errors"][0]["pointer"] == example["data"][2]["errors"][0]["pointer"]
    assert json.loads(bash(validate, env))["status"] == "valid"
    listed = bash(read.splitlines()[0], env)
    assert [event["type"] for event in json.loads(listed)["data"]] == ["order.created"]
    bash(read.splitlines()[1], env)


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_language_sends_receives_and_verifies(system: Stack, tmp_path: Path, language: str) -> None:
    names = LANGUAGES[language]
    if (program := names.find()) is None:
        pytest.skip(f"no {names.program} on this machine")
    sample, *_, receiver = blocks("guides/receive.md", language)
    [sender] = blocks("guides/send.md", language)
    for name, code in ((names.sample, sample), (names.receiver, receiver), (names.sender, sender)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(code)
    for command in names.prepare:
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False)
        assert done.returncode == 0, done.stderr
    account, port = open_account(system, f"Receiver in {language}"), free_port()
    made = account.make_subscription(f"http://localhost:{port}/hook", "order.*")
    receive = [word.format(program=program, port=port) for word in names.receive]
    with running(receive, tmp_path, {"SECRET": made["secret"], "PORT": str(port)}) as shown:
        env = {"TRIGGERS_URL": system.url, "TRIGGERS_KEY": account.key, "SUBSCRIPTION": made["id"]}
        [test] = blocks("guides/receive.md", "sh")
        # Not by test events, of which an organization may send 10 a minute.
        wait_until(lambda: _listens(port), "the receiver doesn't listen", 100)
        assert json.loads(bash(test, env))["succeeded"], shown.read_text()
        send = [word.format(program=program) for word in names.send]
        sent = [
            subprocess.run(
                send, cwd=tmp_path, env={**os.environ, **env}, capture_output=True, text=True, timeout=100, check=True
            ).stdout.strip()
            for _ in range(2)
        ]
        # The second one is a duplicate.  Java prints the response.
        [event] = {json.loads(text)["id"] if language == "java" else text for text in sent}
        delivered(account, event)
        told = "received" if language == "java" else "received order.created"
        wait_until(lambda: f"{told} {event}" in shown.read_text(), "the receiver says nothing", 10)
        cases = make_cases(made["secret"])
        assert [_post(port, headers, body) for headers, body, _ in cases] == [
            204 if genuine else 401 for *_, genuine in cases
        ]


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("localhost", port), timeout=30).close()
    except OSError:
        return False
    return True


def _post(port: int, headers: dict[str, str], body: str) -> int:
    connection = http.client.HTTPConnection("localhost", port, timeout=30)
    try:
        # As bytes, because a header may be anything.
        sent = {name: value.encode() for name, value in headers.items()}
        connection.request("POST", "/hook", body.encode(), sent)
        return connection.getresponse().status
    finally:
        connection.close()


def test_the_guide_to_retries(system: Stack) -> None:
    account = open_account(system, "Retrier")
    receiver = Receiver()
    receiver.start()
    try:
        subscription = account.subscribe(receiver.url("/hook"))
        event = account.post_event(1).document["id"]
        delivered(account, event)
        [delivery] = account.call("GET", f"/api/deliveries?event_id={event}").document["data"]
        env = {
            "TRIGGERS_URL": system.url, "TRIGGERS_KEY": account.key, "SUBSCRIPTION": subscription,
            "DELIVERY": delivery["id"],
        }  # fmt: skip
        retry, retry_many, recover = (json.loads(bash(block, env)) for block in blocks("guides/retries.md", "sh"))
        assert retry["id"] == delivery["id"]
        assert retry_many["id"]
        assert recover["id"]
        receiver.wait_for(2)
    finally:
        receiver.stop()
    for code in blocks("guides/retries.md", "python"):
        exec(code, {})


def test_the_guide_to_migrating(system: Stack) -> None:
    account = open_account(system, "Migrant")
    env = {"TRIGGERS_URL": system.url, "TRIGGERS_KEY": account.key}
    [block] = blocks("guides/migrate.md", "sh")
    assert json.loads(bash(block, env))["uid"] == "ep_2fT7"
    again = subprocess.run(
        ["bash", "-c", CURL + block], env={**os.environ, **env}, capture_output=True, text=True, timeout=60, check=False
    )
    assert again.returncode != 0
    assert json.loads(again.stdout)["code"] == "uid_taken"


@pytest.mark.slow
def test_the_guide_to_backups(system: Stack, tmp_path: Path) -> None:
    programs = postgres_programs()
    if not (programs / "pg_restore").exists():
        pytest.skip("this PostgreSQL has no pg_dump and pg_restore")
    account = open_account(system, "Keeper")
    event = account.post_event(1).document["id"]
    wait_until(lambda: account.call("GET", f"/api/events/{event}").document["status"] == "processed", "not processed")
    dump, restore, check = (
        block.replace("triggers.dump", str(tmp_path / "triggers.dump")).replace("python ", f"{sys.executable} ")
        for block in blocks("operate/backup.md", "sh")
    )
    with psycopg.connect(system.postgres.url("postgres"), autocommit=True) as connection:
        connection.execute("DROP DATABASE IF EXISTS restored")
    system.postgres.create_database("restored")
    env = {
        **system.environment(), "PATH": f"{programs}:{os.environ['PATH']}", "DATABASE_URL": system.postgres.url(),
        "RESTORED_URL": system.postgres.url("restored"),
    }  # fmt: skip
    bash(f"{dump}\n{restore}\n{check}", env)
    counts = (
        "SELECT (SELECT count(*) FROM events_event), (SELECT count(*) FROM pg_indexes), (SELECT count(*) FROM pg_proc),"
        " (SELECT count(*) FROM pg_inherits), (SELECT count(*) FROM pg_constraint), (SELECT count(*) FROM pg_trigger)"
    )
    with psycopg.connect(system.postgres.url("restored")) as restored:
        assert restored.execute(counts).fetchall() == system.sql(counts)
        assert restored.execute("SELECT id FROM events_event WHERE id = %s", (event,)).fetchall()


def on_this_system(block: str, system: Stack, receiver: Receiver) -> str:
    """Return a block of commands with this system for the reader's, and an endpoint of this machine for example.com."""
    hosts = {
        "localhost:8000": f"127.0.0.1:{system.port}",
        "https://hooks.example.com": system.url,
        "https://example.com": receiver.url("").rstrip("/"),
        "http://localhost:9000": receiver.url("").rstrip("/"),
        '"2027-': f'"{datetime.date.today().year + 1}-',  # which is to come
    }
    for shown, meant in hosts.items():
        block = block.replace(shown, meant)
    return block


@pytest.fixture
def endpoint() -> Iterator[Receiver]:
    receiver = Receiver()
    receiver.start()
    try:
        yield receiver
    finally:
        receiver.stop()


@pytest.mark.parametrize("page", ["cloudevents", "idempotency", "integrations", "routing", "portal"])
def test_the_commands_of_other_guides(system: Stack, endpoint: Receiver, page: str) -> None:
    account = open_account(system, f"Reader of {page}")
    found = [block for block in blocks(f"{page}.md", "sh") if "curl" in block]
    assert found
    for block in found:
        assert bash(on_this_system(block, system, endpoint), {"KEY": account.key})


def test_the_commands_of_the_guide_to_credentials(system: Stack, endpoint: Receiver) -> None:
    account = open_account(system, "Reader of credentials")
    [block] = blocks("credentials.md", "sh")
    env = {"KEY": account.key, "API": system.url}
    create, add, rest = on_this_system(block, system, endpoint).split("\n\n")
    made = json.loads(bash(create, env))
    added = json.loads(bash(add, {**env, "ID": made["id"]}))
    bash(rest, {**env, "ID": made["id"], "SECRET": added["id"]})
    [left] = account.call("GET", f"/api/subscriptions/{made['id']}/secrets").document["data"]
    assert left["id"] != added["id"]


def test_the_commands_of_the_guide_to_inboxes(system: Stack, endpoint: Receiver) -> None:
    account = open_account(system, "Reader of inboxes")
    env = {"KEY": account.key}
    fetch, acknowledge, _, read, stream, another = (
        on_this_system(block, system, endpoint) for block in blocks("inbox.md", "sh")
    )
    assert json.loads(bash(fetch, env))["events"] == []  # which makes the inbox
    for number in (1, 2):
        assert account.post_event(number).status == 202
    fetched: dict[str, Any] = {"events": []}

    def take() -> bool:
        answer = json.loads(bash(fetch, env))
        fetched["events"] += answer["events"]
        fetched["lease_id"] = answer["lease_id"]
        return bool(answer["events"])

    wait_until(take, "nothing came into the inbox", 30)
    event = fetched["events"][-1]["id"]
    many, one = acknowledge.split("\n\n")
    done = json.loads(bash(many.replace("0198f2d1-…", fetched["lease_id"]).replace("0198f2d0-…", event), env))
    assert (done["acknowledged"], done["failed"]) == (1, 0)
    assert json.loads(bash(one.replace("0198f2d0-…", event), env))  # twice is harmless
    first, following = read.strip().splitlines()
    cursor = json.loads(bash(first, env))["next_cursor"]
    assert "events" in json.loads(bash(following.replace("wait=20", "wait=1"), {**env, "NEXT_CURSOR": cursor}))
    shown = bash(stream.strip().replace("curl -N", "curl -N --max-time 1") + " || true", env)
    assert event in shown
    assert '"inbox":"billing"' in bash(another, env).replace(": ", ":")
