"""A process that serves spares Python's garbage collector what it has loaded."""

from __future__ import annotations

import json
import subprocess
import sys

PROGRAM = """
import gc, json, sys
import triggers_project.asgi
print(json.dumps({
    "kept": gc.get_freeze_count(),
    "looked_at": len(gc.get_objects()),
    "views_loaded": "events.api.views" in sys.modules,
}))
"""


def test_a_web_process_is_loaded_before_its_first_request_and_its_modules_are_no_garbage_collectors_work() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=100, check=True)
    found = json.loads(done.stdout)
    assert found["views_loaded"]
    assert found["kept"] > 50_000
    assert found["looked_at"] < found["kept"] / 10
