"""The commands."""

from __future__ import annotations

import asyncio
import itertools
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
import typer

from triggers_client import __version__
from triggers_client.cli import login as logins
from triggers_client.cli.listen import Wishes, endpoint
from triggers_client.cli.listen import listen as listen_until_ended
from triggers_client.cli.login import RETRIES, Login, NotLoggedInError
from triggers_client.cli.output import complain, indented, note, print_json, print_table, say
from triggers_client.client import Client
from triggers_client.configuration import ConfigurationError
from triggers_client.errors import AuthenticationError, ConnectionFailedError, TriggersError
from triggers_client.json_text import characters
from triggers_client.models import DeliveryWithAttempts
from triggers_client.webhooks import new_secret, sign

T = TypeVar("T")

app = typer.Typer(name="triggers", no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)
subscriptions_app = typer.Typer(
    invoke_without_command=True, rich_markup_mode=None, help="List, create, change, and delete subscriptions."
)
app.add_typer(subscriptions_app, name="subscriptions")

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Limit = Annotated[int, typer.Option(min=1, metavar="N", help="List at most this many.")]


class UsageError(Exception):
    """What was typed can't be done."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command, the process's own unless there are arguments; return the exit status."""
    # For people, a sentence is enough; where in the code it happened isn't theirs to know.
    warnings.showwarning = lambda message, *_: note(f"{message}.")
    try:
        app(arguments)
    except (NotLoggedInError, ConfigurationError, UsageError) as error:
        complain(str(error))
    except AuthenticationError as error:
        complain(f"{logins.default_url()} refuses the API key: {error.detail} Run `triggers login`.")
    except ConnectionFailedError as error:
        complain(
            f"{logins.default_url()} can't be reached: {error.detail}. Is the URL right, and is the server running?"
        )
    except TriggersError as error:
        complain(str(error))
    except OSError as error:  # a full disk, or a directory without permission
        complain(f"{error.filename or 'The output'} can't be written: {error.strerror}.")
    except KeyboardInterrupt:
        return 130
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(bool(ended.code))
    else:
        return 0
    return 1


def connect() -> Client:
    """Return a client of the server that is logged in to.  Raises NotLoggedInError, ConfigurationError."""
    login = logins.current()
    return Client(login.api_key, login.url, max_retries=RETRIES)


def read_data(text: str) -> msgspec.Raw:
    """Return the JSON that is given: itself, `@file`, or `-` for the standard input.  Raises UsageError."""
    if text == "-":
        raw = sys.stdin.buffer.read()
    elif text.startswith("@"):
        try:
            raw = Path(text[1:]).read_bytes()
        except OSError as error:
            raise UsageError(f"{text[1:]} can't be read: {error.strerror}.") from None
    else:
        raw = text.encode()
    try:
        msgspec.json.decode(characters(raw), type=msgspec.Raw)
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise UsageError(f"The data isn't JSON: {error}.") from None
    return msgspec.Raw(raw.strip())


def show(
    items: Iterable[T], limit: int, as_json: bool, titles: list[str], row: Callable[[T], list[Any]], no: str
) -> None:
    """Print the beginning of a list."""
    found = list(itertools.islice(items, limit))
    if as_json:
        print_json(found)
    else:
        print_table(titles, [row(item) for item in found], no)


def _show_version(asked: bool) -> None:
    if asked:
        say(__version__)
        raise typer.Exit


