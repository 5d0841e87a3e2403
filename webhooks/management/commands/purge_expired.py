"""`manage.py purge_expired`: delete events that are older than their organization's retention, and old dedup ids."""

from __future__ import annotations

from functools import partial
from typing import Any

from django.core.management.base import BaseCommand

from orgs import audit
from webhooks.upkeep.held_retention import cancel_expired
from webhooks.upkeep.inbox_retention import cancel_unfetched
from webhooks.upkeep.retention import purge_expired


class Command(BaseCommand):
    help = (
        "Deletes events older than their organization's retention_days, with their deliveries and attempts, if they "
        "have been processed and none of their deliveries is still open. Also deletes expired dedup ids, and cancels "
        "deliveries held for more than HELD_RETENTION_DAYS, and those that nobody has fetched from an inbox for "
        "retention_days. The workers do this regularly by themselves."
    )
    requires_system_checks = ()  # see core/management/commands/rqworker.py

    def handle(self, *args: Any, **options: Any) -> None:
        entry = partial(audit.record, actor="command:purge_expired", organization_id=None)
        entry("purge.start")
        cancelled = cancel_expired()
        unfetched = cancel_unfetched()
        purged = purge_expired()
        entry(
            "purge",
            detail={
                "cancelled": cancelled.deliveries + unfetched.deliveries,
                "events": purged.events,
                "deliveries": purged.deliveries,
                "attempts": purged.attempts,
            },
        )
        self.stdout.write(
            f"{purged.events} events, {purged.deliveries} deliveries, {purged.attempts} attempts and "
            f"{purged.dedup_keys} dedup ids deleted."
        )
        if cancelled.deliveries:
            self.stdout.write(f"{cancelled.deliveries} held deliveries cancelled.")
        if unfetched.deliveries:
            self.stdout.write(f"{unfetched.deliveries} unfetched deliveries cancelled.")
