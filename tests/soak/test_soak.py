"""`make soak` works: it runs as its users start it, and keeps every promise for a round."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from devstack.processes import ROOT
from tests.servers import HOME


def test_a_round_of_the_soak_runs_as_a_process_and_keeps_every_promise() -> None:
    home = HOME / "soak"
    (home / "soak.json").unlink(missing_ok=True)
    done = subprocess.run(
        [sys.executable, "-m", "soak"],
        cwd=ROOT, env={"PATH": os.environ["PATH"], "SOAK_HOME": str(home), "SOAK_ROUNDS": "1"},
        capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((home / "soak.json").read_text())
    assert found["rounds"] == 1
    assert found["accepted"] > 0
    assert found["lost"] == found["stuck"] == 0
    assert found["violations"] == []
