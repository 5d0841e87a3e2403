"""The Python client, the command line, and the pages that show them, against web and worker processes."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import io
import json
import math
import os
import pty
import re
import secrets
import signal
import site
import subprocess
import sys
import termios
import threading
import venv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from triggers_client import (
    AsyncClient,
    Client,
    DedupConflictError,
    MissingScopeError,
    NewEvent,
    __version__,
    errors,
    verify,
)
from triggers_client.cli.main import app, main
from triggers_client.models import InboxEvent

from devstack.http_receiver import Received, Receiver, Response
from devstack.sockets import free_port
from devstack.stack import Stack
from devstack.waiting import wait_until
from tests.system import Account

pytestmark = pytest.mark.end_to_end
ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "clients" / "python" / "src"


@pytest.fixture
def client(installation: Account) -> Iterator[Client]:
    """Return a client of the installation."""
    with Client(installation.key, installation.url) as one:
        yield one


@pytest.fixture
def event_type() -> str:
    """Return a type that nothing else uses."""
    return f"test.{secrets.token_hex(6)}"


def until(read: Callable[[], Any], otherwise: str) -> Any:
    """Wait until what `read` returns is true, and return it."""
    return wait_until(read, otherwise, 60.0)


# --- the client -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_event_arrives_verified_and_its_delivery_can_be_read(client: Client, event_type: str) -> None:
    with Receiver() as receiver:
        made = client.subscriptions.create(receiver.url("/hook"), [event_type], description="Orders")
        assert made.secret
        receipt = client.events.send(event_type, msgspec.Raw(b'{"total": 12.50, "n": 123456789012345678901234567890}'))
        assert receipt.status == "accepted"
        [request] = receiver.wait_for(1)
        body = verify(request.body, request.headers, made.secret)
        assert (body["id"], body["type"]) == (receipt.id, event_type)
        assert b'{"total": 12.50, "n": 123456789012345678901234567890}' in request.body
        delivery = until(
            lambda: next(iter(client.deliveries.list(subscription=made.id, status="delivered")), None), "no delivery"
        )
        [attempt] = client.deliveries.attempts(delivery.id)
        assert (attempt.number, attempt.status_code) == (1, 200)
        exchange = client.deliveries.attempt(delivery.id, 1).exchange
        assert exchange is not None
        assert exchange.request["url"] == receiver.url("/hook")
        assert client.deliveries.retry(delivery.id).id == delivery.id
        receiver.wait_for(2)
        event = client.events.get(receipt.id)
        assert [one.subscription_id for one in event.deliveries] == [made.id]
        client.subscriptions.delete(made.id)


def test_the_life_of_a_subscription(client: Client, event_type: str) -> None:
    with Receiver() as receiver:
        one = client.subscriptions.create(receiver.url("/"), [event_type])
        assert client.subscriptions.get(one.id).secret is None
        assert client.subscriptions.change(one.id, description="New", max_in_flight=None).description == "New"
        preview = client.subscriptions.preview(one.id, type=event_type, data={"id": 1}, transform="{n: data.id}")
        assert preview.request is not None
        assert preview.request.body == '{"n":1}'
        assert client.subscriptions.test(one.id).succeeded
        rotated = client.subscriptions.rotate_secret(one.id, overlap_seconds=60)
        assert rotated.secret not in {None, one.secret}
        disabled = client.subscriptions.disable(one.id, "Moving")
        assert (disabled.disabled_cause, disabled.disabled_reason) == ("by_request", "Disabled by request: Moving")
        assert one.id in {found.id for found in client.subscriptions.list(state="disabled")}
        assert client.subscriptions.enable(one.id).state == "active"
        recovery = client.subscriptions.recover(one.id, one.created_at)
        assert client.subscriptions.get_recovery(one.id, recovery.id).id == recovery.id
    client.subscriptions.delete(one.id)
    with pytest.raises(errors.NotFoundError) as failed:
        client.subscriptions.get(one.id)
    assert failed.value.code == "not_found"


def test_lists_are_read_page_by_page(client: Client, event_type: str) -> None:
    receipt = client.events.send_batch([NewEvent(event_type, {"n": number}) for number in range(5)])
    assert receipt.accepted == 5
    found = client.events.list(type=event_type, limit=2)
    assert [len(page.data) for page in found.pages()] == [2, 2, 1]
    assert [event.data["n"] for event in found] == [4, 3, 2, 1, 0]
    second = next(found.pages(next(found.pages()).next_cursor))
    assert [event.data["n"] for event in second.data] == [2, 1]

    async def read() -> list[int]:
        async with AsyncClient(client.configuration.api_key, client.configuration.base_url) as one:
            return [event.data["n"] async for event in one.events.list(type=event_type, limit=2)]

    assert asyncio.run(read()) == [4, 3, 2, 1, 0]


def test_an_event_that_json_libraries_refuse_hides_no_other(client: Client, shell: Shell, event_type: str) -> None:
    """RFC 8259 allows numbers that no float can hold and half of a surrogate pair, so an event may have them."""
    name = event_type.replace(".", "-")
    made = client.subscriptions.create_inbox(name, [event_type])
    data = '{"large": 1e400, "half": "\\ud83d", "pair": "\\ud83d\\ude00", "escaped": "\\\\ud83d", "total": 12.50}'
    ids = [client.events.send(event_type, msgspec.Raw(text)).id for text in (b"1", data.encode(), b"3")]
    value = {"large": math.inf, "half": "\ufffd", "pair": "\U0001f600", "escaped": "\\ud83d", "total": 12.5}
    assert [one.data for one in client.events.list(type=event_type)] == [3, value, 1]
    seen: list[InboxEvent] = []
    while len(seen) < 3:
        seen += client.inbox.fetch(name, wait=20).events
    assert [(one.id, one.payload) for one in seen] == list(zip(ids, [1, value, 3], strict=True))
    stream = client.inbox.stream("", inbox=name)
    assert [next(stream).event.payload for _ in ids] == [1, value, 3]
    shown = shell.ok("events", ids[1])
    assert '"large": 1e400' in shown
    assert '"total": 12.50' in shown
    assert "deliveries" not in shell.json("events", "--type", event_type)[0]
    assert "accepted" in shell.ok("send", event_type, data)
    client.subscriptions.delete(made.id)


def test_a_batch_says_what_came_of_each_event(client: Client, event_type: str) -> None:
    client.events.send(event_type, 1, dedup_id=event_type)
    receipt = client.events.send_batch(
        [NewEvent(event_type, 1, event_type), NewEvent(event_type, 2, event_type), NewEvent("not valid", 3)]
    )
    assert [item.status for item in receipt.data] == ["duplicate", "conflict", "invalid"]
    assert receipt.data[2].errors[0].pointer == "/type"


def test_refusals_are_exceptions_that_say_why(installation: Account, client: Client, event_type: str) -> None:
    first = client.events.send(event_type, 1, dedup_id=event_type)
    assert client.events.send(event_type, 1, dedup_id=event_type).status == "duplicate"
    with pytest.raises(DedupConflictError) as conflict:
        client.events.send(event_type, 2, dedup_id=event_type)
    assert (conflict.value.status, conflict.value.members["event_id"]) == (409, first.id)
    with pytest.raises(errors.BadRequestError) as invalid:
        client.events.send("")
    assert [error.pointer for error in invalid.value.errors] == ["/type"]
    with pytest.raises(errors.InvalidApiKeyError):
        Client("wrong", installation.url).me()
    reader = installation.call("POST", "/api/keys", {"name": "reader", "scopes": ["events:read"]}).document["key"]
    with pytest.raises(MissingScopeError) as missing:
        Client(reader, installation.url).events.send(event_type)
    assert missing.value.members["scope"] == "events:write"
    with pytest.raises(errors.InboxNotFoundError):
        client.inbox.fetch("no-such-inbox")
    assert client.me().organization.name


def test_the_catalog(client: Client, event_type: str) -> None:
    made = client.event_types.create(event_type, schema={"type": "object"}, examples=[{"id": 1}])
    assert client.event_types.get(made.id).examples == [{"id": 1}]
    assert client.event_types.change(made.id, schema=True).version == 2
    assert [one.name for one in client.event_types.list(name=event_type)] == [event_type]
    document = {
        "openapi": "3.1.0", "info": {"title": "Shop", "version": "1"}, "webhooks": {event_type: {"post": {}}},
    }  # fmt: skip
    assert client.event_types.import_openapi(document).data[0].name == event_type
    assert client.event_types.change_settings("free") == client.event_types.settings()
    client.event_types.delete(made.id)


def test_the_inbox_is_fetched_acknowledged_logged_and_streamed(client: Client, event_type: str) -> None:
    name = event_type.replace(".", "-")
    made = client.subscriptions.create_inbox(name, [event_type])
    ids = [client.events.send(event_type, number).id for number in range(3)]
    fetched = client.inbox.fetch(name, limit=1, wait=20)
    assert [event.id for event in fetched.events] == ids[:1]
    assert client.inbox.extend(ids[:1], lease_id=fetched.lease_id, inbox=name, visibility=60).failed == 0
    assert client.inbox.nack(ids[:1], lease_id=fetched.lease_id, inbox=name).results[0].status == "given_back"
    seen: list[str] = []
    while len(seen) < 3:
        fetched = client.inbox.fetch(name, wait=20)
        assert client.inbox.ack([one.id for one in fetched.events], lease_id=fetched.lease_id, inbox=name).failed == 0
        seen += [one.id for one in fetched.events]
    assert seen == ids
    assert [event.payload for page in client.inbox.log(inbox=name, limit=1) for event in page.events] == [0, 1, 2]
    stream = client.inbox.stream("", inbox=name)
    first, second = next(stream), next(stream)
    assert [first.event.id, second.event.id] == ids[:2]
    assert next(client.inbox.stream(first.cursor, inbox=name)).event.id == ids[1]

    async def follow() -> list[Any]:
        async with AsyncClient(client.configuration.api_key, client.configuration.base_url) as one:
            found = []
            async for item in one.inbox.stream("", inbox=name):
                found.append(item.event.payload)
                if len(found) == 3:
                    await one.events.send(event_type, "live")
                if len(found) == 4:
                    break
            pages = [page async for page in one.inbox.log(inbox=name, limit=3)]
            assert [len(page.events) for page in pages] == [3, 1]
            return found

    assert asyncio.run(follow()) == [0, 1, 2, "live"]
    client.subscriptions.delete(made.id)


# --- the command line -------------------------------------------------------------------------------


class Ran(NamedTuple):
    """What came of a command."""

    returncode: int
    stdout: str
    stderr: str


class Shell:
    """Runs `triggers` as somebody with a home folder of their own."""

    def __init__(self, home: Path, url: str = "", key: str = "") -> None:
        ours = {name: value for name, value in os.environ.items() if not name.startswith("TRIGGERS_")}
        self.env = {**ours, "HOME": str(home), "XDG_CONFIG_HOME": str(home / "config"), "PYTHONPATH": str(SOURCES)}
        if url:
            self.env |= {"TRIGGERS_URL": url, "TRIGGERS_API_KEY": key}

    @property
    def command(self) -> list[str]:
        """Return how the command line is started."""
        return [sys.executable, "-c", "from triggers_client.cli import run; run()"]

    def run(self, *arguments: str, given: str = "", **env: str) -> Ran:
        """Run a command to its end, in this process: starting one takes longer than most commands."""
        with pytest.MonkeyPatch.context() as patch:
            for name in ("TRIGGERS_URL", "TRIGGERS_API_KEY"):
                patch.delenv(name, raising=False)
            for name, value in {**self.env, **env}.items():
                patch.setenv(name, value)
            patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given.encode())))
            out, err = io.StringIO(), io.StringIO()
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                status = main(arguments)
        return Ran(status, out.getvalue(), err.getvalue())

    def ok(self, *arguments: str, given: str = "", **env: str) -> str:
        """Run a command that succeeds, and return what it prints."""
        ran = self.run(*arguments, given=given, **env)
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    def json(self, *arguments: str) -> Any:
        """Run a command with --json, and return what it prints."""
        return json.loads(self.ok(*arguments, "--json"))


@pytest.fixture
def shell(installation: Account, tmp_path: Path) -> Shell:
    """Return a shell that has the key of the installation in its environment."""
    return Shell(tmp_path, installation.url, installation.key)


def test_the_commands_show_and_do_what_the_api_does(
    shell: Shell, client: Client, event_type: str, tmp_path: Path
) -> None:
    assert shell.ok("--version").strip() == __version__
    with Receiver(lambda request, number: Response(500 if number == 1 else 200)) as receiver:
        made = shell.json("subscriptions", "create", receiver.url("/"), "--types", f"{event_type},{event_type}.*")
        assert made["event_types"] == [event_type, f"{event_type}.*"]
        event_id = shell.ok("send", event_type, '{"total": 12.50}').split()[0]
        [request] = receiver.wait_for(1)
        assert b'"data":{"total": 12.50}' in request.body
        failed = until(lambda: shell.json("deliveries", "--event", event_id, "--status", "retrying"), "no retry")
        assert [one["last_status_code"] for one in failed] == [500]
        assert "retrying" in shell.ok("retry", failed[0]["id"])
        receiver.wait_for(2)
        shown = until(
            lambda: "delivered" in shell.ok("deliveries", failed[0]["id"]) and shell.ok("events", event_id), "none"
        )
        assert '"total": 12.50' in shown
        assert made["id"] in shown
        table = shell.ok("events", "--type", event_type)
        assert re.fullmatch(rf"ID +TYPE +STATUS +CREATED\n{event_id}  {event_type}  processed  [\d-]+ [\d:]+\n", table)
        (tmp_path / "data.json").write_text('{"from": "file"}\n')
        shell.ok("send", event_type, f"@{tmp_path}/data.json", "--dedup-id", event_type)
        assert "duplicate" in shell.ok("send", event_type, "-", "--dedup-id", event_type, given='{"from": "file"}')
        client.event_types.create(event_type, examples=[{"n": 1}, {"n": 2}])
        example = shell.json("trigger", event_type, "--example", "2")
        assert shell.json("events", example["id"])["data"] == {"n": 2}
        assert made["id"] in shell.ok("subscriptions")
        assert "disabled" in shell.ok("subscriptions", "disable", made["id"])
        assert "active" in shell.ok("subscriptions", "enable", made["id"])
        assert "whsec_" in shell.ok("subscriptions", "rotate-secret", made["id"])
        assert json.loads(shell.ok("subscriptions", "show", made["id"]))["url"] == made["url"]
    test = shell.run("subscriptions", "test", made["id"])
    assert (test.returncode, test.stdout.split()[0]) == (1, "connection_refused")
    assert "deleted" in shell.ok("subscriptions", "delete", made["id"])


def test_output_that_cannot_be_written_is_one_line(installation: Account, tmp_path: Path) -> None:
    shell = Shell(tmp_path, installation.url, installation.key)
    for arguments in (["--version"], ["events", "--json"]):
        with open("/dev/full", "wb") as full:
            ran = subprocess.run(
                [*shell.command, *arguments], env=shell.env, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60,
                check=False,
            )  # fmt: skip
        assert (ran.returncode, ran.stderr) == (1, "Error: The output can't be written: No space left on device.\n")
    (tmp_path / "blocked").write_text("a file, where a directory must be")
    blocked = shell.run("login", "--url", installation.url, "--key", installation.key,
                        XDG_CONFIG_HOME=str(tmp_path / "blocked"))  # fmt: skip
    assert (blocked.returncode, "Traceback" in blocked.stderr) == (1, False)
    assert str(tmp_path / "blocked") in blocked.stderr


def test_login_keeps_the_key_for_its_owner_and_its_server(installation: Account, tmp_path: Path) -> None:
    shell = Shell(tmp_path)
    assert "triggers login" in shell.run("events").stderr
    url = installation.url
    # Without a terminal, the key comes from the standard input.
    asked = subprocess.run(
        [*shell.command, "login", "--url", url], env=shell.env, input=f"{installation.key}\n", capture_output=True,
        text=True, timeout=60, check=True, start_new_session=True,
    )  # fmt: skip
    assert f"Logged in to {url}" in asked.stdout
    assert installation.key not in asked.stdout + asked.stderr
    stored = tmp_path / "config" / "triggers" / "config.json"
    assert stored.stat().st_mode & 0o777 == 0o600
    shell.ok("events")
    # The environment wins, and the stored key doesn't go to another server.
    assert "refuses" in shell.run("events", TRIGGERS_API_KEY="wrong").stderr
    assert "no API key for http://other.example" in shell.run("events", TRIGGERS_URL="http://other.example").stderr
    before = stored.read_text()
    refused = shell.run("login", "--url", url, "--key", "wrong")
    assert (refused.returncode, stored.read_text()) == (1, before)
    assert "refuses the API key" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "env", "says"),
    [
        (["events"], {"TRIGGERS_API_KEY": "wrong"}, "refuses the API key"),
        (["events"], {"TRIGGERS_API_KEY": "trk_ü"}, "An API key is ASCII text"),
        (["events"], {"TRIGGERS_URL": "http://127.0.0.1:1"}, "http://127.0.0.1:1 can't be reached"),
        (["events"], {"TRIGGERS_URL": "localhost"}, "http://"),
        (["events", "--status", "new"], {}, "?status"),
        (["events"], {"TRIGGERS_URL": "{url}/elsewhere"}, "Is it the right URL?"),
        (["login", "--url", "{url}/elsewhere", "--key", "x"], {}, "Is it the right URL? Nothing was stored."),
        (["events", "no-such-id"], {}, "not_found"),
        (["send", "a", "{"], {}, "isn't JSON"),
        (["send", "a", "@no-such-file"], {}, "no-such-file can't be read"),
        (["send", "not valid"], {}, "/type"),
        (["trigger", "no.such.type"], {}, "triggers send no.such.type"),
        (["retry", "no-such-id"], {}, "not_found"),
        (["listen", "--forward-to", "ftp://localhost"], {}, "not an http or https URL"),
        (["listen", "--forward-to", "3000", "--types", "*.a"], {}, "/event_types"),
        (["listen", "--forward-to", "3000", "--secret", "short"], {}, "secret"),
        (["listen", "--forward-to", "3000"], {"TRIGGERS_URL": "localhost"}, "begins with http:// or https://"),
        (["listen", "--forward-to", "3000"], {"TRIGGERS_API_KEY": "wrong"}, "refuses the API key"),
        (["listen", "--forward-to", "3000"], {"TRIGGERS_URL": "http://127.0.0.1:1"}, "can't be reached"),
    ],
)
def test_what_goes_wrong_is_a_sentence(shell: Shell, arguments: list[str], env: dict[str, str], says: str) -> None:
    url = shell.env["TRIGGERS_URL"]
    given = [argument.replace("{url}", url) for argument in arguments]
    ran = shell.run(*given, **{name: value.replace("{url}", url) for name, value in env.items()})
    assert ran.returncode == 1
    assert ran.stderr.startswith("Error: ")
    assert says in ran.stderr
    assert "Traceback" not in ran.stdout + ran.stderr
    assert "\x1b" not in ran.stdout + ran.stderr


def _take_terminal() -> None:
    """Let a process that begins have its standard input as its terminal, in whose foreground it is."""
    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


class Listening:
    """`triggers listen` as a process; in a terminal, if it is to have one."""

    def __init__(self, shell: Shell, *arguments: str, has_terminal: bool = False) -> None:
        self._ours, theirs = pty.openpty() if has_terminal else (None, None)
        self._process = subprocess.Popen(
            [*shell.command, "listen", *arguments], env=shell.env,
            stdin=subprocess.DEVNULL if theirs is None else theirs,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            **({"preexec_fn": _take_terminal} if has_terminal else {"start_new_session": True}),
        )  # fmt: skip
        self.text = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        if theirs is not None:
            os.close(theirs)

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.text += line

    def wait_for(self, pattern: str, count: int = 1) -> list[str]:
        """Wait until lines match, and return what did."""

        def found() -> list[str] | None:
            lines = re.findall(pattern, self.text, re.M)
            assert len(lines) >= count or self._process.poll() is None, self.text
            return lines if len(lines) >= count else None

        lines: list[str] = until(found, f"{pattern} did not come")
        return lines

    def press(self, key: str) -> None:
        """Press a key."""
        assert self._ours is not None
        os.write(self._ours, key.encode())

    def end(self, number: int | None = None) -> int:
        """Wait for its end, perhaps with a signal, and return its status."""
        if number is not None:
            self._process.send_signal(number)
        status = self._process.wait(30)
        self._reader.join(30)
        return status

    def kill(self) -> None:
        """End it whatever it does, and close its terminal."""
        self._process.kill()
        self._process.wait()
        if self._ours is not None:
            os.close(self._ours)


@contextlib.contextmanager
def listening(shell: Shell, *arguments: str, has_terminal: bool = False) -> Iterator[Listening]:
    """Run `triggers listen` for the block."""
    one = Listening(shell, *arguments, has_terminal=has_terminal)
    try:
        yield one
    finally:
        one.kill()


def inboxes(client: Client) -> list[str]:
    """Return the names of the inboxes that `triggers listen` has made."""
    return [one.inbox for one in client.subscriptions.list() if one.inbox and one.inbox.startswith("listen-")]


def test_listen_forwards_what_a_webhook_is_and_sends_it_again_on_a_key_press(
    shell: Shell, client: Client, event_type: str
) -> None:
    with Receiver() as local, Receiver() as subscribed:
        made = client.subscriptions.create(subscribed.url("/hook"), [event_type])
        forward = local.url("/hook")
        with listening(shell, "--forward-to", forward, "--types", f"{event_type}", has_terminal=True) as listen:
            [secret] = listen.wait_for(r"^Signing secret: (whsec_\S+)$")
            listen.wait_for("Press r to send")
            listen.press("r")
            listen.wait_for("no event yet")
            [name] = inboxes(client)
            data = msgspec.Raw(b'{"total": 12.50,\n "text": "\\u00e9"}')
            event_id = client.events.send(event_type, data).id
            [forwarded], [sent] = local.wait_for(1), subscribed.wait_for(1)
            assert forwarded.body == sent.body
            assert set(forwarded.headers) >= set(sent.headers)
            varying = {"host", "webhook-timestamp", "webhook-signature", "traceparent"}
            assert {
                name: value for name, value in forwarded.headers.items() if name in set(sent.headers) - varying
            } == {name: value for name, value in sent.headers.items() if name not in varying}
            assert verify(forwarded.body, forwarded.headers, secret)["id"] == event_id
            listen.wait_for(rf"^[\d:]+  {event_type}  {event_id}  -> 200  \d+ ms$")
            until(lambda: _statuses(client, event_id) == {"delivered"}, "not acknowledged")
            listen.press("r")
            _, again = local.wait_for(2)
            assert (again.body, again.headers["webhook-id"]) == (forwarded.body, event_id)
            verify(again.body, again.headers, secret)
            listen.wait_for(r"\(again\)  -> 200")
            listen.press("q")
            assert listen.end() == 0
            assert "Deleted the inbox." in listen.text
            assert name not in inboxes(client)
        client.subscriptions.delete(made.id)


def _statuses(client: Client, event_id: str) -> set[str]:
    return {one.status for one in client.events.get(event_id).deliveries}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_listen_shows_failures_and_deletes_its_inbox_when_it_is_told_to_end(
    shell: Shell, client: Client, event_type: str, number: int
) -> None:
    port = free_port()
    with listening(shell, "--forward-to", f"localhost:{port}/hook", "--types", f"{event_type}.*") as listen:
        listen.wait_for("^Signing secret")
        assert "Press r" not in listen.text
        client.events.send(f"{event_type}.a")
        listen.wait_for(rf"-> failed  \d+ ms  nothing can be reached at http://localhost:{port}/hook")

        def refuse(request: Received, count: int) -> Response:
            return Response(500, body=b"broken\n\x1b[2J")

        with Receiver(refuse, port=port):
            client.events.send(f"{event_type}.b")
            listen.wait_for(r"-> 500  \d+ ms  broken .\[2J$")
        assert len(inboxes(client)) == 1
        assert listen.end(number) == 0
    assert inboxes(client) == []
    assert "\x1b" not in listen.text


def test_listen_ends_when_its_inbox_is_gone(shell: Shell, client: Client, event_type: str) -> None:
    with Receiver() as local:
        local.hold()
        with listening(shell, "--forward-to", local.url("/"), "--types", event_type) as listen:
            listen.wait_for("^Signing secret")
            client.events.send(event_type)
            local.wait_for(1)
            [made] = [one for one in client.subscriptions.list() if one.inbox and one.inbox.startswith("listen-")]
            client.subscriptions.delete(made.id)
            local.release()
            listen.wait_for("inbox_not_found")
            assert listen.end() == 1
            assert "Traceback" not in listen.text


# --- installed, as the pages say --------------------------------------------------------------------

# What the package needs is installed already.
OFFLINE = {"PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory, installation: Account) -> Path:
    """Return a folder that looks like a checkout after `make run`, with an environment of its own.

    The environment sees the packages that this one has, but not the client.
    """
    folder = tmp_path_factory.mktemp("checkout")
    for name in os.listdir(ROOT):
        if not name.startswith("."):
            (folder / name).symlink_to(ROOT / name)
    environment = folder / ".venv"
    venv.create(environment, with_pip=False)
    [packages] = environment.glob("lib/python*/site-packages")
    (packages / "others.pth").write_text("\n".join(site.getsitepackages()))
    pip = environment / "bin" / "pip"
    pip.write_text(
        f'#!/bin/sh\ncommand=$1; shift\nexec {environment}/bin/python -m pip "$command" --no-build-isolation "$@"\n'
    )
    pip.chmod(0o755)
    return folder


class Page:
    """Runs the commands of a page in the checkout, in the place of localhost:8000 against the installation."""

    def __init__(self, name: str, checkout: Path, servers: Stack, home: Path) -> None:
        text = (ROOT / name).read_text()
        self.blocks = re.findall(r"^```(\w+)\n(.*?)^```$", text, re.S | re.M)
        self._checkout = checkout
        settings = {name: value for name, value in os.environ.items() if not name.startswith("TRIGGERS_")}
        self.env = {
            **settings, **servers.environment(), **OFFLINE, "HOME": str(home), "XDG_CONFIG_HOME": str(home / "config"),
        }  # fmt: skip
        self._replaced = {"localhost:8000": servers.url.removeprefix("http://")}

    def replace(self, text: str, by: str) -> None:
        """Read another text in the place of one of the page."""
        self._replaced[text] = by

    def sh(self, number: int) -> str:
        """Return a block of commands."""
        text: str = [text for kind, text in self.blocks if kind == "sh"][number]
        for old, new in self._replaced.items():
            text = text.replace(old, new)
        return text

    def start(self, script: str) -> subprocess.Popen[str]:
        """Start commands, in a session of their own."""
        return subprocess.Popen(
            ["bash", "-euc", script], cwd=self._checkout, env=self.env, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip

    def run(self, script: str) -> str:
        """Run commands to their end, and return what they print."""
        process = self.start(script)
        printed, _ = process.communicate(timeout=100)
        assert process.returncode == 0, printed
        return printed


@pytest.fixture(scope="module")
def page(checkout: Path, servers: Stack, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Page]:
    """Return a function that opens a page, after the README's commands have installed `triggers` and logged in."""
    servers.make_organization("Demo")
    home = tmp_path_factory.mktemp("home")
    readme = Page("README.md", checkout, servers, home)
    readme.run("".join(readme.sh(0).splitlines(keepends=True)[:2]))
    return lambda name: Page(name, checkout, servers, home)


