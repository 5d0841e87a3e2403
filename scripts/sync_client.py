"""Write the Python client that blocks from the one for asyncio: `python -m scripts.sync_client`.

`triggers_client/aio.py` is the source.  What can't be had by replacing words is the few sentences of TEXTS.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "clients" / "python" / "src" / "triggers_client"
SOURCE = PACKAGE / "aio.py"
WRITTEN = PACKAGE / "client.py"

TEXTS = {
    '"""The client for asyncio and trio: the same operations, awaited."""': (
        '"""The client for programs that wait for each response.\n\n'
        "Written from aio.py by `python -m scripts.sync_client`: change that one.\n"
        '"""'
    ),
    """The API for asyncio and trio.  Use `async with`, or close it with `aclose`.

    The parameters are those of `Client`; http: an `httpx.AsyncClient` of yours.
""": """The API for programs that wait for each response.  Threads can share one; close it, or use `with`.

    api_key, base_url: without them, TRIGGERS_API_KEY and TRIGGERS_URL.  timeout: in seconds.  max_retries: how often a
    request is sent again if that is safe.  http: an httpx client of yours, for a proxy or certificates of your own.
""",
    """            for item in page.data:
                yield item
""": """            yield from page.data
""",
    "Coroutine[Any, Any, T]": "T",
    "Callable, Coroutine, ": "Callable, ",
    "import anyio\n": "",
    "import functools\n": "import functools\nimport time\n",
}
WORDS = [
    (r"\basync (def|for|with)\b", r"\1"),
    (r"\bawait ", ""),
    (r"\bAsync(?=[A-Z])", ""),
    (r"\banyio\.", "time."),
    (r"\b(__)?a(close|enter__|exit__|iter__|iter_lines|read)\b", r"\1\2"),
]


def written() -> str:
    """Return the client that blocks, formatted."""
    text = SOURCE.read_text()
    for awaited, blocking in TEXTS.items():
        if awaited not in text:
            raise ValueError(f"aio.py has no {awaited!r}")
        text = text.replace(awaited, blocking)
    for pattern, replacement in WORDS:
        text = re.sub(pattern, replacement, text)
    for command in (["check", "--fix", "--exit-zero", "--quiet"], ["format", "--quiet"]):
        ruff = [sys.executable, "-m", "ruff", *command, "--stdin-filename", str(WRITTEN), "-"]
        text = subprocess.run(ruff, input=text, capture_output=True, text=True, check=True).stdout
    return text


if __name__ == "__main__":
    WRITTEN.write_text(written())
