"""`manage.py create_api_key ORG`: make an API key; the key alone goes to stdout."""

from __future__ import annotations

import datetime
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import transaction
from django.utils import timezone

from core.serializers import is_plain_text
from orgs import audit, keys
from orgs.lookups import find_organization
from orgs.scopes import Scope


class Command(BaseCommand):
    help = "Make an API key for an organization and print it; it is not shown again."
    requires_system_checks = ()  # see core/management/commands/rqworker.py

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("org", help="id or name of the organization")
        parser.add_argument("--name", default="", help="what the key is for")
        parser.add_argument("--scope", action="append", choices=Scope.values, help="can be repeated; default: all")
        parser.add_argument("--expires-in-days", type=float, help="default: never")

    def handle(self, *args: Any, **options: Any) -> None:
        organization = find_organization(options["org"])
        name = options["name"].strip()
        if len(name) > 200 or not is_plain_text(name):
            raise CommandError("--name must have at most 200 characters and none that is a control character.")
        expires_at = None
        if options["expires_in_days"] is not None:
            if not 0 < options["expires_in_days"] <= 36500:
                raise CommandError("--expires-in-days must be more than 0 and at most 36500.")
            expires_at = timezone.now() + datetime.timedelta(days=options["expires_in_days"])
        try:
            with transaction.atomic():
                key, text = keys.create_api_key(organization, name=name, scopes=options["scope"], expires_at=expires_at)
                audit.record(
                    "key.create", actor="command:create_api_key", organization_id=organization.id, target=key.id,
                    name=str(key),
                )  # fmt: skip
        except keys.TooManyKeys as error:
            raise CommandError(str(error)) from None
        self.stdout.write(text)
