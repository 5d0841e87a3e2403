"""Finds an organization by what an operator types."""

from __future__ import annotations

from django.core.management.base import CommandError

from core.ids import parse_id
from orgs.models import Organization


def find_organization(text: str) -> Organization:
    """Return the organization with this id or, if there is none, this name.  Raises CommandError."""
    identifier = parse_id(text)
    found = Organization.objects.filter(id=identifier).first() if identifier else None
    found = found or Organization.objects.filter(name=text).first()
    if found is None:
        raise CommandError(f"There is no organization with the id or name {text!r}.")
    return found
