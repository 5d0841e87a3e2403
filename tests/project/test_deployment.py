"""What the Dockerfile and docker-compose.yml say works: their commands run here, without the engine."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml

from devstack.processes import ROOT, Process
from devstack.sockets import free_port
from devstack.waiting import wait_until
from tests.servers import postgres, valkey
from triggers_project.options import OPTIONS

COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, Any] = COMPOSE["services"]
DOCKERFILE = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
EXAMPLE = set(re.findall(r"^([A-Z_]+)=", (ROOT / ".env.example").read_text(), re.M))
SECRETS = {"POSTGRES_PASSWORD", "VALKEY_PASSWORD", "SECRET_KEY", "SECRETS_ENCRYPTION_KEYS"}


# --- what the files say ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["postgres", "valkey", "worker"])
def test_every_service_that_stays_has_a_health_check(name: str) -> None:
    check = SERVICES[name]["healthcheck"]
    assert check["test"][0] in {"CMD", "CMD-SHELL"}
    assert {"interval", "timeout", "retries"} <= set(check)


def test_the_web_service_has_the_image_s_health_check() -> None:
    assert "HEALTHCHECK" in DOCKERFILE
    assert "healthcheck" not in SERVICES["web"]


def test_migrations_run_once_and_before_what_needs_them() -> None:
    assert SERVICES["migrate"]["restart"] == "no"
    assert SERVICES["migrate"]["depends_on"]["postgres"]["condition"] == "service_healthy"
    for name in ("web", "worker"):
        needs = SERVICES[name]["depends_on"]
        assert needs["migrate"]["condition"] == "service_completed_successfully"
        assert needs["valkey"]["condition"] == "service_healthy"


def test_valkey_keeps_an_append_only_file() -> None:
    command = SERVICES["valkey"]["command"]
    assert command[command.index("--appendonly") + 1] == "yes"
    assert any(volume.endswith(":/data") for volume in SERVICES["valkey"]["volumes"])


def test_secrets_come_from_the_environment_and_have_no_default() -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    used = set(re.findall(r"\$\{([A-Z_]+)", text))
    demanded = set(re.findall(r"\$\{([A-Z_]+):\?", text))
    assert demanded == SECRETS
    for name in SECRETS:
        assert not re.search(rf"\$\{{{name}(?!:\?)", text), f"{name} is used without being demanded"
    assert used >= EXAMPLE
    assert SECRETS <= EXAMPLE


def test_every_variable_that_a_service_gets_is_a_setting() -> None:
    known = {option.name for option in OPTIONS}
    for name in ("migrate", "web", "worker"):
        assert set(SERVICES[name]["environment"]) <= known


def test_the_proxy_starts_only_when_asked_and_leads_to_the_web_service() -> None:
    proxy = SERVICES["proxy"]
    assert {name: one["profiles"] for name, one in SERVICES.items() if "profiles" in one} == {
        "proxy": ["proxy"], "prometheus": ["monitoring"], "grafana": ["monitoring"],
    }  # fmt: skip
    caddyfile = (ROOT / "deploy" / "caddy" / "Caddyfile").read_text()
    assert "./deploy/caddy:/etc/caddy:ro" in proxy["volumes"]
    assert f"reverse_proxy {{$UPSTREAM:web:{SERVICES['web']['environment']['BIND'].partition(':')[2]}}}" in caddyfile
    assert set(proxy["environment"]) <= set(re.findall(r"\{\$(\w+):", caddyfile))
    [size] = {int(found) for found in re.findall(r"(?:max_size|request_buffers) (\d+)MB", caddyfile)}
    assert size * 1000**2 > next(int(option.default) for option in OPTIONS if option.name == "MAX_BATCH_BYTES")
    assert SERVICES["web"]["environment"]["TRUSTED_PROXIES"] == "${TRUSTED_PROXIES:-1}"


def test_workers_can_be_scaled() -> None:
    worker = SERVICES["worker"]
    assert "container_name" not in worker
    assert "ports" not in worker
    assert worker["command"] == ["python", "manage.py", "rqworker", "events", "webhooks"]


def test_a_container_is_not_root_and_can_not_become_it() -> None:
    final = DOCKERFILE.rpartition("\nFROM ")[2]
    user = re.search(r"^USER (\S+)", final, re.M)
    assert user
    assert int(user[1]) > 0
    for name in ("migrate", "web", "worker"):
        assert SERVICES[name]["cap_drop"] == ["ALL"]
        assert SERVICES[name]["read_only"] is True
        assert "no-new-privileges:true" in SERVICES[name]["security_opt"]


def test_containers_have_longer_to_stop_than_what_is_in_flight() -> None:
    defaults = {option.name: option.default for option in OPTIONS}
    grace = float(defaults["WORKER_SHUTDOWN_GRACE"].removesuffix("s"))
    assert float(SERVICES["worker"]["stop_grace_period"].removesuffix("s")) > grace


# --- what the files do ----------------------------------------------------------------------------


def _copied() -> list[str]:
    """Return what the build stage copies out of the checkout into the application's folder."""
    build = DOCKERFILE.split("\nFROM ")[1] if DOCKERFILE.startswith("#") else DOCKERFILE.split("FROM ")[1]
    names: list[str] = []
    for sources in re.findall(r"^COPY (?!--from)(.+)$", build, re.M):
        names += shlex.split(sources)[:-1]
    return [name for name in names if not name.startswith("requirements")]