@contextlib.contextmanager
def lines_of(process: subprocess.Popen[str]) -> Iterator[list[str]]:
    """Gather what a process prints, and end it and all that it has started with the block."""
    lines: list[str] = []
    assert process.stdout is not None
    reader = threading.Thread(target=lambda: lines.extend(iter(process.stdout.readline, "")), daemon=True)  # type: ignore[union-attr]
    reader.start()
    try:
        yield lines
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)
        reader.join(30)


def test_the_first_minute_of_the_readme(page: Callable[[str], Page], installation: Account) -> None:
    readme = page("README.md")
    # With the command line: its last line goes on.
    with lines_of(readme.start(readme.sh(0).splitlines()[2])) as shown:
        until(lambda: "Showing order.*" in "".join(shown), "listen didn't begin")
        receipt = readme.run(readme.sh(1))
        until(lambda: any(receipt.split()[0] in line for line in shown), "the event wasn't shown")
        until(lambda: '    "total": 12.50\n' in shown, "the data wasn't shown")
    assert "Deleted the inbox.\n" in shown
    # With curl.
    port = str(free_port())
    readme.replace("localhost:9000", f"localhost:{port}")
    readme.replace('("localhost", 9000)', f'("localhost", {port})')
    readme.replace("python3 -c", "exec python3 -uc")
    with lines_of(readme.start(readme.sh(2))) as received:
        made = readme.run(f"{readme.sh(3)}\necho; echo KEY=$KEY")
        subscription = re.search(r'"id":"([0-9a-f-]{36})"', made)
        key = re.search(r"^KEY=(\S+)$", made, re.M)
        assert subscription, made
        assert key
        assert '"secret":"whsec_' in made
        readme.replace("PASTE-THE-ID-HERE", subscription[1])
        assert "HTTP/1.1 202 Accepted" in readme.run(f"KEY={key[1]}\n{readme.sh(4)}")
        until(lambda: any('"data":{"id": 17, "total": 12.50}' in line for line in received), "nothing arrived")
        assert any(line.startswith("webhook-signature: v1,") for line in received)
        with Client(key[1], installation.url) as client:
            until(lambda: list(client.deliveries.list(subscription=subscription[1], status="delivered")), "no delivery")
        printed = readme.run(f"KEY={key[1]}\n" + readme.sh(4).replace("curl -i", ": curl"))
        shown_list = re.search(r'{"data":.*', printed)
        assert shown_list, printed
        [delivery] = json.loads(shown_list[0])["data"]
        assert (delivery["status"], delivery["attempt_count"]) == ("delivered", 1)
    demo = Account(installation.url, key[1])
    assert demo.call("DELETE", f"/api/subscriptions/{subscription[1]}").status == 204


