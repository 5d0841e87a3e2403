"""`manage.py replay_deliveries`: send failed and retrying deliveries again, at a limited rate and resumably."""

from __future__ import annotations

import argparse
import datetime
import re
import time
import uuid
from collections.abc import Callable
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import transaction
from django.utils import timezone
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from core.ids import parse_id
from core.query import ParameterError, moment
from orgs import audit
from orgs.lookups import find_organization
from webhooks.models import BulkRun
from webhooks.upkeep import bulk_runs, replay
from webhooks.upkeep.preview import Fate, Preview, preview

ACTOR = "command:replay_deliveries"
DEFAULT_RATE = 200.0
SHOWN_SUBSCRIPTIONS = 20
_FATES = {
    Fate.DUE: "would be due at once",
    Fate.RATE_LIMIT: "would be due at once, and sent as the subscription's rate limit allows",
    Fate.CIRCUIT_BREAKER: "would wait behind a circuit breaker, which lets one request at a time through until one "
    "succeeds",
    Fate.RETRY_AFTER: "would wait, because the endpoint asked for a pause",
    Fate.HELD: "would be held, because the subscription is disabled",
    Fate.SENDING_DISABLED: "would wait while DISABLE_WEBHOOK_DELIVERY is set",
    Fate.LEFT_ALONE: "would be left alone, because the subscription was deleted",
}
FILTERS = ("delivery", "event", "subscription", "org", "status", "since", "until")


_UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def _statuses(status: str | None, include_delivered: bool) -> list[str]:
    """Return the statuses that a run takes."""
    if status is None:
        return [*replay.NEEDS_IT, *([replay.DELIVERED] if include_delivered else [])]
    if status == replay.DELIVERED and not include_delivered:
        raise CommandError(
            "Deliveries that were delivered are sent again only with --include-delivered: their endpoints get those "
            "webhooks a second time."
        )
    return list(dict.fromkeys([status, *([replay.DELIVERED] if include_delivered else [])]))


def _identifier(text: str) -> uuid.UUID:
    value = parse_id(text)
    if value is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a UUID")
    return value


def _moment(text: str) -> datetime.datetime:
    """Return the time that `text` gives, in ISO 8601 or as an age such as 2h, 30m or 1d."""
    ago = re.fullmatch(r"([0-9]+)([smhd])", text)
    try:
        if ago:
            return timezone.now() - datetime.timedelta(seconds=int(ago[1]) * _UNIT_SECONDS[ago[2]])
        return moment(text)
    except OverflowError:
        raise argparse.ArgumentTypeError(f"{text!r} is too long ago") from None
    except ParameterError as error:
        raise argparse.ArgumentTypeError(f"{text!r} {error}, or an age such as 2h") from None


