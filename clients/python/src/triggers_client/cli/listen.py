"""`triggers listen`: events of an inbox become signed requests to an endpoint on this machine."""

from __future__ import annotations

import asyncio
import contextlib
import os
import platform
import secrets
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

import httpx
import msgspec
import typer

from triggers_client.aio import AsyncClient
from triggers_client.cli import keys
from triggers_client.cli.login import RETRIES, Login
from triggers_client.cli.output import indented, printable, say
from triggers_client.errors import ConnectionFailedError, RateLimitedError, ServerError, TriggersError
from triggers_client.models import RawInboxEvent
from triggers_client.webhooks import sign

# So many at a time, each of which may take so long: their lease is longer than all of them together.
EVENTS = 10
FORWARD_SECONDS = 30.0
LEASE_SECONDS = EVENTS * FORWARD_SECONDS + 60.0
WAIT_SECONDS = 20.0
# At the end, how long to try to delete the inbox.
DELETE_SECONDS = 10.0
USER_AGENT = "TriggersAPI/1.0"
SHOWN_CHARACTERS = 200


@dataclass(frozen=True)
class Wishes:
    """Where to forward to (empty: only show the events), which types, and the secret to sign with."""

    forward_to: str
    types: Sequence[str]
    secret: str


def endpoint(text: str) -> str:
    """Return the URL for `http://localhost:3000/hook`, `localhost:3000/hook`, or `3000`.  Raises ValueError."""
    if text.partition("/")[0].isdigit():
        text = f"localhost:{text}"
    if "://" not in text:
        text = f"http://{text}"
    try:
        url = httpx.URL(text)
    except httpx.InvalidURL as error:
        raise ValueError(f"{text!r} is not a URL: {error}") from None
    if url.scheme not in {"http", "https"} or not url.host:
        raise ValueError(f"{text!r} is not an http or https URL")
    return str(url)


def body_of(event: RawInboxEvent) -> bytes:
    """Return the body of the webhook; `data` is the producer's text, byte for byte."""
    head = msgspec.json.encode({"id": event.id, "type": event.type, "timestamp": event.created_at})
    return head[:-1] + b',"data":' + bytes(event.payload) + b"}"


def headers_of(event: RawInboxEvent, body: bytes, timestamp: int, secret: str) -> dict[str, str]:
    """Return the headers of the webhook."""
    return {
        "content-type": "application/json",
        "user-agent": USER_AGENT,
        "webhook-id": event.id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": sign(body, event.id, timestamp, secret),
    }


class Forwarder:
    """Sends events to the endpoint, one after the other, and shows what came of each."""

    def __init__(self, http: httpx.AsyncClient, wishes: Wishes) -> None:
        self._http = http
        self._wishes = wishes
        self._turn = asyncio.Lock()
        self._last: RawInboxEvent | None = None

    async def forward(self, event: RawInboxEvent, note: str = "") -> None:
        """Send an event."""
        at = datetime.now().astimezone().strftime("%H:%M:%S")
        body = body_of(event)
        if not self._wishes.forward_to:
            say(f"{at}  {printable(event.type)}  {printable(event.id)}{note}\n{indented(body)}")
            self._last = event
            return
        async with self._turn:
            self._last = event
            headers = headers_of(event, body, int(time.time()), self._wishes.secret)
            began = time.perf_counter()
            try:
                response = await asyncio.wait_for(
                    self._http.post(self._wishes.forward_to, content=body, headers=headers), FORWARD_SECONDS
                )
            except (httpx.HTTPError, TimeoutError) as error:
                outcome, detail = typer.style("failed", fg="red"), self._explain(error)
            else:
                outcome = typer.style(str(response.status_code), fg="green" if response.is_success else "red")
                detail = "" if response.is_success else printable(" ".join(response.text.split()))[:SHOWN_CHARACTERS]
            took = (time.perf_counter() - began) * 1000
        ends = f"  {detail}" if detail else ""
        say(f"{at}  {printable(event.type)}  {printable(event.id)}{note}  -> {outcome}  {took:.0f} ms{ends}")

    async def resend(self) -> None:
        """Send the last event once more."""
        if self._last is None:
            say("There is no event yet.")
            return
        await self.forward(self._last, " (again)")

    def _explain(self, error: Exception) -> str:
        if isinstance(error, httpx.ConnectError):
            return f"nothing can be reached at {self._wishes.forward_to}: start your server, then send it again"
        if isinstance(error, TimeoutError | httpx.TimeoutException):
            return f"no response within {FORWARD_SECONDS:.0f} seconds"
        return printable(str(error)) or type(error).__name__