@pytest.mark.slow
def test_the_commands_of_the_clients_page(page: Callable[[str], Page]) -> None:
    guide = page("docs/clients.md")
    assert guide.sh(0).splitlines() == page("README.md").sh(0).splitlines()[:2]
    printed = guide.run(guide.sh(1))
    assert re.search(r"^ID +TYPE +STATUS +CREATED$", printed, re.M)
    with Receiver() as receiver:
        guide.replace("http://localhost:3000", receiver.url(""))
        with lines_of(guide.start(guide.sh(2))) as shown:
            until(lambda: any("Signing secret" in line for line in shown), f"listen didn't begin: {shown}")
            secret = next(line.split()[-1] for line in shown if line.startswith("Signing secret"))
            guide.run(guide.sh(1).splitlines()[0].replace("order-17", "order-18"))
            [request] = receiver.wait_for(1)
            assert verify(request.body, request.headers, secret)["data"] == {"id": 17, "total": 12.5}
    names = set(re.findall(r"^\| `triggers (\w+)", (ROOT / "docs" / "clients.md").read_text(), re.M))
    assert names == {
        command.name or command.callback.__name__ for command in app.registered_commands if command.callback
    } | {"subscriptions"}


def test_what_was_installed_is_complete_and_its_readme_s_examples_run(
    page: Callable[[str], Page], installation: Account, tmp_path: Path, checkout: Path
) -> None:
    """The README's `pip install` has built a wheel and installed that: nothing leads to the sources."""
    package = page("clients/python/README.md")
    package.env |= {"TRIGGERS_URL": installation.url, "TRIGGERS_API_KEY": installation.key}
    script = tmp_path / "examples.py"
    script.write_text(
        "".join(text for kind, text in package.blocks if kind == "python")
        + "import importlib.metadata, triggers_client\n"
        "print('INSTALLED', triggers_client.__file__)\n"
        "print(*importlib.metadata.files('triggers-client'), sep='\\n')\n"
    )
    printed = package.run(f"cd {tmp_path} && {checkout}/.venv/bin/python -W error examples.py")
    assert re.search(r"^[0-9a-f-]{36} accepted$", printed, re.M)
    assert "['accepted', 'accepted']" in printed
    assert "sent before, with other data:" in printed
    assert f"INSTALLED {checkout}/.venv/" in printed
    names = {line for line in printed.splitlines() if line.startswith("triggers_client")}
    assert {"triggers_client/py.typed", "triggers_client/cli/main.py"} <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not any("test" in name for name in names)
