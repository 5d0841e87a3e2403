"""`make integrations`: run what integrates with the API against a running system.

Each folder here with a `package.json` is a package of npm's with its own tests.  They get a system's URL, a key, a
receiver's URL, and the OpenAPI document:

    python -m integrations.run [zapier] [n8n] [openapi] [verifiers]
"""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.request
from pathlib import Path

from devstack.stack import Stack, forget_settings_of_the_shell, stop_on_signals

HERE = Path(__file__).resolve().parent
HOME = HERE.parent / ".local" / "integrations"


def packages(wanted: list[str]) -> list[Path]:
    """Return the folders of the packages.  wanted: their names; all of them if there are none."""
    found = sorted(path.parent for path in HERE.glob("*/package.json"))
    return [path for path in found if not wanted or path.name in wanted]


def run_tests(package: Path, env: dict[str, str]) -> bool:
    """Install a package and run its tests; return whether they passed."""
    print(f"--- {package.name}", flush=True)
    install = ["npm", "install", "--no-audit", "--no-fund", "--no-package-lock", "--loglevel=error"]
    if subprocess.run(install, cwd=package, check=False).returncode:
        return False
    return (
        subprocess.run(["npm", "test", "--silent"], cwd=package, env={**os.environ, **env}, check=False).returncode == 0
    )


def main() -> int:
    """Start the system, and run the tests of each package."""
    forget_settings_of_the_shell()
    stop_on_signals()
    stack = Stack(HOME)
    try:
        stack.start()
        stack.start_web(1)
        stack.start_workers({})
        with stack.receiver() as receiver:
            key = stack.make_key(stack.make_organization(f"Integrations {os.getpid()}"))
            document = HOME / "openapi.json"
            with urllib.request.urlopen(f"{stack.url}/api/schema") as response:
                document.write_bytes(response.read())
            env = {
                "TRIGGERS_URL": stack.url,
                "TRIGGERS_KEY": key,
                "TRIGGERS_RECEIVER": receiver.url("/ok"),
                "TRIGGERS_OPENAPI": str(document),
                "TRIGGERS_PYTHON": sys.executable,
            }
            failed = [package.name for package in packages(sys.argv[1:]) if not run_tests(package, env)]
    finally:
        stack.stop()
    print(f"Failed: {', '.join(failed)}" if failed else "All passed.")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
