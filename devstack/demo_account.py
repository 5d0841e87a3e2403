"""`python -m devstack.demo_account`: what `make run` needs in its database, made by one process.

Makes the admin user (with ADMIN_PASSWORD) and the demo's organization unless they are there, and prints an API key of
that organization: the one in DEMO_KEY if it still works, a new one otherwise.
"""

from __future__ import annotations

import io
import os

import django

ADMIN_USER = "admin"
ORGANIZATION = "Demo"


def main() -> None:
    """Make what is missing, and print the key."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "triggers_project.settings")
    django.setup()
    from django.contrib.auth.models import User
    from django.core.management import call_command

    from orgs.keys import authenticate
    from orgs.models import Organization

    if not User.objects.filter(username=ADMIN_USER).exists():
        User.objects.create_superuser(ADMIN_USER, "admin@example.com", os.environ["ADMIN_PASSWORD"])
    if not Organization.objects.filter(name=ORGANIZATION).exists():
        call_command("create_org", ORGANIZATION, stdout=io.StringIO())
    key = os.environ.get("DEMO_KEY", "")
    if authenticate(key) is None:
        call_command("create_api_key", ORGANIZATION, "--name", "make run")
    else:
        print(key)


if __name__ == "__main__":
    main()
