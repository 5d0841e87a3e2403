"""`manage.py create_org NAME`: make an organization; its id alone goes to stdout."""

from __future__ import annotations

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import transaction

from core.serializers import is_plain_text
from orgs import audit
from orgs.models import Organization

MAX_EVENTS_PER_MINUTE = 100_000_000


class Command(BaseCommand):
    help = "Make an organization and print its id."
    requires_system_checks = ()  # see core/management/commands/rqworker.py

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("name", help="unique name")
        parser.add_argument("--events-per-minute", type=int, help="rate limit; 0 means no limit")
        parser.add_argument("--retention-days", type=int, help="days to keep completed events")

    def handle(self, *args: Any, **options: Any) -> None:
        name = options["name"].strip()
        if not 1 <= len(name) <= 200 or not is_plain_text(name):
            raise CommandError("NAME must have 1 to 200 characters and none that is a control character.")
        limits = {
            field: options[field] for field in ("events_per_minute", "retention_days") if options[field] is not None
        }
        if not 0 <= limits.get("events_per_minute", 0) <= MAX_EVENTS_PER_MINUTE:
            raise CommandError(f"--events-per-minute must be from 0 to {MAX_EVENTS_PER_MINUTE}.")
        if not 1 <= limits.get("retention_days", 1) <= 3650:
            raise CommandError("--retention-days must be from 1 to 3650.")
        with transaction.atomic():
            organization, created = Organization.objects.get_or_create(name=name, defaults=limits)
            if not created:
                raise CommandError(f"There already is an organization named {name!r}: {organization.id}")
            audit.record(
                "organization.create", actor="command:create_org", organization_id=organization.id,
                target=organization.id, name=name,
            )  # fmt: skip
        self.stdout.write(str(organization.id))
