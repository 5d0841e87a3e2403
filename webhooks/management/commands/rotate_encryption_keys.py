"""`manage.py rotate_encryption_keys`: encrypt every stored secret with the first of SECRETS_ENCRYPTION_KEYS."""

from __future__ import annotations

from functools import partial
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from orgs import audit
from webhooks.upkeep.key_rotation import Rekeyed, count, rekey


class Command(BaseCommand):
    help = (
        "Encrypts webhook secrets, header values, authorization, and client certificates with the first key of "
        "SECRETS_ENCRYPTION_KEYS. Give every process that list of keys before you run this. It can be interrupted and "
        "run again. After it has succeeded, you can remove the other keys."
    )
    requires_system_checks = ()  # see core/management/commands/rqworker.py

    def handle(self, *args: Any, **options: Any) -> None:
        done = Rekeyed()
        entry = partial(audit.record, actor="command:rotate_encryption_keys", organization_id=None)
        entry("encryption_key.rotate.start")
        console = Console(stderr=True)
        try:
            with Progress(
                TextColumn("encrypting"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                console=console,
                disable=not console.is_terminal,
            ) as progress:
                task = progress.add_task("encrypt", total=count())
                rekey(
                    done,
                    lambda complaint: self.stderr.write(complaint),
                    lambda seen: progress.update(task, completed=seen),
                )
        finally:
            # Also for a run that was interrupted.
            entry(
                "encryption_key.rotate",
                detail={"subscriptions": done.seen, "values": done.values, "unreadable": done.unreadable},
            )
        self.stdout.write(f"{done.seen} subscriptions seen, {done.values} values encrypted with the newest key.")
        if done.unreadable:
            raise CommandError(
                f"{done.unreadable} values could not be encrypted anew (named above). Put the key that they were "
                "encrypted with back into SECRETS_ENCRYPTION_KEYS and run this again, or rotate those secrets."
            )
