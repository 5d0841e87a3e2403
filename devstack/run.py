"""`make run`: start everything, send a first webhook, say what happened, stay up until Ctrl-C."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import secrets
import signal
import stat
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from devstack.demo_account import ADMIN_USER
from devstack.errors import DevstackError
from devstack.http_receiver import OK, Received, Receiver, Response, verify
from devstack.locks import locked
from devstack.processes import ROOT, run_python
from devstack.sockets import why_port_is_not_free
from devstack.stack import ENVIRONMENT, Stack
from devstack.supervisor import Child, how_it_ended
from devstack.waiting import wait_until

LOCAL = ROOT / ".local"
ENV_FILE = LOCAL / "env"
DEMO_FILE = LOCAL / "demo.json"
DELIVERY_SECONDS = 60
LOOK_SECONDS = 0.5

# What the demo needs beside the defaults; anything set in the environment wins.
DEFAULTS = {name: ENVIRONMENT[name] for name in ("ENVIRONMENT", "ALLOWED_HOSTS", "WEBHOOK_ALLOWED_SUBNETS")}


def say(text: str = "") -> None:
    """Print a line at once."""
    print(text, flush=True)


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, stat.S_IRUSR | stat.S_IWUSR)
    with os.fdopen(descriptor, "w") as handle:
        handle.write(text)
    temporary.rename(path)


def read_env_file() -> dict[str, str]:
    """Return what an earlier run left in .local/env."""
    try:
        lines = ENV_FILE.read_text().splitlines()
    except OSError:
        return {}
    return dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))


def read_demo() -> dict[str, str]:
    """Return what an earlier run remembered of its demo organization."""
    try:
        remembered: dict[str, str] = json.loads(DEMO_FILE.read_text())
    except (OSError, ValueError):
        return {}
    return remembered


class Api:
    """The public HTTP API, as the demo's integrator."""

    def __init__(self, base: str, key: str) -> None:
        self.base = base
        self.key = key

    def call(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Return status and JSON of a request.  Raises DevstackError when there is no response."""
        request = urllib.request.Request(
            self.base + path,
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"X-API-Key": self.key, "Content-Type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return response.status, json.loads(response.read() or b"null")
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read() or b"null")
        except OSError as error:
            raise DevstackError(f"The API at {self.base} does not respond: {error}") from None


class Run:
    """Everything that this run started, so that it can be stopped again."""

    def __init__(self, port: int) -> None:
        self.announced = False
        self.stack = Stack(LOCAL, choose_environment(), port)
        self._stops: list[tuple[str, Callable[[], object]]] = []
        self.watched: list[Child] = []
        self.ended = threading.Event()
        self._arrived: dict[str, Received] = {}

    # --- starting -----------------------------------------------------------------------------------

    def start_servers(self) -> dict[str, str]:
        """Start the servers that the environment doesn't name; return the environment of every process."""
        self._stops.append(("the servers", self.stack.stop_servers))
        self.stack.start_servers()
        env = self.stack.environment()
        write_private(ENV_FILE, "".join(f"{name}={value}\n" for name, value in env.items()))
        os.environ.update(env)
        return env

    def start_receiver(self, port: int, secret: Callable[[], str]) -> Receiver:
        """Start the demo's receiver on its old port, or on another one when that is taken."""

        def arrived(request: Received, number: int) -> Response:
            self._arrived[request.headers.get("webhook-id", "")] = request
            right = verify(secret(), request) if secret() else False
            event_type = request.document.get("type", "?")
            state = "signature verified" if right else "SIGNATURE WRONG"
            if self.announced:
                say(f"  Endpoint received {event_type} {request.headers.get('webhook-id')} ({state})")
            return OK

        if port and why_port_is_not_free(port):
            port = 0
        receiver = Receiver(arrived, port=port, keep=False)
        receiver.start()
        self._stops.append(("receiver", receiver.stop))
        return receiver

    def start_processes(self) -> str:
        """Start web and worker; return the API's base URL."""
        web, worker = self.stack.make_web(), self.stack.make_worker()
        for process in (web, worker):
            self._stops.append((process.name, process.start().stop))
        web.wait_for_url(f"{self.stack.url}/api/health")
        # The servers first: what they take down with them is not the reason.
        self.watched = [*self.stack.servers, web, worker]
        return self.stack.url

    # --- the first webhook ----------------------------------------------------------------------------

    def arrival(self, event_id: str) -> Received | None:
        """Return the request that brought an event to the demo's receiver."""
        return self._arrived.get(event_id)

    # --- staying and stopping -------------------------------------------------------------------------

    def stay(self) -> int:
        """Wait for Ctrl-C (0) or the end of a server or a process (1)."""
        while not self.ended.wait(LOOK_SECONDS):
            for child in self.watched:
                if not child.alive:
                    say(how_it_ended(child))
                    return 1
        return 0

    def stop(self) -> None:
        """Stop what this run started, the last first."""
        for name, stop in reversed(self._stops):
            try:
                stop()
            except Exception as error:
                say(f"Could not stop {name}: {error}")
        self._stops.clear()


def choose_environment() -> dict[str, str]:
    """Return the settings of every process: the environment's, then an earlier run's, then new ones."""
    kept = read_env_file()
    env = {name: os.environ.get(name, default) for name, default in DEFAULTS.items()}
    for name, new in (
        ("SECRET_KEY", secrets.token_urlsafe(48)),
        ("SECRETS_ENCRYPTION_KEYS", base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()),
    ):
        env[name] = os.environ.get(name) or kept.get(name) or new
    env["ADMIN_PASSWORD"] = kept.get("ADMIN_PASSWORD") or secrets.token_urlsafe(12)
    return env | {name: os.environ[name] for name in ("DATABASE_URL", "REDIS_URL") if os.environ.get(name)}


def choose_port() -> int:
    """Return PORT (default 8000).  Raises DevstackError when it is wrong or can't be had."""
    text = os.environ.get("PORT", "8000")
    if not text.isascii() or not text.isdigit() or len(text) > 5 or not 1 <= int(text) <= 65535:
        raise DevstackError(f"PORT={text} is not a port number.")
    port = int(text)
    why_not = why_port_is_not_free(port)
    if why_not:
        another = port + 1 if 1024 <= port < 65535 else 8000
        raise DevstackError(f"Port {port} can't be used ({why_not}); choose another one: make run PORT={another}")
    return port


@contextlib.contextmanager
def only_run() -> Iterator[None]:
    """Hold this folder for one run at a time: its servers stop with the run that ends first."""
    LOCAL.mkdir(parents=True, exist_ok=True)
    try:
        with locked(LOCAL / "run.lock", wait=False):
            yield
    except BlockingIOError:
        raise DevstackError(
            "make run is already running in this folder. To run it twice, use a second clone."
        ) from None


def read_settings(env: Mapping[str, str]) -> dict[str, Any]:
    """Return the value of every setting.  Raises DevstackError with a line for each that is wrong."""
    from django.core.exceptions import ImproperlyConfigured

    from triggers_project.options import read_options

    try:
        return read_options(env)
    except ImproperlyConfigured as error:
        raise DevstackError(str(error)) from None


def check_servers(env: Mapping[str, str]) -> None:
    """Raise DevstackError when the database or Redis doesn't respond."""
    import psycopg
    import redis

    try:
        psycopg.connect(env["DATABASE_URL"], connect_timeout=5).close()
    except psycopg.Error as error:
        raise DevstackError(
            f"PostgreSQL does not respond at DATABASE_URL: {str(error).strip().splitlines()[-1]}"
        ) from None
    try:
        redis.Redis.from_url(env["REDIS_URL"], socket_connect_timeout=5, socket_timeout=5).ping()
    except (redis.RedisError, ValueError, OSError) as error:
        raise DevstackError(f"Redis does not respond at REDIS_URL: {error}") from None


def ensure_account() -> str:
    """Make the demo's admin user and organization unless they are there; return an API key that works."""
    return run_python("-m", "devstack.demo_account", env={"DEMO_KEY": read_demo().get("key", "")})


def ensure_subscription(api: Api, url: str) -> dict[str, str]:
    """Return what is remembered of the demo's subscription, made anew or moved to `url` where needed."""
    demo = read_demo()
    if demo.get("subscription"):
        path = f"/api/subscriptions/{demo['subscription']}"
        status, found = api.call("GET", path)
        if status == 200 and found["status"] == "active":
            if found["url"] != url:
                status, found = api.call("PATCH", path, {"url": url})
            if status == 200:
                return demo
    status, made = api.call(
        "POST", "/api/subscriptions", {"url": url, "event_types": ["*"], "description": "The demo's own endpoint"}
    )
    if status == 201:
        demo |= {"subscription": made["id"], "secret": made["secret"]}
    else:
        # Without an address that may be called there is nothing to deliver to; everything else works.
        reasons = "; ".join(error["detail"] for error in made.get("errors", [])) or made.get("detail", "")
        demo["refused"] = reasons
    return demo


def first_webhook(run: Run, api: Api) -> list[str]:
    """POST one event, wait for its delivery, and return what happened as lines."""
    sent = time.monotonic()
    status, event = api.call("POST", "/api/events", {"type": "demo.hello", "data": {"message": "Hello from make run"}})
    if status != 202:
        raise DevstackError(f"The API refused the demo's event: {event.get('detail')}")
    accepted = (time.monotonic() - sent) * 1000
    lines = [f"Event      {event['id']}  accepted in {accepted:.0f} ms"]
    delivery = _wait_for_delivery(api, event["id"])
    if delivery is None:
        return [*lines, "Delivery   none: no subscription wants the event"]
    attempt = delivery["attempts"][-1] if delivery["attempts"] else None
    arrival = run.arrival(event["id"])
    if delivery["status"] == "delivered" and arrival is not None and attempt is not None:
        latency = (arrival.monotonic - sent) * 1000
        lines.append(
            f"Delivery   {delivery['id']}  delivered: {latency:.0f} ms from the POST to the endpoint, "
            f"which returned {attempt['status_code']} in {attempt['duration_ms']:.0f} ms"
        )
    else:
        why = f"{attempt['error']}: {attempt['error_detail']}" if attempt else "not attempted yet"
        lines.append(f"Delivery   {delivery['id']}  {delivery['status']} ({why})")
    return lines


def _wait_for_delivery(api: Api, event_id: str) -> Any:
    """Return the event's first delivery once it was tried; None when the event has none."""

    def get_event() -> Any:
        _, event = api.call("GET", f"/api/events/{event_id}")
        return event if event["status"] == "processed" or event["deliveries"] else None

    def get_delivery() -> Any:
        return api.call("GET", f"/api/deliveries/{deliveries[0]['id']}")[1]

    try:
        deliveries = wait_until(get_event, timeout=DELIVERY_SECONDS)["deliveries"]
    except TimeoutError:
        raise DevstackError("The event was not processed in time; see .local/log/worker_1.log") from None
    if not deliveries:
        return None
    with contextlib.suppress(TimeoutError):
        wait_until(lambda: get_delivery()["attempts"], timeout=DELIVERY_SECONDS)
    return get_delivery()


def main() -> int:
    """Run the demo; returns the exit code."""
    try:
        port = choose_port()
        with only_run():
            return _run_demo(port)
    except DevstackError as error:
        print(error, file=sys.stderr, flush=True)
        return 1


def _run_demo(port: int) -> int:
    run = Run(port)
    try:
        _end_on_signals(run)
        say("Starting PostgreSQL and Valkey ...")
        env = run.start_servers()
        options = read_settings(os.environ)
        check_servers(env)
        if run.stack.migrate():
            say("The local data was of older migrations and was deleted.")
        key = ensure_account()
        remembered = {**read_demo(), "key": key}
        write_private(DEMO_FILE, json.dumps(remembered))
        say("Starting web and worker ...")
        secret: dict[str, str] = {"value": remembered.get("secret", "")}
        receiver = run.start_receiver(int(remembered.get("port", "0")), lambda: secret["value"])
        base = run.start_processes() + options["URL_PREFIX"]
        api = Api(base, key)
        # By name, so that a policy which refuses the address shows at the delivery, as it would in production.
        demo = ensure_subscription(api, f"http://localhost:{receiver.port}/webhooks")
        secret["value"] = demo.get("secret", "")
        refused = demo.pop("refused", "")
        write_private(DEMO_FILE, json.dumps({**demo, "port": str(receiver.port)}))
        lines = first_webhook(run, api)
        if refused:
            lines.append(f"           The API refused the demo's endpoint: {refused} (see WEBHOOK_ALLOWED_SUBNETS)")
        _report(lines, f"{base}/{options['ADMIN_PATH']}/", env, api)
        run.announced = True
        return run.stay()
    except KeyboardInterrupt:
        return 0
    finally:
        _ignore_signals()
        if run.announced:
            say("Stopping ...")
        run.stop()


def _report(lines: list[str], admin: str, env: Mapping[str, str], api: Api) -> None:
    say()
    for line in lines:
        say(line)
    say()
    say(f"Admin      {admin}  user {ADMIN_USER}  password {env['ADMIN_PASSWORD']}")
    say(f"API        {api.base}/api/docs")
    say("Logs       .local/log/")
    say()
    say("Send another event:")
    say(f"  curl -i {api.base}/api/events -H 'X-API-Key: {api.key}' -H 'Content-Type: application/json' \\")
    say("""    -d '{"type": "order.created", "data": {"id": 1}}'""")
    say()
    say("Ctrl-C stops everything.")


def _end_on_signals(run: Run) -> None:
    def end(number: int, frame: object) -> None:
        first = not run.ended.is_set()
        run.ended.set()
        if first and not run.announced:
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, end)
    signal.signal(signal.SIGTERM, end)


def _ignore_signals() -> None:
    """Let nothing interrupt the stopping."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


if __name__ == "__main__":
    sys.exit(main())
