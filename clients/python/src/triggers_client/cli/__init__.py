"""The command line `triggers`."""

from __future__ import annotations

import sys


def run() -> None:
    """Run the command line, or say what it needs."""
    try:
        import typer  # noqa: F401
    except ImportError:
        sys.exit("The command line needs typer: pip install 'triggers-client[cli]'")
    from triggers_client.cli.main import main

    sys.exit(main())
