"""The samples of the help page verify what we sign, and nothing else."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import playwright
import pytest

from portal.pages.help_page import LANGUAGES, SAMPLES
from webhooks.destinations.http.signing import new_secret, sign

BODY = '{"total": 12.50, "name": "Zoë"}'
Case = tuple[dict[str, str], str, bool]


def node() -> str | None:
    """Return a Node.js: the machine's, or the one that Playwright brings."""
    own = Path(playwright.__file__).parent / "driver" / "node"
    return shutil.which("node") or (str(own) if own.exists() else None)


PYTHON = """
import json, sys; sys.path.insert(0, {folder!r}); sys.dont_write_bytecode = True
from verify import is_genuine
secret, cases = json.load(sys.stdin)
print(json.dumps([is_genuine(secret, headers, body.encode()) for headers, body in cases]))
"""
NODE = """
const {{isGenuine}} = require({folder!r} + '/verify.js');
const [secret, cases] = JSON.parse(require('fs').readFileSync(0));
console.log(JSON.stringify(cases.map(([headers, body]) => isGenuine(secret, headers, Buffer.from(body)))));
"""
PHP = """
require {folder!r} . '/verify.php';
[$secret, $cases] = json_decode(file_get_contents('php://stdin'), true);
echo json_encode(array_map(fn($case) => is_genuine($secret, $case[0], $case[1]), $cases));
"""
RUBY = """
require "json"; require {folder!r} + "/verify.rb"
secret, cases = JSON.parse($stdin.read)
puts JSON.generate(cases.map {{ |headers, body| genuine?(secret, headers, body) }})
"""
RUNS: dict[str, tuple[Callable[[], str | None], str, str]] = {
    "python": (lambda: sys.executable, "-c", PYTHON),
    "node": (node, "-e", NODE),
    "php": (lambda: shutil.which("php"), "-r", PHP),
    "ruby": (lambda: shutil.which("ruby"), "-e", RUBY),
}


@pytest.mark.parametrize("language", RUNS)
def test_a_sample_tells_what_is_genuine(language: str) -> None:
    find, option, script = RUNS[language]
    program = find()
    if program is None:
        pytest.skip(f"no {language} on this machine")
    secret, now = new_secret(), int(time.time())

    def headers(at: int, *secrets: str) -> dict[str, str]:
        signatures = " ".join(
            sign([base64.b64decode(one.removeprefix("whsec_"))], "msg_1", at, BODY.encode()) for one in secrets
        )
        return {"webhook-id": "msg_1", "webhook-timestamp": str(at), "webhook-signature": signatures}

    good = headers(now, secret)
    cases: list[Case] = [
        (good, BODY, True),
        (headers(now, new_secret(), secret), BODY, True),  # a rotation
        (good, BODY + " ", False),
        ({**good, "webhook-id": "msg_2"}, BODY, False),
        (headers(now, new_secret()), BODY, False),
        (headers(now - 400, secret), BODY, False),
        (headers(now + 400, secret), BODY, False),
        ({**good, "webhook-timestamp": "now"}, BODY, False),
        ({**good, "webhook-signature": ""}, BODY, False),
        ({**good, "webhook-signature": "v1,é"}, BODY, False),
    ]
    done = subprocess.run(
        [program, option, script.format(folder=str(SAMPLES))],
        input=json.dumps([secret, [case[:2] for case in cases]]), capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [expected for _, _, expected in cases]


def test_there_is_a_sample_for_each_language() -> None:
    assert {path.name for path in SAMPLES.iterdir() if path.suffix != ".pyc" and path.is_file()} == {
        name for _, name in LANGUAGES.values()
    }
