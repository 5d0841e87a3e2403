"""The samples of the help page verify what we sign, and nothing else."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

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


# These two are compiled, and read the secret and the cases as lines of base64.
GO = """package main

import (
	"bufio"
	"encoding/base64"
	"fmt"
	"net/http"
	"os"
	"sample/webhooks"
)

func main() {
	lines := bufio.NewScanner(os.Stdin)
	next := func() string {
		lines.Scan()
		text, _ := base64.StdEncoding.DecodeString(lines.Text())
		return string(text)
	}
	secret := next()
	for lines.Scan() {
		header := http.Header{}
		for _, name := range []string{"webhook-id", "webhook-timestamp", "webhook-signature"} {
			header.Set(name, next())
		}
		fmt.Println(webhooks.IsGenuine(secret, header, []byte(next())))
	}
}
"""
JAVA = """
import java.io.*;
import java.util.*;

class Main {
    public static void main(String[] arguments) throws Exception {
        Iterator<String> lines = new BufferedReader(new InputStreamReader(System.in)).lines().iterator();
        String secret = next(lines);
        while (lines.hasNext()) {
            lines.next();
            Map<String, String> headers = new HashMap<>();
            for (String name : List.of("webhook-id", "webhook-timestamp", "webhook-signature")) {
                headers.put(name, next(lines));
            }
            System.out.println(Webhooks.isGenuine(secret, headers::get, next(lines).getBytes("UTF-8")));
        }
    }

    static String next(Iterator<String> lines) throws Exception {
        return new String(Base64.getDecoder().decode(lines.next()), "UTF-8");
    }
}
"""


def make_cases() -> tuple[str, list[Case]]:
    """Return a secret, and requests with whether they are genuine."""
    secret, now = new_secret(), int(time.time())

    def headers(at: int, *secrets: str) -> dict[str, str]:
        signatures = " ".join(
            sign([base64.b64decode(one.removeprefix("whsec_"))], "msg_1", at, BODY.encode()) for one in secrets
        )
        return {"webhook-id": "msg_1", "webhook-timestamp": str(at), "webhook-signature": signatures}

    good = headers(now, secret)
    return secret, [
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


def run(command: list[str], given: str, **options: Any) -> str:
    """Return what a program prints, which must end well."""
    done = subprocess.run(command, input=given, capture_output=True, text=True, timeout=100, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("language", RUNS)
def test_a_sample_tells_what_is_genuine(language: str) -> None:
    find, option, script = RUNS[language]
    program = find()
    if program is None:
        pytest.skip(f"no {language} on this machine")
    secret, cases = make_cases()
    shown = run(
        [program, option, script.format(folder=str(SAMPLES))], json.dumps([secret, [case[:2] for case in cases]])
    )
    assert json.loads(shown) == [expected for _, _, expected in cases]


def check_lines(secret: str, cases: list[Case], command: list[str], **options: Any) -> None:
    """Give a program the cases as lines, and compare what it says of each."""
    lines = [secret]
    for headers, body, _ in cases:
        lines += ["", headers["webhook-id"], headers["webhook-timestamp"], headers["webhook-signature"], body]
    given = "\n".join(base64.b64encode(line.encode()).decode() for line in lines)
    shown = run(command, given + "\n", **options)
    assert [line == "true" for line in shown.split()] == [expected for _, _, expected in cases]


def test_the_sample_for_go_tells_what_is_genuine(tmp_path: Path) -> None:
    go = shutil.which("go")
    if go is None:
        pytest.skip("no go on this machine")
    (tmp_path / "go.mod").write_text("module sample\n\ngo 1.21\n")
    (tmp_path / "main.go").write_text(GO)
    (tmp_path / "webhooks").mkdir()
    shutil.copy(SAMPLES / "verify.go", tmp_path / "webhooks")
    stale = "{{if and .Standard .Stale}}{{.ImportPath}}{{end}}"
    if not os.environ.get("CI") and run([go, "list", "-deps", "-f", stale, "."], "", cwd=tmp_path).strip():
        pytest.skip("Go would have to compile its own library first, for half a minute: run `go build net/http` once")
    check_lines(*make_cases(), [go, "run", "."], cwd=tmp_path)


def test_the_sample_for_java_tells_what_is_genuine(tmp_path: Path) -> None:
    java, compiler = shutil.which("java"), shutil.which("javac")
    if java is None or compiler is None:
        pytest.skip("no Java compiler on this machine")
    (tmp_path / "Main.java").write_text(JAVA)
    run([compiler, "-d", str(tmp_path), str(SAMPLES / "Webhooks.java"), str(tmp_path / "Main.java")], "")
    check_lines(*make_cases(), [java, "-cp", str(tmp_path), "Main"])


def test_there_is_a_sample_for_each_language() -> None:
    assert {path.name for path in SAMPLES.iterdir() if path.suffix != ".pyc" and path.is_file()} == {
        name for _, name in LANGUAGES.values()
    }
