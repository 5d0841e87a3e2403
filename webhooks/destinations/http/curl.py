"""An attempt's request as a command for a shell: `curl`, with names in place of what is secret.

The text is made of what others sent, and somebody will paste it into a terminal.  So everything is quoted, and what
isn't printable (controls, marks that change the direction of text) is spelled out.
"""

from __future__ import annotations

import shlex

from webhooks.destinations.exchange import Exchange
from webhooks.destinations.http.query_secrets import mask_query

# A larger body isn't written into a command.
MAX_BODY_CHARACTERS = 1_048_576
BODY_FILE = "body.json"


def quote(text: str) -> str:
    """Return `text` as one word for bash, zsh, and ksh, whatever it holds but U+0000; for any shell if it is printable.

    What isn't printable is written as the octal numbers of its bytes, which `$'…'` turns back.
    """
    if text.isprintable():
        return shlex.quote(text)
    spelled = "".join(
        f"\\{c}" if c in "\\'" else c if c.isprintable() else "".join(f"\\{byte:03o}" for byte in c.encode())
        for c in text
    )
    return f"$'{spelled}'"


def body_command(body: str) -> str:
    """Return the command that writes the body, byte for byte, to the one that sends it.

    `printf` is part of the shell: an argument of a program may be no longer than 128 KiB.
    """
    return f"printf %s {quote(body)}" if len(body) <= MAX_BODY_CHARACTERS else f"cat {BODY_FILE}"


def curl_command(exchange: Exchange) -> str:
    """Return the command that sends what it reads as the exchange's request did.

    What curl would add or change by itself is switched off.
    """
    lines = ["curl --include --request POST --http1.1 --globoff --path-as-is --header accept: --header expect:"]
    for name, value in exchange.request_headers:
        if value is None:
            value = f"<{name}>"
        lines.append(f"--header {quote(f'{name}: {value}' if value else f'{name};')}")
    lines.append(f"--data-binary @- {quote(mask_query(exchange.url, '<{}>'.format))}")
    return " \\\n  ".join(lines)
