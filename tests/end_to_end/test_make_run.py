"""`make run`, as somebody does who has just cloned the repository: in a copy of the checkout, on its own ports."""

from __future__ import annotations

import contextlib
import http.cookiejar
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from devstack.postgres import Postgres
from devstack.processes import ROOT
from devstack.sockets import free_port
from devstack.valkey import Valkey
from devstack.waiting import wait_until
from tests.system import Account
from triggers_project.options import OPTIONS

pytestmark = [pytest.mark.end_to_end, pytest.mark.timeout(300)]

# What Python compiled comes along: it only saves compiling everything once more.  Not the files that it is about to
# rename, in another process, to what they are for.
_NOT_IN_A_CLONE = shutil.ignore_patterns(
    ".git", ".venv", ".local", ".*_cache", ".hypothesis", ".coverage*", "staticfiles", "*.pyc.*"
)
START_SECONDS = 150.0


def _clean_environment() -> dict[str, str]:
    """Return the environment without what the tests' own servers need."""
    ours = {option.name for option in OPTIONS} | {"DJANGO_SETTINGS_MODULE", "TEST_API_URL", "TEST_API_KEY"}
    return {name: value for name, value in os.environ.items() if name not in ours}


class Clone:
    """A fresh copy of the checkout."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        shutil.copytree(ROOT, folder, ignore=_NOT_IN_A_CLONE)

    def python(self, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Run a program of the clone to its end."""
        return subprocess.run(
            [sys.executable, *arguments], cwd=self.folder, env={**_clean_environment(), **env}, capture_output=True,
            text=True, timeout=100, check=False,
        )  # fmt: skip

    def clean(self) -> None:
        """Run `make clean`'s part that stops servers and deletes their data."""
        cleaned = self.python("-m", "devstack.clean")
        assert cleaned.returncode == 0, cleaned.stderr
        assert not self.servers_run()

    def processes(self) -> list[str]:
        """Return the command lines of live processes that work in the clone or name it."""
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            try:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
                cwd = os.readlink(entry / "cwd")
            except OSError:
                continue
            if str(self.folder) in command or cwd.startswith(str(self.folder)):
                found.append(command)
        return found

    def worker(self) -> int | None:
        """Return the process id of the worker, which is in a session of its own."""
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                works_here = os.readlink(entry / "cwd") == str(self.folder)
                if works_here and b"manage.py\0rqworker" in (entry / "cmdline").read_bytes():
                    pid = int(entry.name)
                    if os.getsid(pid) == pid:
                        return pid
        return None

    def servers_run(self) -> bool:
        """Return whether the clone's PostgreSQL or Valkey runs, wherever its data is."""
        local = self.folder / ".local"
        return Postgres(local / "postgres").running or Valkey(local / "valkey").running


class Running:
    """`make run` in a clone, in a terminal session of its own."""

    def __init__(self, clone: Clone, port: int, **env: str) -> None:
        self.clone = clone
        self.port = port
        self.lines: list[str] = []
        self._process = subprocess.Popen(
            [sys.executable, "-m", "devstack.run"], cwd=clone.folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, env={**_clean_environment(), "PORT": str(port), **env},
            start_new_session=True,
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.lines.append(line.rstrip("\n"))

    @property
    def text(self) -> str:
        """Return what it has printed so far."""
        return "\n".join(self.lines)

    @property
    def is_up(self) -> bool:
        """Return whether it still runs."""
        return self._process.poll() is None

    def wait_for(self, pattern: str, seconds: float = START_SECONDS) -> re.Match[str]:
        """Wait until what is printed matches; return the match."""

        def search() -> re.Match[str] | None:
            found = re.search(pattern, self.text, re.M)
            assert found or self.is_up or self._reader.is_alive(), f"it ended:\n{self.text}"
            return found

        found = wait_until(search, f"{pattern} did not come", seconds)
        assert found is not None
        return found

    def interrupt(self) -> int:
        """Press Ctrl-C: SIGINT to the whole group in the foreground; return the exit code."""
        os.killpg(self._process.pid, signal.SIGINT)
        return self.wait()

    def wait(self) -> int:
        """Wait until it ends; return the exit code."""
        code = self._process.wait(90)
        self._reader.join(10)
        return code

    def end(self) -> None:
        """End it if it still runs."""
        if self.is_up:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(60)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)

    @property
    def account(self) -> Account:
        """Return the demo's organization, by the key in the printed curl line."""
        found = self.wait_for(r"X-API-Key: (trk_\w+?_[\w-]+)'")
        return Account(f"http://127.0.0.1:{self.port}", found[1])