def test_the_build_sees_what_it_copies() -> None:
    seen = set(re.findall(r"^!(.+)$", (ROOT / ".dockerignore").read_text(), re.M))
    copied = re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.M)
    assert {name for sources in copied for name in shlex.split(sources)[:-1]} == seen


class Container:
    """The image's file tree in a folder, and its environment: only what compose gives."""

    def __init__(self, app: Path) -> None:
        self.app = app
        app.mkdir()
        for name in _copied():
            source = ROOT / name
            ignored = shutil.ignore_patterns("__pycache__")
            if source.is_dir():
                shutil.copytree(source, app / name, ignore=ignored)
            else:
                shutil.copy(source, app / name)
        values = {
            "POSTGRES_PASSWORD": "unused", "VALKEY_PASSWORD": "unused",
            "SECRET_KEY": "a-deployment-of-the-tests-0123456789abcdefghij-0123456789",
            "SECRETS_ENCRYPTION_KEYS": "ZGVwbG95bWVudC1vZi10aGUtdGVzdHMtb25seS0hISE=",
        }  # fmt: skip
        self.values = values
        self.path = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HOME": str(app)}
        self.port, self.metrics_port = free_port(), free_port()

    def environment(self, service: str) -> dict[str, str]:
        """Return the service's variables as compose would fill them in, with the tests' servers."""

        def fill(text: str) -> str:
            return re.sub(
                r"\$\{([A-Z_]+)(?::([-?])([^}]*))?\}",
                lambda match: self.values.get(match[1], match[3] if match[2] == "-" else ""),
                text,
            )

        given = {name: fill(str(value)) for name, value in SERVICES[service]["environment"].items()}
        given |= {"DATABASE_URL": postgres.url("deployment"), "REDIS_URL": valkey.url(db=7)}
        if "WORKER_HEARTBEAT_FILE" in given:
            given["WORKER_HEARTBEAT_FILE"] = str(self.app / "worker-alive")
        given["METRICS_DIR"] = str(self.app / "metrics")
        if "METRICS_BIND" in given:
            given["METRICS_BIND"] = f"127.0.0.1:{self.metrics_port}"
        return {**self.path, **given, "PORT": str(self.port), "BIND": f"127.0.0.1:{self.port}"}

    def start(self, service: str, command: list[str]) -> Process:
        """Start a service's command in the application's folder."""
        process = Process(service, [sys.executable if command[0] == "python" else command[0], *command[1:]],
                          self.app / f"{service}.log", cwd=self.app)  # fmt: skip
        process.env = self.environment(service)
        return process.start()

    def run(self, service: str, command: str | list[str]) -> subprocess.CompletedProcess[str]:
        """Run a command as in the service's container and wait for its end."""
        return subprocess.run(
            command, shell=isinstance(command, str), cwd=self.app, env=self.environment(service), capture_output=True,
            text=True, timeout=100, check=False,
        )  # fmt: skip


