"""Reading the settings from the environment, and refusing what is wrong or unsafe."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import environ
from django.core.exceptions import ImproperlyConfigured

from triggers_project.options import declarations
from triggers_project.options.kinds import Hint
from triggers_project.options.option import Option

# Every setting, in the order of the declarations.
OPTIONS: tuple[Option[Any], ...] = tuple(
    dataclasses.replace(option, name=name) for name, option in vars(declarations).items() if isinstance(option, Option)
)

_LOCAL_ENV = Path(__file__).resolve().parents[2] / ".local" / "env"


def read_local_env() -> None:
    """Add to the environment what `make run` left for commands in the same folder; what is set already stays."""
    environ.Env.read_env(_LOCAL_ENV)


def read_options(environment: Mapping[str, str]) -> dict[str, Any]:
    """Return every setting's value by name.

    Raises ImproperlyConfigured with one line for each variable whose text is wrong.  The text itself is not shown,
    because it may be a secret.
    """
    values: dict[str, Any] = {}
    problems: list[str] = []
    for option in OPTIONS:
        raw = environment.get(option.name)
        if raw is None and option.derive is not None:
            if problems:  # what it is derived from may be among the wrong ones
                continue
            raw = option.derive(values)
        try:
            values[option.name] = option.kind.parse(option.default if raw is None else raw)
        except ValueError as error:
            hint = f" ({error})" if isinstance(error, Hint) else ""
            problems.append(f"{option.name} is wrong: expected {option.kind.expected}{hint}.")
    problems = problems or _contradictions(values)
    if problems:
        raise ImproperlyConfigured("\n".join(problems))
    return values


def _contradictions(values: Mapping[str, Any]) -> list[str]:
    """Return one line for each required setting that is missing or doesn't go with another."""
    problems = []
    for name, example in (
        ("DATABASE_URL", "postgres://user:password@host:5432/triggers"),
        ("REDIS_URL", "redis://host:6379/0"),
    ):
        if not values[name]:
            problems.append(f"{name} is not set. Give one, such as {example}, or start everything with `make run`.")
    if len(values["SECRET_KEY"]) < 32 or values["SECRET_KEY"].startswith("django-insecure"):
        problems.append("SECRET_KEY is not set or too short: give at least 32 random characters.")
    if not values["SECRETS_ENCRYPTION_KEYS"]:
        problems.append("SECRETS_ENCRYPTION_KEYS is not set: give at least one Fernet key.")
    else:
        from cryptography.fernet import Fernet

        for position, key in enumerate(values["SECRETS_ENCRYPTION_KEYS"], start=1):
            try:
                Fernet(key)
            except ValueError:
                problems.append(f"SECRETS_ENCRYPTION_KEYS is wrong: key {position} is not 32 bytes in url-safe base64.")
    if values["URL_PREFIX"].split("/")[1:2] == [values["ADMIN_PATH"]]:
        problems.append("URL_PREFIX is wrong: its first segment is ADMIN_PATH, so the two can't be told apart.")
    if values["REDIS_SENTINELS"] and not re.match(r"rediss?://([^/]*@)?[^/@:]+(/|\?|$)", values["REDIS_URL"]):
        problems.append(
            "REDIS_URL is wrong: with REDIS_SENTINELS, its host is the name that the sentinels know the primary by, "
            "without a port, such as redis://mymaster/0."
        )
    if values["OPERATOR_EMAILS"] and not values["EMAIL_HOST"]:
        problems.append("EMAIL_HOST is not set: OPERATOR_EMAILS needs a mail server.")
    if values["ENVIRONMENT"] == "production":
        problems += _unsafe(values)
    return problems


def _unsafe(values: Mapping[str, Any]) -> list[str]:
    """Return one line for each setting that is fine on a desk and not in production."""
    problems = []
    if values["DEBUG"]:
        problems.append("DEBUG must be false when ENVIRONMENT is production.")
    secret = values["SECRET_KEY"]
    if secret.startswith("only-for-") or (secret and len(set(secret)) < 8):
        problems.append("SECRET_KEY is public or can be guessed: give at least 32 random characters.")
    for position, key in enumerate(values["SECRETS_ENCRYPTION_KEYS"], start=1):
        if len(set(key)) < 8:
            problems.append(f"SECRETS_ENCRYPTION_KEYS is wrong: key {position} is not random.")
    return problems
