"""Every command that README and the documentation show is run by a test, or is here with the reason why not."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import yaml
from cryptography.fernet import Fernet

ROOT = Path(__file__).resolve().parents[2]
GUIDES = "tests/end_to_end/test_guides.py"
CLIENTS = "tests/clients/test_with_a_server.py"
# The test that runs all blocks of a page that are marked as `sh`, but for those below.
RUN_BY = {
    "README.md": CLIENTS,
    "docs/clients.md": CLIENTS,
    "docs/event-types.md": "tests/project/test_event_types_guide.py",
    **{
        f"docs/{name}.md": GUIDES
        for name in (
            "cloudevents", "credentials", "guides/migrate", "guides/receive", "guides/retries", "guides/send",
            "idempotency", "inbox", "integrations", "operate/backup", "portal", "quickstart", "routing",
        )
    },
}  # fmt: skip
# Blocks that begin with these words, wherever they are.
NOT_RUN = {
    "cp .env.example .env": "needs Docker; what compose starts is started by tests/project/test_deployment.py",
    "kubectl create secret": "needs a cluster; what Helm makes of the chart is checked by tests/project/test_chart.py",
    "python manage.py migrate\n": "started by tests/project/test_deployment.py: see below",
}


def blocks(page: str, language: str) -> list[str]:
    """Return the code of a page that is in a language."""
    found = re.findall(rf"^ *```{language}\n(.*?)^ *```$", (ROOT / page).read_text(), re.S | re.M)
    return [textwrap.dedent(block) for block in found]


def pages() -> list[str]:
    """Return the pages that people read."""
    own = [ROOT / name for name in ("README.md", "SECURITY.md", "CONTRIBUTING.md")]
    return [str(path.relative_to(ROOT)) for path in [*own, *sorted((ROOT / "docs").rglob("*.md"))]]


@pytest.mark.parametrize("page", [page for page in pages() if blocks(page, "sh")])
def test_a_test_runs_the_commands_of_a_page(page: str) -> None:
    left = [block for block in blocks(page, "sh") if not block.startswith(tuple(NOT_RUN))]
    if left:
        assert page in RUN_BY, f"no test runs {left[0]!r}; add one, or mark what only shows something as no `sh`"
        # A page that is opened by a list of names is there without its suffix.
        text = (ROOT / RUN_BY[page]).read_text()
        assert re.search(rf"\"(docs/)?{page.removeprefix('docs/').removesuffix('.md')}(\.md)?\"", text), page


def test_the_secrets_that_the_guide_to_deploying_makes_are_accepted() -> None:
    [block] = [block for block in blocks("docs/operate/deploy.md", "") if block.startswith("python -c")]
    script = block.replace("python ", f"{sys.executable} ")
    done = subprocess.run(["bash", "-euc", script], capture_output=True, text=True, timeout=60, check=True)
    secret_key, encryption_key = done.stdout.split()
    assert len(secret_key) >= 32
    Fernet(encryption_key)


def test_every_exception_is_shown_somewhere() -> None:
    shown = [block for page in pages() for block in blocks(page, "sh")]
    assert [words for words in NOT_RUN if not any(block.startswith(words) for block in shown)] == []


def test_what_runs_without_docker_is_what_the_image_and_compose_run() -> None:
    """Tests start the image's and compose's commands, so the documentation has to name the same ones."""
    [without_docker] = [block for block in blocks("README.md", "sh") if block.startswith("python manage.py migrate\n")]
    commands = [line.partition("#")[0].strip() for line in without_docker.splitlines()]
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    image = (ROOT / "Dockerfile").read_text()
    web = re.search(r"^CMD (\[.*\])$", image, re.M)
    assert web is not None
    assert commands[0] in " ".join(services["migrate"]["command"])
    assert commands[1] in image
    assert commands[2:] == [" ".join(yaml.safe_load(web[1])), " ".join(services["worker"]["command"])]
    assert without_docker in [*blocks("docs/operate/deploy.md", "")]