@pytest.fixture(scope="module")
def container(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Container]:
    """Return the built and migrated image with an empty database."""
    with psycopg.connect(postgres.url("postgres"), autocommit=True) as connection:
        connection.execute("DROP DATABASE IF EXISTS deployment WITH (FORCE)")
    postgres.create_database("deployment")
    container = Container(tmp_path_factory.mktemp("image") / "app")
    build = re.search(r"^RUN (.*python manage\.py collectstatic.*)$", DOCKERFILE, re.M)
    assert build, "the Dockerfile gathers no static files"
    built = subprocess.run(
        build[1], shell=True, cwd=container.app, env=container.path, capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr
    migrated = container.run("migrate", SERVICES["migrate"]["command"])
    assert migrated.returncode == 0, migrated.stderr
    yield container
    with psycopg.connect(postgres.url("postgres"), autocommit=True) as connection:
        connection.execute("DROP DATABASE IF EXISTS deployment WITH (FORCE)")


def _get(port: int, path: str, **headers: str) -> tuple[int, Any, str]:
    """Return status, headers and text of a request as the proxy in front passes it on."""
    given = {"Host": "localhost", "X-Forwarded-Proto": "https", **headers}
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers=given)
    with urllib.request.urlopen(request, timeout=30) as answer:
        return answer.status, answer.headers, answer.read().decode()


@pytest.mark.slow
def test_the_web_container_serves_is_healthy_and_stops(container: Container) -> None:
    command = re.search(r"^CMD (\[.*\])$", DOCKERFILE, re.M)
    check = re.search(r"HEALTHCHECK .*?CMD (\[.*\])$", DOCKERFILE, re.M)
    assert command
    assert check
    process = container.start("web", yaml.safe_load(command[1]))
    try:
        process.wait_for_url(f"http://127.0.0.1:{container.port}/api/health")
        healthy = container.run("web", yaml.safe_load(check[1]))
        assert healthy.returncode == 0, healthy.stderr
        status, headers, page = _get(container.port, "/admin/login/")
        assert status == 200
        assert "max-age=31536000" in headers["Strict-Transport-Security"]
        stylesheet = re.search(r'href="(/static/[^"]+\.css)"', page)
        assert stylesheet
        assert _get(container.port, stylesheet[1])[0] == 200
        assert _get(container.port, "/api/docs")[0] == 200
        assert 'triggers_processes{service="web"}' in _get(container.metrics_port, "/metrics", Host="web:9464")[2]
        assert process.stop() == 0
        assert container.run("web", yaml.safe_load(check[1])).returncode != 0
    finally:
        process.kill()


def test_the_worker_container_works_is_healthy_and_stops(container: Container) -> None:
    check = SERVICES["worker"]["healthcheck"]["test"]
    assert check[0] == "CMD-SHELL"
    alive = container.app / "worker-alive"
    command = check[1].replace("$$", "$").replace("/tmp/worker-alive", str(alive))
    assert container.run("worker", command).returncode != 0
    process = container.start("worker", SERVICES["worker"]["command"])
    try:
        wait_until(lambda: container.run("worker", command).returncode == 0, "the worker never got healthy", pause=0.2)
        first = alive.stat().st_mtime
        wait_until(lambda: alive.stat().st_mtime != first, "the worker showed life once only")
        assert process.stop() == 0
        # A worker that hangs is seen by its file growing old.
        os.utime(alive, (first - 600, first - 600))
        assert container.run("worker", command).returncode != 0
    finally:
        process.kill()


def test_the_production_settings_pass_django_s_own_check(container: Container) -> None:
    checked = container.run("web", [sys.executable, "manage.py", "check", "--deploy", "--fail-level", "WARNING"])
    assert checked.returncode == 0, checked.stderr
