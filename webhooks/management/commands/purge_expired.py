"""`manage.py purge_expired`: delete settled events past their organization's retention, and old dedup ids."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand

from orgs import audit
from webhooks.upkeep.retention import purge_expired


class Command(BaseCommand):
    help = (
        "Delete processed events whose deliveries are all settled, with their deliveries and attempts, once they are "
        "older than their organization's retention_days; and dedup ids whose window has ended. Workers do this too."
    )

    def handle(self, *args: Any, **options: Any) -> None:
        purged = purge_expired()
        audit.record(
            "purge",
            actor="command:purge_expired",
            organization_id=None,
            detail={"events": purged.events, "deliveries": purged.deliveries, "attempts": purged.attempts},
        )
        self.stdout.write(
            f"{purged.events} events, {purged.deliveries} deliveries, {purged.attempts} attempts and "
            f"{purged.dedup_keys} dedup ids deleted."
        )
