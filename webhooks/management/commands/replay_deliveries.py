"""`manage.py replay_deliveries`: send completed deliveries again, at a limited rate and resumably."""

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
from webhooks.delivery_actions import DeliveryAction
from webhooks.models import BulkRun
from webhooks.upkeep import bulk_runs, replay

DEFAULT_RATE = 200.0
FILTERS = ("delivery", "event", "subscription", "org", "status", "since", "until")


_UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


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
        "Sends delivered and failed deliveries again, with a fresh retry schedule. Requires at least one filter; "
        "deliveries must match all that are given."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--delivery", type=_identifier, help="Only the delivery with this id.")
        parser.add_argument("--event", type=_identifier, help="Only deliveries of the event with this id.")
        parser.add_argument(
            "--subscription", type=_identifier, help="Only deliveries to the subscription with this id."
        )
        parser.add_argument("--org", help="Only deliveries of the organization with this id or name.")
        parser.add_argument("--status", choices=DeliveryAction.REPLAY.states, help="Only deliveries with this status.")
        parser.add_argument(
            "--since",
            type=_moment,
            help="Only deliveries created at or after this time: ISO 8601, or an age such as 30m, 2h or 1d.",
        )
        parser.add_argument("--until", type=_moment, help="Only deliveries created before this time.")
        parser.add_argument("--dry-run", action="store_true", help="Only count the matching deliveries.")
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
            if filters or options["dry_run"]:
                raise CommandError("--resume can't be combined with filters or --dry-run: the run keeps its filters.")
            run = BulkRun.objects.filter(id=options["resume"], kind=BulkRun.Kind.REPLAY).first()
            if run is None:
                raise CommandError(f"There is no replay {options['resume']}.")
        else:
            if not filters:
                raise CommandError("Give at least one of " + ", ".join(f"--{name}" for name in FILTERS) + ".")
            if "org" in filters:
                filters["org"] = find_organization(filters["org"]).id
            if options["dry_run"]:
                self.stdout.write(f"{replay.replayable(filters).count()} deliveries would be replayed.")
                return
            with transaction.atomic():
                run = replay.start(filters, filters.get("org"))
                audit.record(
                    "delivery.replay",
                    actor="command:replay_deliveries",
                    organization_id=run.organization_id,
                    target=run.id,
                    detail=run.filters,
                )
        self._run(run, options["rate"])

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
            total = None
            if console.is_terminal:
                total = run.queued + replay.remaining(run)
            task = progress.add_task("replay", total=total, completed=run.queued)
            state = _advance_paced(run, rows, rate, lambda queued: progress.update(task, completed=queued))
        self.stdout.write(f"{state.queued} deliveries replayed.")


def _advance_paced(run: BulkRun, rows: int, rate: float, show: Callable[[int], None]) -> BulkRun:
    """Advance the run until it is done, sleeping so that no more than `rate` deliveries a second are queued."""
    state = run
    while state.state != BulkRun.State.DONE:
        started = time.monotonic()
        before = state.queued
        following = replay.advance(run.id, rows)
        if following is None:
            raise CommandError(f"Another process is working on replay {run.id}.")
        state = following
        show(state.queued)
        if state.state != BulkRun.State.DONE:
            time.sleep(max(0.0, (state.queued - before) / rate - (time.monotonic() - started)))
    return state
