"""The admin's pages are loaded by processes that serve or check them, and by no others."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from devstack.processes import ROOT

_SETTINGS = """
from triggers_project.settings import *
INSTALLED_APPS = [*INSTALLED_APPS, "wrong"]
"""
_WRONG_PAGE = """
from django.contrib import admin
from django.contrib.sessions.models import Session
admin.site.register(Session, list_display=["no_such_column"])
"""
# What a worker does before it begins; then the part of `manage.py check` that looks at the admin, without the routes.
_PROGRAM = """
import sys
import django
django.setup()
import triggers_project.worker
from django.core.management import call_command, load_command_class, get_commands
for name in ("rqworker", "send_backlog", "create_org"):
    assert not load_command_class(get_commands()[name], name).requires_system_checks, name
print(*(name for name in sys.modules if name.startswith(("console.pages", "triggers_project.urls"))), flush=True)
call_command("check", "--tag", "admin")
"""


def test_a_worker_loads_no_page_and_the_check_sees_every_page(tmp_path: Path) -> None:
    (tmp_path / "wrong").mkdir()
    (tmp_path / "wrong" / "__init__.py").touch()
    (tmp_path / "wrong" / "admin.py").write_text(_WRONG_PAGE)
    (tmp_path / "wrong_settings.py").write_text(_SETTINGS)
    done = subprocess.run(
        [sys.executable, "-c", f"import os, sys; sys.path[:0] = [os.getcwd(), {str(tmp_path)!r}]\n"
         f"os.environ['DJANGO_SETTINGS_MODULE'] = 'wrong_settings'\n{_PROGRAM}"],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.stdout == "\n", "a worker needs no page"
    assert done.returncode != 0
    assert "(admin.E108)" in done.stderr
    assert "no_such_column" in done.stderr
    assert done.stderr.count("(admin.E") == 1, done.stderr