class Command(BaseCommand):
    help = (
        "Sends failed and retrying deliveries again, with a fresh retry schedule. Those that were delivered are "
        "sent again only with --include-delivered. Requires at least one filter; deliveries must match all that are "
        "given."
    )
    requires_system_checks = ()  # see core/management/commands/rqworker.py

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--delivery", type=_identifier, help="Only the delivery with this id.")
        parser.add_argument("--event", type=_identifier, help="Only deliveries of the event with this id.")
        parser.add_argument(
            "--subscription", type=_identifier, help="Only deliveries to the subscription with this id."
        )
        parser.add_argument("--org", help="Only deliveries of the organization with this id or name.")
        parser.add_argument(
            "--status",
            choices=replay.STATES,
            help="Only deliveries with this status (default: failed and retrying).",
        )
        parser.add_argument(
            "--include-delivered",
            action="store_true",
            help="Also send again what was delivered: the endpoints get those webhooks a second time.",
        )
        parser.add_argument(
            "--since",
            type=_moment,
            help="Only deliveries created at or after this time: ISO 8601, or an age such as 30m, 2h or 1d.",
        )
        parser.add_argument("--until", type=_moment, help="Only deliveries created before this time.")
        parser.add_argument("--dry-run", action="store_true", help="Only show what would be done.")
        parser.add_argument(
            "--rate",
            type=float,
            default=DEFAULT_RATE,
            help=f"Maximum number of deliveries queued per second (default: {DEFAULT_RATE:g}).",
        )
        parser.add_argument(
            "--resume", type=_identifier, metavar="RUN", help="Continue the interrupted run with this id."
        )

    def handle(self, *args: Any, **options: Any) -> None:
        if not 0 < options["rate"] <= 1_000_000:
            raise CommandError("--rate must be more than 0 and at most 1000000.")
        filters = {name: options[name] for name in FILTERS if options[name] is not None}
        if options["resume"] is not None:
            if filters or options["dry_run"] or options["include_delivered"]:
                raise CommandError("--resume can't be combined with filters or --dry-run: the run keeps its filters.")
            run = BulkRun.objects.filter(id=options["resume"], kind=BulkRun.Kind.REPLAY).first()
            if run is None:
                raise CommandError(f"There is no replay {options['resume']}.")
        else:
            if not filters:
                raise CommandError("Give at least one of " + ", ".join(f"--{name}" for name in FILTERS) + ".")
            if "org" in filters:
                filters["org"] = find_organization(filters["org"]).id
            filters["statuses"] = _statuses(filters.pop("status", None), options["include_delivered"])
            if options["dry_run"]:
                self._show(preview(filters))
                return
            with transaction.atomic():
                found = preview(filters)
                run = replay.start(filters, filters.get("org"), actor=ACTOR, total=None if found.is_cut else found.seen)
                audit.record(
                    "delivery.replay",
                    actor=ACTOR,
                    organization_id=run.organization_id,
                    target=run.id,
                    detail={"filters": run.filters, "count": found.total, "count_is_more": found.is_cut},
                )
        self._run(run, options["rate"])

    def _show(self, found: Preview) -> None:
        """Print what would be done: how many deliveries, of which causes, and what will happen to them."""
        more = "more than " if found.is_cut else ""
        to_send = found.total - found.of_fate(Fate.LEFT_ALONE)
        self.stdout.write(f"{more}{to_send} deliveries would be replayed.")
        for cause, count in found.by_cause:
            self.stdout.write(f"  {count} {cause.state} {cause.error} {cause.status_code or ''}".rstrip())
        for one in found.expected[:SHOWN_SUBSCRIPTIONS]:
            until = f" (nothing is sent before {one.until.isoformat(timespec='seconds')})" if one.until else ""
            self.stdout.write(f"  {one.count} {_FATES[one.fate]}{until}: {one.subscription.url}")
        if len(found.expected) > SHOWN_SUBSCRIPTIONS:
            self.stdout.write(f"  and those of {len(found.expected) - SHOWN_SUBSCRIPTIONS} more subscriptions")
        if found.erased:
            self.stdout.write(f"  {found.erased} more would be left alone, because their events' payloads were erased")
        if found.delivered:
            self.stdout.write(f"  {found.delivered} more were delivered (--include-delivered would send them again)")

    def _run(self, run: BulkRun, rate: float) -> None:
        """Complete the run at `rate` deliveries a second, showing its progress."""
        # Half a second's worth at a time keeps the pace even and each transaction short.
        rows = max(1, min(bulk_runs.CHUNK, int(rate / 2)))
        self.stderr.write(
            f"Replay {run.id} started. To continue it after an interruption: "
            f"manage.py replay_deliveries --resume {run.id}"
        )
        console = Console(stderr=True)
        with Progress(
            TextColumn("replaying"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        ) as progress:
            total = run.total if console.is_terminal else None
            task = progress.add_task("replay", total=total, completed=run.visited)
            state = _advance_paced(run, rows, rate, lambda visited: progress.update(task, completed=visited))
        if state.state == BulkRun.State.CANCELLED:
            raise CommandError(f"Replay {run.id} was cancelled after {state.queued} deliveries.")
        held = f" {state.held} of them are held: their subscriptions are disabled." if state.held else ""
        self.stdout.write(f"{state.queued} deliveries replayed.{held}")


def _advance_paced(run: BulkRun, rows: int, rate: float, show: Callable[[int], None]) -> BulkRun:
    """Advance the run until it is done, sleeping so that no more than `rate` deliveries a second are queued."""
    state = run
    while state.state == BulkRun.State.RUNNING:
        started = time.monotonic()
        before = state.queued
        following = replay.advance(run.id, rows)
        if following is None:
            raise CommandError(f"Another process is working on replay {run.id}.")
        state = following
        show(state.visited)
        if state.state == BulkRun.State.RUNNING:
            time.sleep(max(0.0, (state.queued - before) / rate - (time.monotonic() - started)))
    return state
