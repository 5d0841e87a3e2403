#!/usr/bin/env python
"""Django's command line for Triggers API."""

import os
import signal
import sys

from core.garbage_collection import collect_seldom


def main() -> None:
    """Run the command; a wrong setting or a database that can't be used is one line, not a traceback."""
    if sys.argv[1:2] == ["rqworker"]:
        # As a container's first process, a worker that has no handler yet would not notice SIGTERM.  Until it
        # installs its own there is nothing to finish.
        signal.signal(signal.SIGTERM, lambda signum, frame: os._exit(0))
    collect_seldom()
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "triggers_project.settings")
    from django.core.exceptions import ImproperlyConfigured
    from django.core.management import execute_from_command_line
    from django.db import Error as DatabaseError
    from psycopg import Error as PsycopgError

    if "--traceback" in sys.argv:
        execute_from_command_line(sys.argv)
        return
    try:
        execute_from_command_line(sys.argv)
    except ImproperlyConfigured as error:
        sys.exit(str(error))
    except (DatabaseError, PsycopgError) as error:
        from core.db import describe_database_fault

        line = describe_database_fault(error)
        if line is None:
            raise
        sys.exit(line)


if __name__ == "__main__":
    main()
