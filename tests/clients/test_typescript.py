"""The TypeScript client, packed and installed: `make clients-check`, which has installed what it is built with.

Not in `make test`: Node.js and npm's packages aren't needed there.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.system import Account

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "clients" / "typescript"
TOOLS = PACKAGE / "node_modules"

pytestmark = [
    pytest.mark.end_to_end,
    pytest.mark.skipif("CLIENTS_CHECK" not in os.environ, reason="make clients-check runs it"),
]


def run(*command: str, cwd: Path, **env: str) -> str:
    """Run a command, and return what it prints."""
    ran = subprocess.run(
        command, cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True, timeout=110, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a project that has the packed client, the client's tests, and the examples of its README."""
    folder = tmp_path_factory.mktemp("project")
    [packed] = json.loads(run("npm", "pack", "--json", "--pack-destination", str(folder), cwd=PACKAGE))
    names = {file["path"] for file in packed["files"]}
    assert {"LICENSE", "README.md", "dist/index.js", "dist/index.d.ts", "package.json"} <= names
    assert all(re.match(r"dist/|LICENSE$|README\.md$|package\.json$", name) for name in names)
    (folder / "package.json").write_text('{"name": "project", "private": true, "type": "module"}')
    run("npm", "install", "--offline", "--no-audit", "--no-fund", str(folder / packed["filename"]), cwd=folder)
    shutil.copy(PACKAGE / "test" / "client.test.ts", folder)
    readme = (PACKAGE / "README.md").read_text()
    examples = "".join(re.findall(r"^```ts\n(.*?)^```$", readme, re.S | re.M))
    (folder / "examples.ts").write_text(f"{examples}\nvoid handle;\n")
    options = {"module": "NodeNext", "target": "ES2022", "strict": True, "typeRoots": [str(TOOLS / "@types")]}
    (folder / "tsconfig.json").write_text(json.dumps({"compilerOptions": options, "include": ["*.ts"]}))
    run("node", str(TOOLS / "typescript" / "bin" / "tsc"), cwd=folder)
    return folder


def test_the_packed_client_works_against_a_server(project: Path, installation: Account) -> None:
    env = {"TRIGGERS_URL": installation.url, "TRIGGERS_API_KEY": installation.key}
    report = run("node", "--test", "--test-reporter=tap", "client.test.js", cwd=project, **env)
    assert re.search(r"^# pass 8$", report, re.M), report
    printed = run("node", "examples.js", cwd=project, **env)
    assert re.search(r"^[0-9a-f-]{36} accepted$", printed, re.M)
    assert "sent before, with other data:" in printed