async def listen(login: Login, wishes: Wishes) -> None:
    """Forward events until somebody ends it.  Raises TriggersError."""
    ended = asyncio.Event()
    with _signals(ended):
        async with (
            AsyncClient(login.api_key, login.url, max_retries=RETRIES) as client,
            # What HTTP_PROXY names isn't meant for an endpoint on this machine.
            httpx.AsyncClient(timeout=FORWARD_SECONDS, trust_env=False) as http,
        ):
            name = f"listen-{secrets.token_hex(6)}"
            inbox = await client.subscriptions.create_inbox(
                name, wishes.types, description=f"triggers listen on {platform.node()}, process {os.getpid()}"[:200]
            )
            try:
                await _run(client, Forwarder(http, wishes), name, wishes, ended)
            finally:
                await _delete(login, inbox.id)


async def _run(client: AsyncClient, forwarder: Forwarder, inbox: str, wishes: Wishes, ended: asyncio.Event) -> None:
    resends: set[asyncio.Task[None]] = set()

    def pressed(key: str) -> None:
        if key in {"q", "Q", "\x04"}:
            ended.set()
        elif key in {"r", "R"}:
            task = asyncio.ensure_future(forwarder.resend())
            resends.add(task)
            task.add_done_callback(resends.discard)

    types = ", ".join(wishes.types)
    if wishes.forward_to:
        say(f"Forwarding {types} to {wishes.forward_to}")
        say(f"Signing secret: {wishes.secret}")
    else:
        say(f"Showing {types}; --forward-to sends them to a server of yours.")
    with keys.watched(pressed):  # before anybody is told of the keys: what was typed earlier is discarded
        if keys.are_available():
            say(f"Press r to {'send' if wishes.forward_to else 'show'} the last event again, q to quit.")
        say()
        pulling = asyncio.ensure_future(_pull(client, forwarder, inbox))
        waiting = asyncio.ensure_future(ended.wait())
        await asyncio.wait({pulling, waiting}, return_when=asyncio.FIRST_COMPLETED)
        for task in (waiting, pulling, *resends):
            task.cancel()
        await asyncio.gather(waiting, *resends, return_exceptions=True)
        with contextlib.suppress(asyncio.CancelledError):
            await pulling


async def _pull(client: AsyncClient, forwarder: Forwarder, inbox: str) -> None:
    """Fetch, forward, and acknowledge.  Raises TriggersError for what trying again doesn't help."""
    is_away = False
    while True:
        try:
            fetched = await client.inbox.fetch_raw(inbox, limit=EVENTS, wait=WAIT_SECONDS, visibility=LEASE_SECONDS)
            if is_away:
                say("The server is back.")
            is_away = False
            for event in fetched.events:
                await forwarder.forward(event)
                await client.inbox.ack([event.id], lease_id=fetched.lease_id, inbox=inbox)
        except (ConnectionFailedError, ServerError, RateLimitedError) as error:
            if not is_away:
                say(f"The server doesn't respond ({error.detail}); trying again.")
            is_away = True
            await asyncio.sleep(error.retry_after or 1.0)


async def _delete(login: Login, inbox_id: str) -> None:
    """Delete the inbox, on a separate connection."""
    try:
        async with (
            asyncio.timeout(DELETE_SECONDS),
            AsyncClient(login.api_key, login.url, max_retries=RETRIES) as client,
        ):
            await client.subscriptions.delete(inbox_id)
    except (TriggersError, TimeoutError) as error:
        say(f"The inbox couldn't be deleted ({error}). Do it later: triggers subscriptions delete {inbox_id}")
    else:
        say("Deleted the inbox.")


@contextlib.contextmanager
def _signals(ended: asyncio.Event) -> Iterator[None]:
    """Let the signals that end a program set `ended`, once: the second one ends it at once."""
    loop = asyncio.get_running_loop()
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]

    def end() -> None:
        ended.set()
        remove()

    def remove() -> None:
        for number in numbers:
            with contextlib.suppress(NotImplementedError, ValueError):
                loop.remove_signal_handler(number)

    for number in numbers:
        with contextlib.suppress(NotImplementedError):  # on Windows, Ctrl-C raises KeyboardInterrupt
            loop.add_signal_handler(number, end)
    try:
        yield
    finally:
        remove()