@app.callback()
def triggers(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Send events, see what became of them, and receive them on your own machine."""


@app.command()
def login(
    url: Annotated[str | None, typer.Option(metavar="URL", help="The server's base URL, without /api.")] = None,
    key: Annotated[
        str | None, typer.Option(metavar="KEY", help="The API key. Without it, you are asked for one.")
    ] = None,
) -> None:
    """Store a server's URL and an API key.

    They are stored in a file that only you can read.
    """
    url = (url or typer.prompt("URL", default=logins.default_url())).rstrip("/")
    key = key or typer.prompt("API key", hide_input=True)
    try:
        with Client(key, url, max_retries=RETRIES) as client:
            me = client.me()
    except AuthenticationError as error:
        raise UsageError(f"{url} refuses the API key: {error.detail} Nothing was stored.") from None
    except ConnectionFailedError as error:
        raise UsageError(f"{url} can't be reached: {error.detail}. Nothing was stored.") from None
    except TriggersError as error:
        raise UsageError(f"{url}: {error.detail} Nothing was stored.") from None
    path = logins.store(Login(url, key))
    say(f"Logged in to {url} as {me.organization.name}. The key is in {path}.")


@app.command()
def send(
    type: Annotated[str, typer.Argument(metavar="TYPE", help="The event's type, such as order.created.")],
    data: Annotated[str, typer.Argument(metavar="JSON|@FILE|-", help="Its data. - reads standard input.")] = "null",
    dedup_id: Annotated[
        str | None, typer.Option(metavar="ID", help="Identifies the event, so that sending it again is harmless.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Send an event."""
    _send(type, read_data(data), dedup_id, as_json)


@app.command()
def trigger(
    type: Annotated[str, typer.Argument(metavar="TYPE", help="An event type of the catalog.")],
    example: Annotated[int, typer.Option(min=1, metavar="N", help="Which of its examples to send.")] = 1,
    as_json: AsJson = False,
) -> None:
    """Send the catalog's example of a type."""
    with connect() as client:
        known = next((one for one in client.event_types.list(name=type) if one.name == type), None)
    if known is None:
        raise UsageError(f"The catalog has no type {type}. Send one with data of your own: triggers send {type} JSON")
    if len(known.examples) < example:
        have = f"has {len(known.examples)} examples" if known.examples else "has no examples"
        raise UsageError(f"{type} {have} in the catalog. Send one with data of your own: triggers send {type} JSON")
    _send(type, known.examples[example - 1], None, as_json)


def _send(event_type: str, data: Any, dedup_id: str | None, as_json: bool) -> None:
    with connect() as client:
        receipt = client.events.send(event_type, data, dedup_id=dedup_id)
    if as_json:
        print_json(receipt)
    elif receipt.status == "duplicate":
        say(f"{receipt.id}  duplicate: an event with this dedup_id was there already")
    else:
        say(f"{receipt.id}  {receipt.status}")


@app.command()
def events(
    event_id: Annotated[str | None, typer.Argument(metavar="ID", help="Show this event, with its deliveries.")] = None,
    type: Annotated[str | None, typer.Option(metavar="TYPE", help="A type, or a prefix such as order.*")] = None,
    status: Annotated[str | None, typer.Option(metavar="STATUS", help="accepted, processed, or error")] = None,
    limit: Limit = 20,
    as_json: AsJson = False,
) -> None:
    """List events, the newest first."""
    with connect() as client:
        if event_id is None:
            show(
                client.events.list(type=type, status=status, limit=min(limit, 100)), limit, as_json,
                ["ID", "TYPE", "STATUS", "CREATED"], lambda one: [one.id, one.type, one.status, one.created_at],
                "There are no such events.",
            )  # fmt: skip
            return
        event = client.events.get(event_id)
    if as_json:
        print_json(event)
        return
    say(f"{event.id}  {event.type}  {event.status}")
    say(indented(bytes(event.raw_data)))
    print_table(
        ["DELIVERY", "SUBSCRIPTION", "STATUS", "ATTEMPTS"],
        [[one.id, one.subscription_id, one.status, one.attempt_count] for one in event.deliveries],
        "No subscription wants it, or it isn't processed yet.",
    )


@app.command()
def deliveries(
    delivery_id: Annotated[
        str | None, typer.Argument(metavar="ID", help="Show this delivery, with its attempts.")
    ] = None,
    event: Annotated[str | None, typer.Option(metavar="ID", help="Only deliveries of this event.")] = None,
    subscription: Annotated[
        str | None, typer.Option(metavar="ID", help="Only deliveries to this subscription.")
    ] = None,
    status: Annotated[
        str | None,
        typer.Option(metavar="STATUS", help="pending, retrying, delivering, delivered, failed, held, or cancelled"),
    ] = None,
    limit: Limit = 20,
    as_json: AsJson = False,
) -> None:
    """List deliveries, the newest first."""
    with connect() as client:
        if delivery_id is None:
            found = client.deliveries.list(event=event, subscription=subscription, status=status, limit=min(limit, 100))
            show(
                found, limit, as_json, ["ID", "EVENT", "STATUS", "ATTEMPTS", "LAST", "CREATED"],
                lambda one: [
                    one.id, one.event_id, one.status, one.attempt_count, one.last_status_code or one.last_error,
                    one.created_at,
                ],
                "There are no such deliveries.",
            )  # fmt: skip
            return
        delivery = client.deliveries.get(delivery_id)
    if as_json:
        print_json(delivery)
    else:
        _show_attempts(delivery)


def _show_attempts(delivery: DeliveryWithAttempts) -> None:
    say(f"{delivery.id}  {delivery.status}  event {delivery.event_id}  subscription {delivery.subscription_id}")
    print_table(
        ["ATTEMPT", "STARTED", "MS", "STATUS", "ERROR"],
        [
            [one.number, one.started_at, round(one.duration_ms), one.status_code, one.error_detail or one.error]
            for one in delivery.attempts
        ],
        "There was no attempt yet.",
    )


@app.command()
def retry(
    delivery_ids: Annotated[list[str], typer.Argument(metavar="DELIVERY_ID", help="The deliveries' ids.")],
) -> None:
    """Make one more attempt of deliveries now."""
    failed = 0
    with connect() as client:
        for delivery_id in delivery_ids:
            try:
                say(f"{delivery_id}  {client.deliveries.retry(delivery_id).status}")
            except (AuthenticationError, ConnectionFailedError):
                raise
            except TriggersError as error:
                complain(f"{delivery_id}: {error}")
                failed += 1
    if failed:
        raise typer.Exit(1)


@app.command()
def listen(
    forward_to: Annotated[
        str,
        typer.Option(
            metavar="URL", help="Your endpoint, such as http://localhost:3000/hook. Without it, events are only shown."
        ),
    ] = "",
    types: Annotated[
        list[str] | None,
        typer.Option(metavar="TYPES", help="Only these types, such as order.* or a,b.*. Can be repeated."),
    ] = None,
    secret: Annotated[
        str | None,
        typer.Option(
            metavar="SECRET", envvar="TRIGGERS_LISTEN_SECRET", help="Sign with this whsec_ secret instead of a new one."
        ),
    ] = None,
) -> None:
    """Receive events on this machine.

    They are forwarded to your endpoint, signed as webhooks are, until you press q or Ctrl-C. They come through an
    inbox that is created for this and deleted at the end.
    """
    wanted = [one.strip() for text in types or ["*"] for one in text.split(",") if one.strip()]
    try:
        wishes = Wishes(endpoint(forward_to) if forward_to else "", wanted, secret or new_secret())
        sign(b"", "", 0, wishes.secret)
    except ValueError as error:
        raise UsageError(str(error)) from None
    asyncio.run(listen_until_ended(logins.current(), wishes))


# --- subscriptions ----------------------------------------------------------------------------------

SubscriptionId = Annotated[str, typer.Argument(metavar="ID", help="The subscription's id.")]


@subscriptions_app.callback()
def list_subscriptions(
    context: typer.Context,
    state: Annotated[str | None, typer.Option(metavar="STATE", help="active, failing, paused, or disabled")] = None,
    limit: Limit = 20,
    as_json: AsJson = False,
) -> None:
    """List subscriptions; the subcommands change them."""
    if context.invoked_subcommand is not None:
        return
    with connect() as client:
        show(
            client.subscriptions.list(state=state, limit=min(limit, 100)), limit, as_json,
            ["ID", "STATE", "TYPES", "TO"],
            lambda one: [one.id, one.state, ",".join(one.event_types), one.url or f"inbox {one.inbox}"],
            "There are no such subscriptions.",
        )  # fmt: skip


@subscriptions_app.command("show")
def show_subscription(subscription_id: SubscriptionId) -> None:
    """Print a subscription as JSON."""
    with connect() as client:
        print_json(client.subscriptions.get(subscription_id))


@subscriptions_app.command("create")
def create_subscription(
    url: Annotated[str, typer.Argument(metavar="URL", help="The endpoint.")],
    types: Annotated[
        list[str] | None,
        typer.Option(metavar="TYPES", help="Only these types, such as order.* or a,b.*. Can be repeated."),
    ] = None,
    description: Annotated[str, typer.Option(metavar="TEXT", help="What it is for.")] = "",
    as_json: AsJson = False,
) -> None:
    """Subscribe an endpoint, and print its signing secret.

    The secret is shown only once.
    """
    wanted = [one.strip() for text in types or ["*"] for one in text.split(",") if one.strip()]
    with connect() as client:
        made = client.subscriptions.create(url, wanted, description=description)
    if as_json:
        print_json(made)
    else:
        say(f"{made.id}  {made.state}\nSigning secret, shown only once: {made.secret}")


@subscriptions_app.command("delete")
def delete_subscription(subscription_id: SubscriptionId) -> None:
    """Delete a subscription; what waits for it is cancelled."""
    with connect() as client:
        client.subscriptions.delete(subscription_id)
    say(f"{subscription_id}  deleted")


@subscriptions_app.command("enable")
def enable_subscription(subscription_id: SubscriptionId) -> None:
    """Enable a subscription; what was held for it is sent."""
    with connect() as client:
        say(f"{subscription_id}  {client.subscriptions.enable(subscription_id).state}")


@subscriptions_app.command("disable")
def disable_subscription(
    subscription_id: SubscriptionId,
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Why, for whoever looks at it later.")] = "",
) -> None:
    """Disable a subscription; what comes for it is held."""
    with connect() as client:
        say(f"{subscription_id}  {client.subscriptions.disable(subscription_id, reason).state}")


@subscriptions_app.command("rotate-secret")
def rotate_secret(subscription_id: SubscriptionId) -> None:
    """Replace the signing secret.

    For a day, the old one signs, too, so that receivers can change over.
    """
    with connect() as client:
        say(f"Signing secret, shown only once: {client.subscriptions.rotate_secret(subscription_id).secret}")


@subscriptions_app.command("test")
def test_subscription(subscription_id: SubscriptionId) -> None:
    """Send a test event to the endpoint now."""
    with connect() as client:
        outcome = client.subscriptions.test(subscription_id)
    say(f"{outcome.status_code or outcome.error}  {outcome.duration_ms:.0f} ms  {outcome.error_detail}".rstrip())
    if not outcome.succeeded:
        raise typer.Exit(1)
