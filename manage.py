#!/usr/bin/env python
"""Django's command line for Triggers API."""

import os
import sys


def main() -> None:
    """Run the command; a wrong setting or a database that doesn't answer is one line, not a traceback."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "triggers_project.settings")
    from django.core.exceptions import ImproperlyConfigured
    from django.core.management import execute_from_command_line
    from django.db import OperationalError

    if "--traceback" in sys.argv:
        execute_from_command_line(sys.argv)
        return
    try:
        execute_from_command_line(sys.argv)
    except ImproperlyConfigured as error:
        sys.exit(str(error))
    except OperationalError as error:
        reason = (str(error) or repr(error)).strip().splitlines()[0]
        sys.exit(f"The database doesn't answer as it should: {reason}")


if __name__ == "__main__":
    main()