@pytest.fixture
def clones(tmp_path: Path) -> Iterator[list[Clone]]:
    """Return two clones; one stands in a folder that nobody else may enter."""
    closed = tmp_path / "closed to others"
    closed.mkdir(mode=0o700)
    made = [Clone(closed / "triggers"), Clone(tmp_path / "second")]
    modes = {folder: folder.stat().st_mode for folder in (closed, *tmp_path.parents)}
    yield made
    for clone in made:
        clone.clean()
    assert modes == {folder: folder.stat().st_mode for folder in modes}, "no permission of a folder above is touched"


def _paste(line: str) -> tuple[int, str]:
    """Do what the printed curl line does, with curl where there is one; return status and body."""
    words = shlex.split(line.replace("\\\n", " "))
    assert words[:2] == ["curl", "-i"]
    if shutil.which("curl"):
        done = subprocess.run([*words, "-s"], capture_output=True, text=True, timeout=60, check=True)
        return int(done.stdout.split()[1]), done.stdout
    headers = dict(words[at + 1].split(": ", 1) for at, word in enumerate(words) if word == "-H")
    request = urllib.request.Request(words[2], words[words.index("-d") + 1].encode(), headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        return answer.status, answer.read().decode()


def _log_in(url: str, user: str, password: str) -> str:
    """Log in to the admin as a browser does; return the page after it."""
    cookies = http.cookiejar.CookieJar()
    browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(cookies))
    page = browser.open(f"{url}login/", timeout=60).read().decode()
    token = re.search(r'name="csrfmiddlewaretoken" value="([^"]+)"', page)
    assert token
    form = {
        "csrfmiddlewaretoken": token[1],
        "username": user,
        "password": password,
        "next": urllib.parse.urlsplit(url).path,
    }
    request = urllib.request.Request(f"{url}login/", urllib.parse.urlencode(form).encode(), {"Referer": url})
    shown: str = browser.open(request, timeout=60).read().decode()
    return shown


def test_make_run_shows_a_first_webhook_stays_up_and_leaves_nothing_behind(clones: list[Clone]) -> None:
    clone, second = clones
    port = free_port()
    first = Running(clone, port)
    beside: Running | None = None
    try:
        # What happened to the event, the admin's door, and a line to paste.
        event = first.wait_for(r"^Event +([0-9a-f-]{36})  accepted in \d+ ms$")[1]
        first.wait_for(r"^Delivery +[0-9a-f-]{36}  delivered: \d+ ms from the POST to the endpoint, which returned 200")
        admin = first.wait_for(r"^Admin +(\S+)  user (\S+)  password (\S+)$")
        line = first.wait_for(r"^  (curl -i [^\n]+\n[^\n]+)$")[1]
        first.wait_for(r"^Ctrl-C stops everything\.$")
        page = _log_in(*admin.groups())
        assert "Site administration" in page or "Operations" in page
        styles = re.findall(r'href="(/static/[^"]+\.css)"', page)
        assert styles
        for style in styles:
            assert urllib.request.urlopen(f"http://127.0.0.1:{port}{style}", timeout=60).status == 200
        status, body = _paste(line)
        assert status == 202
        pasted = re.search(r'"id":"([0-9a-f-]{36})"', body)
        assert pasted
        first.wait_for(rf"Endpoint received order\.created {pasted[1]} \(signature verified\)", 60)

        # manage.py in the same folder talks to the same servers without further settings.
        made = clone.python("manage.py", "create_api_key", "Demo")
        assert made.returncode == 0, made.stderr
        captured = Account(first.account.url, made.stdout.strip())
        assert captured.call("GET", f"/api/events/{event}").document["status"] == "processed"

        # A second start says why not, in one line, and changes nothing.
        busy = clone.python("-m", "devstack.run", PORT=str(port))
        assert (busy.returncode, busy.stdout) == (1, "")
        assert re.fullmatch(rf"Port {port} can't be used \(.+\); choose another one: make run PORT=\d+\n", busy.stderr)
        again = clone.python("-m", "devstack.run", PORT=str(free_port()))
        assert (again.returncode, again.stdout) == (1, "")
        assert again.stderr.startswith("make run is already running in this folder")
        assert len(again.stderr.splitlines()) == 1

        # Another clone runs beside it, under a path; with no address allowed its delivery is refused, and it stays up.
        beside = Running(second, free_port(), WEBHOOK_ALLOWED_SUBNETS="", URL_PREFIX="triggers")
        beside.wait_for(r"^Delivery +[0-9a-f-]{36}  retrying \(address_not_allowed: .*\)$")
        beside.wait_for(r"^Ctrl-C stops everything\.$")
        root = f"http://127.0.0.1:{beside.port}/triggers"
        beside.wait_for(rf"^Admin +{root}/admin/  user ")
        beside.wait_for(rf"^API +{root}/api/docs$")
        line = beside.wait_for(r"^  (curl -i [^\n]+\n[^\n]+)$")[1]
        assert f"{root}/api/events" in line
        assert _paste(line)[0] == 202
        assert beside.is_up
        assert beside.account.call("GET", "/api/me").status == 200
        assert first.account.call("GET", "/api/me").status == 200
        assert first.account.key != beside.account.key

        # Ctrl-C stops everything that was started, and nothing else.
        assert first.interrupt() == 0
        assert clone.processes() == []
        assert not clone.servers_run()
        assert "Traceback" not in first.text
        assert beside.account.call("GET", "/api/me").status == 200
        assert beside.interrupt() == 0
        assert second.processes() == []

        # A second start finds its data again.
        first = Running(clone, port)
        first.wait_for(r"^Ctrl-C stops everything\.$")
        found = captured.call("GET", f"/api/events/{pasted[1]}")
        assert found.document["deliveries"][0]["status"] == "delivered"
        assert first.interrupt() == 0
        assert clone.processes() == []
    finally:
        first.end()
        if beside is not None:
            beside.end()


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clone]:
    """Return a clone, whose data the next start finds again."""
    made = Clone(tmp_path_factory.mktemp("clone") / "triggers")
    yield made
    made.clean()


