"""The settings as mypy's Django plugin reads them: it imports them, and no server has to run for that."""

import os

for name, value in {
    "ENVIRONMENT": "development",
    "DATABASE_URL": "postgres://nobody@localhost/nothing",
    "REDIS_URL": "redis://localhost",
    "SECRET_KEY": "only-for-the-type-checker-0123456789",
    "SECRETS_ENCRYPTION_KEYS": "dHlwZXMtb25seS10eXBlcy1vbmx5LXR5cGVzLW9ubHk=",
}.items():
    os.environ.setdefault(name, value)

from triggers_project.settings import *  # noqa: E402, F403