@pytest.mark.parametrize(
    ("name", "log"), [("PostgreSQL", "postgres.log"), ("Valkey", "valkey.log"), ("worker_1", "worker_1.log")]
)
def test_when_a_part_of_it_ends_make_run_says_which_one_and_stops_the_others(clone: Clone, name: str, log: str) -> None:
    running = Running(clone, free_port())
    try:
        running.wait_for(r"^Ctrl-C stops everything\.$")
        local = clone.folder / ".local"
        pids = {
            "PostgreSQL": lambda: Postgres(local / "postgres").pid,
            "Valkey": lambda: Valkey(local / "valkey").pid,
            "worker_1": clone.worker,
        }
        pid = pids[name]()
        assert pid
        os.kill(pid, signal.SIGKILL)
        told = running.wait_for(
            rf"^{name} has ended \(killed by SIGKILL\)\. The last line of its log, (\S+): \S.*$", 10
        )
        assert Path(told[1]).name == log
        assert Path(told[1]).exists()
        assert running.wait() == 1
        after = running.text[running.text.index(told[0]) :].splitlines()
        assert after == [told[0], "Stopping ..."]
        assert clone.processes() == []
        assert not clone.servers_run()
    finally:
        running.end()


@pytest.fixture(scope="module")
def idle_clone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clone]:
    """Return a clone in which nothing ever comes up."""
    clone = Clone(tmp_path_factory.mktemp("idle") / "triggers")
    yield clone
    clone.clean()


@pytest.mark.parametrize(
    ("env", "reason"),
    [
        ({"PORT": "0"}, "PORT=0 is not a port number."),
        ({"PORT": "http"}, "PORT=http is not a port number."),
        ({"DATABASE_URL": "postgres://nobody@127.0.0.1:1/nothing"}, "PostgreSQL does not respond at DATABASE_URL: "),
        ({"REDIS_URL": "redis://127.0.0.1:1/0"}, "Redis does not respond at REDIS_URL: "),
        ({"DELIVERY_TIMEOUT": "soon"}, "DELIVERY_TIMEOUT is wrong: expected a duration"),
    ],
)
def test_what_keeps_make_run_from_starting_is_told_in_one_line(
    idle_clone: Clone, env: dict[str, str], reason: str
) -> None:
    done = idle_clone.python("-m", "devstack.run", **{"PORT": str(free_port()), **env})
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert reason in line
    assert "Traceback" not in done.stdout + done.stderr
    assert idle_clone.processes() == []
    assert not idle_clone.servers_run()
