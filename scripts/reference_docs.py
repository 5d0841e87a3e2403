"""Write what the documentation takes from the code: `python -m scripts.reference_docs`.

That is the pages of docs/reference/, the samples of docs/guides/receive.md, the scopes in docs/concepts.md, and what
`scripts.settings_docs` writes.
A test fails while they aren't what this would write.
"""

from __future__ import annotations

import base64
import datetime
import json
import os
import re
import sys
import textwrap
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from scripts import settings_docs

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
NOTE = "<!-- Written by `python -m scripts.reference_docs` from the code. Change the code, not this page. -->\n"
METHODS = ("get", "post", "patch", "put", "delete")


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "".join("| " + " | ".join(_cell(cell) for cell in line) + " |\n" for line in lines)


def _prose(text: str) -> str:
    return textwrap.fill(text, 118, break_long_words=False, break_on_hyphens=False) + "\n\n"


def _cell(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip().replace("|", "\\|")


# --- problems, settings, metrics --------------------------------------------------------------------


def problems() -> str:
    """Return the page of the problem codes, from their registry."""
    from core.problems import problem_types
    from scripts.problem_remedies import REMEDIES

    types = problem_types()
    codes = {one.code for one in types}
    if codes != set(REMEDIES):
        raise SystemExit(
            f"scripts/problem_remedies.py and the registered codes differ: {sorted(codes ^ set(REMEDIES))}"
        )
    rows = [(str(one.status), f"`{one.code}`", one.description, REMEDIES[one.code]) for one in types]
    example = {
        "type": "/api/problems/missing_scope", "title": "Missing scope", "status": 403,
        "detail": "This key lacks the scope events:write.", "code": "missing_scope", "scope": "events:write",
        "request_id": "0198f2d0-6d3c-7a52-9b1e-2f4c8a1b3d5e",
    }  # fmt: skip
    return (
        "# Problem codes\n\n"
        f"{NOTE}\n"
        "A request that is refused or fails gets a problem document (RFC 9457, `application/problem+json`):\n\n"
        f"```json\n{json.dumps(example, indent=2)}\n```\n\n"
        + _prose(
            "Programs should look at `code`, which doesn't change; `detail` is a sentence for people. `errors` "
            "lists the fields that are wrong, each with a JSON Pointer. `request_id` finds the request in the "
            "log. `type` leads to the page of the code on your installation."
        )
        + _table(("status", "code", "meaning", "what to do"), rows)
    )


def settings() -> str:
    """Return the page of the settings, from their declarations."""
    return (
        "# Settings\n\n"
        f"{NOTE}\n"
        + _prose(
            "All settings are environment variables. If a value is wrong, no process starts, and the error names "
            "the setting. Write durations as `500ms`, `30s`, `5m`, `24h`, or `5d`; a number without a unit is in "
            "seconds. [Operations](../operations.md#settings) describes how the settings are used."
        )
        + settings_docs.tables().rstrip()
        + "\n"
    )


def metrics() -> str:
    """Return the page of the metrics: kinds and buckets from their declarations, meanings from monitoring.md."""
    import triggers_project.metrics  # noqa: F401 - declares them
    from core.metrics.kinds import Counter, Histogram, declared

    page = (DOCS / "monitoring.md").read_text()  # which a test compares with what `/metrics` shows
    rows, buckets = [], []
    for name, labels, meaning in re.findall(r"^\| `(triggers_\w+)` \| (.*?) ?\| (.+) \|$", page, re.M):
        metric = declared.get(name)
        kind = "counter" if isinstance(metric, Counter) else "histogram" if isinstance(metric, Histogram) else "gauge"
        meaning = re.sub(r"\]\((\w+\.md)", r"](../\1", meaning)
        rows.append((f"`{name}`", kind, labels, meaning))
        if isinstance(metric, Histogram):
            buckets.append((f"`{name}`", ", ".join(f"{bound:g}" for bound in metric.bounds)))
    return (
        "# Metrics\n\n"
        f"{NOTE}\n"
        + _prose(
            "`GET /metrics` serves these in Prometheus's text format. [Monitoring](../monitoring.md#metrics) says "
            "how to turn them on, how to scrape them, and what each alert means."
        )
        + _table(("metric", "kind", "labels", "meaning"), rows)
        + "\nBuckets of the histograms, in seconds:\n\n"
        + _table(("metric", "upper bounds"), buckets)
    )


# --- commands ---------------------------------------------------------------------------------------


class _Arguments:
    """Notes what a command adds to its parser."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, str]] = []
        self.usage: list[str] = []

    def add_argument(self, *names: str, **options: Any) -> None:
        """Note one argument."""
        name = max(names, key=len)
        word = options.get("metavar") or name.strip("-").replace("-", "_").upper()
        value = "" if str(options.get("action")).startswith("store_") else f" {word}"
        shown = f"{name}{value}" if name.startswith("-") else value.strip()
        optional = name.startswith("-") and not options.get("required")
        self.usage.append(f"[{shown}]" if optional or options.get("nargs") in {"?", "*"} else shown)
        meaning = str(options.get("help", "")).replace("%(default)s", str(options.get("default")))
        if "choices" in options:
            meaning = f"{meaning.rstrip('.')}. One of {', '.join(f'`{choice}`' for choice in options['choices'])}."
        self.rows.append((f"`{shown}`", meaning[:1].upper() + meaning[1:]))

    def add_mutually_exclusive_group(self, **options: Any) -> _Arguments:
        """Note the arguments of a group as any others."""
        return self

    add_argument_group = add_mutually_exclusive_group


def commands() -> str:
    """Return the page of the management commands, from themselves."""
    from django.core.management import get_commands, load_command_class

    # Without core's `rqworker`: its options are RQ's, and a worker is started without any.
    ours = {name: app for name, app in get_commands().items() if app in {"orgs", "events", "webhooks", "portal"}}
    sections = []
    for name in sorted(ours):
        command, arguments = load_command_class(ours[name], name), _Arguments()
        command.add_arguments(arguments)  # type: ignore[arg-type]
        usage = " ".join([f"python manage.py {name}", *arguments.usage])
        section = f"## {name}\n\n{command.help}\n\n```\n{usage}\n```\n"
        if arguments.rows:
            section += "\n" + _table(("argument", "meaning"), arguments.rows)
        sections.append(section)
    return (
        "# Commands\n\n"
        f"{NOTE}\n"
        + _prose(
            "Run commands on any machine with the settings of the installation, for example with `docker compose "
            "exec web python manage.py …`. When a command fails, it prints the reason on stderr, nothing on "
            "stdout, and exits with 1 or 2. A worker is `python manage.py rqworker events webhooks`, and `python "
            "manage.py createsuperuser` creates the first user of the admin. See "
            "[Operations](../operations.md#commands) for how they are used."
        )
        + "\n".join(sections)
    )


# --- the command line -------------------------------------------------------------------------------


def _command_line_section(name: str, command: Any) -> str:
    """Return what `triggers NAME --help` says, as a section."""
    usage, rows = [f"triggers {name}"], []
    for parameter in command.params:
        is_argument = parameter.param_type_name == "argument"
        option = max(parameter.opts, key=len)
        if option == "--help":
            continue
        value = parameter.metavar or ("" if parameter.is_flag else parameter.name.upper())
        shown = f"{value}{'...' if parameter.nargs == -1 else ''}" if is_argument else f"{option} {value}".rstrip()
        meaning = f"{parameter.help.rstrip('.')}."
        if parameter.default not in (None, False, "", []) and not parameter.required:
            meaning += f" Default: `{parameter.default}`."
        if parameter.envvar:
            meaning += f" `{parameter.envvar}` is the same."
        usage.append(shown if parameter.required else f"[{shown}]")
        rows.append((f"`{shown}`", meaning))
    # Lines that a docstring breaks are one paragraph.
    paragraphs = [" ".join(paragraph.split()) for paragraph in command.help.split("\n\n")]
    text = "".join(_prose(paragraph) for paragraph in paragraphs)
    section = f"## triggers {name}\n\n{text}```\n{' '.join(usage)}\n```\n"
    return section + ("\n" + _table(("argument", "meaning"), rows) if rows else "")


def command_line() -> str:
    """Return the page of `triggers`, from its commands."""
    import typer.main
    from triggers_client.cli.main import app

    sections = []
    for name, command in typer.main.get_command(app).commands.items():
        sections.append(_command_line_section(name, command))
        sections += [
            _command_line_section(f"{name} {below}", one) for below, one in getattr(command, "commands", {}).items()
        ]
    return (
        "# Command line\n\n"
        f"{NOTE}\n"
        + _prose(
            "`triggers` sends and receives events, and shows what became of them. [Clients and the command "
            "line](../clients.md) says how to install it, and shows it at work. `TRIGGERS_URL` and "
            "`TRIGGERS_API_KEY` take precedence over what `triggers login` has stored. When a command fails, it "
            "prints the reason on stderr and exits with 1, or with 2 if its arguments are wrong."
        )
        + "\n".join(sections)
    )


# --- webhook requests -------------------------------------------------------------------------------

HEADERS = {
    "content-type": "The media type of the body, which depends on the format.",
    "user-agent": "The sender and its major version.",
    "webhook-id": "The event's id. It is the same on every attempt, and in every subscription's request for the event.",
    "webhook-timestamp": "When the attempt was made, in seconds since 1970.",
    "webhook-signature": "One signature for each secret of the subscription, separated by spaces: `v1,` and base64 "
    "(HMAC-SHA256), or `v1a,` and base64 (ed25519).",
    "traceparent": "The trace of the request that sent the event, with its own span id, if it belongs to one.",
    "tracestate": "Passed on with `traceparent`.",
}


def _webhooks_in_each_format() -> str:
    """Return a webhook in each format, from the functions that make them, after a look whether HEADERS is complete."""
    from webhooks.destinations.formats import Format, render
    from webhooks.destinations.http.destination import build_headers
    from webhooks.destinations.http.endpoint import Endpoint
    from webhooks.destinations.http.signing import secret_key
    from webhooks.outgoing import SingleOutgoing

    secret = "whsec_" + base64.b64encode(bytes(range(32))).decode()
    expression = "{text: join(' ', [type, to_string(data.id)])}"
    organization, when = uuid.UUID(int=0), datetime.datetime(2027, 1, 31, 12, tzinfo=datetime.UTC)
    outgoing = SingleOutgoing(
        uuid.UUID("0198f2d0-6d3c-7a52-9b1e-2f4c8a1b3d5e"), "order.created", when, '{"id": 17, "total": 12.50}',
        Endpoint("https://example.com/hook", "example.com:443", (), (secret_key(secret),)), organization,
        event_trace="00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01 vendor=1",
    )  # fmt: skip
    sections, names = [], {}
    for form in Format:
        body = render(outgoing, organization, form, expression)
        headers = build_headers(outgoing, int(when.timestamp()), body.content, body)
        names |= dict(headers)
        own = "".join(f"{name}: {value}\n" for name, value in (*headers[:1], *body.headers))
        said = f" With the expression `{expression}`:" if form == Format.TRANSFORM else ""
        text = body.content.decode()
        sections.append(f"### {form}\n{chr(10) + said.strip() + chr(10) if said else ''}\n```\n{own}\n{text}\n```\n")
    described = {name for name in names if not name.startswith("ce-")}
    if described != set(HEADERS):
        raise SystemExit(f"HEADERS and the headers that are sent differ: {sorted(described ^ set(HEADERS))}")
    return "\n".join(sections)


def webhooks() -> str:
    """Return the page of the requests that endpoints get."""
    from webhooks.api.header_rules import OURS

    return (
        "# Webhook requests\n\n"
        f"{NOTE}\n"
        + _prose(
            "A webhook is a POST over HTTP/1.1 to the subscription's URL. [Receive "
            "webhooks](../guides/receive.md) shows how to verify one."
        )
        + "## Headers\n\n"
        + _table(("header", "meaning"), [(f"`{name}`", meaning) for name, meaning in HEADERS.items()])
        + "\n"
        + _prose(
            "In addition to these, a request has `host` and `content-length`, the subscription's own `headers`, what "
            "its [credentials](../credentials.md) say (`authorization`, a `signature_header`), and, in the format "
            "`cloudevents-binary`, the event's attributes as `ce-` headers. A subscription's own headers can't replace "
            f"{', '.join(f'`{name}`' for name in sorted(OURS))}, or any that starts with `webhook-` or `ce-`."
        )
        + "## Responses\n\n"
        + _table(
            ("status", "what happens"),
            [
                ("2xx", "the delivery is `delivered`"),
                ("3xx", "a failure; redirects aren't followed"),
                ("410", "the subscription is disabled, and its deliveries are held"),
                ("429, 503", "a failure; `Retry-After` pauses the subscription, for at most `RETRY_AFTER_MAX`"),
                ("any other, or none within `DELIVERY_TIMEOUT`", "a failure"),
            ],
        )
        + "\nAfter a failure, the delivery is [retried](../guides/retries.md).\n\n"
        "## Bodies\n\n"
        'What the event `order.created` with the data `{"id": 17, "total": 12.50}` looks like in each\n'
        "[format](../event-types.md#formats):\n\n" + _webhooks_in_each_format()
    )


# --- the API ----------------------------------------------------------------------------------------


class _Schema:
    """The OpenAPI document, and what of it is shown as a separate table."""

    def __init__(self, document: dict[str, Any]) -> None:
        self.document = document
        self.shown: list[str] = []

    def resolve(self, part: dict[str, Any]) -> dict[str, Any]:
        """Follow a reference."""
        if "$ref" not in part:
            return part
        found: Any = self.document
        for step in part["$ref"].removeprefix("#/").split("/"):
            found = found[step]
        return {**found, **{name: value for name, value in part.items() if name != "$ref"}}

    def kind(self, part: dict[str, Any]) -> str:
        """Return the type of a value in words, with a link to its table if it is an object that has one."""
        whole = self.resolve(part)
        if "$ref" in part and "properties" in whole:
            name = part["$ref"].rsplit("/", 1)[1]
            if name not in self.shown:
                self.shown.append(name)
            return f"[{name}](#{name.lower()})"
        for either in ("oneOf", "anyOf", "allOf"):
            if either in whole:
                return " or ".join(dict.fromkeys(self.kind(one) for one in whole[either]))
        if "const" in whole:
            return f"`{whole['const']}`"
        if "enum" in whole:
            return ", ".join(f"`{value}`" if value is not None else "null" for value in whole["enum"])
        types = whole.get("type", "any JSON value")
        words = [types] if isinstance(types, str) else list(types)
        if "array" in words:
            words[words.index("array")] = f"array of {self.kind(whole['items'])}" if whole.get("items") else "array"
        text = " or ".join(words)
        text += f" ({whole['format']})" if "format" in whole and whole["format"] != "double" else ""
        least, most = whole.get("minimum"), whole.get("maximum")
        if least is not None and most is not None:
            text += f", {least} to {most}"
        return text + (f", default {json.dumps(whole['default'])}" if whole.get("default") is not None else "")

    def fields(self, part: dict[str, Any]) -> str:
        """Return the table of an object's members."""
        whole = self.resolve(part)
        required = whole.get("required", [])
        rows = [
            (f"`{name}`", self.kind(member), ("Required. " if part.get("request") and name in required else "")
             + self.resolve(member).get("description", ""))
            for name, member in whole.get("properties", {}).items()
        ]  # fmt: skip
        return _table(("member", "type", "meaning"), rows) if rows else ""


def api() -> str:
    """Return the page of the API's operations, from the OpenAPI document."""
    from core.openapi.view import rendered_schema

    return operations_page(json.loads(rendered_schema("json")))


def operations_page(document: dict[str, Any]) -> str:
    """Return the page of an OpenAPI document's operations."""
    schema = _Schema(document)
    by_tag: dict[str, list[str]] = {}
    for path, item in schema.document["paths"].items():
        for method in METHODS:
            if method in item:
                by_tag.setdefault(item[method]["tags"][0], []).append(_operation(schema, path, method, item[method]))
    parts = [
        f"## {tag['name']}\n\n{tag['description']}\n\n" + "\n".join(by_tag[tag["name"]])
        for tag in schema.document["tags"]
        if tag["name"] in by_tag
    ]
    objects, position = [], 0
    while position < len(schema.shown):  # a table may name further ones
        name = schema.shown[position]
        part = schema.document["components"]["schemas"][name]
        said = part.get("description", "")
        objects.append((name, f"### {name}\n\n{said + chr(10) * 2 if said else ''}{schema.fields(part)}"))
        position += 1
    return (
        "# API\n\n"
        f"{NOTE}\n"
        + _prose(
            "Every operation of the OpenAPI document that your installation serves at `/api/schema`. On `/api/docs` "
            "you can try them. Requests and responses are JSON. "
            "Send the key as `X-API-Key` or `Authorization: Bearer`. Refused requests get one of the [problem "
            "codes](problems.md). Every response has an `X-Request-Id`: the one that you sent, or a new one."
        )
        + "\n".join(parts)
        + "\n## Objects\n\n"
        + "\n".join(text for _, text in sorted(objects))
    )


def _operation(schema: _Schema, path: str, method: str, operation: dict[str, Any]) -> str:
    text = f"### {operation['summary']}\n\n`{method.upper()} {path}`\n\n"
    if said := operation.get("description", "").strip():
        text += f"{said}\n\n"
    given = [schema.resolve(one) for one in operation.get("parameters", [])]
    rows = [
        (f"`{one['name']}`", one["in"], schema.kind(one["schema"]), one.get("description", ""))
        for one in given
        if one["name"] != "X-Request-Id"
    ]
    if rows:
        text += _table(("parameter", "in", "type", "meaning"), rows) + "\n"
    content = operation.get("requestBody", {}).get("content", {})
    if content:
        body = content.get("application/json", {}).get("schema", {})
        table = schema.fields({**body, "request": True})
        others = [f"`{one}`" for one in content if one != "application/json"]
        text += "Body" + (f" (or {', '.join(others)})" if others else "") + (":\n\n" if table else ": ")
        text += table if table else f"{schema.kind(body)}.\n"
        text += "\n"
    answers = []
    for status, response in operation["responses"].items():
        if status.startswith("2"):
            shape = schema.resolve(response).get("content", {}).get("application/json", {}).get("schema")
            answers.append(f"`{status}`" + (f" {schema.kind(shape)}" if shape else ""))
    refused = [f"`{status}`" for status in operation["responses"] if not status.startswith("2")]
    text += f"Responses: {', '.join(answers)}" + (f"; problems: {', '.join(refused)}" if refused else "") + "\n"
    return text


# --- the samples of guides/receive.md ---------------------------------------------------------------

SAMPLES_BEGIN = "<!-- Written by `python -m scripts.reference_docs` from portal/samples. -->\n"
SAMPLES_END = "<!-- The end of what it writes. -->\n"
FENCES = {"py": "python", "js": "js", "go": "go", "rb": "ruby", "php": "php", "java": "java"}


def receive() -> str:
    """Return guides/receive.md with the samples that the portal shows."""
    from portal.pages.help_page import LANGUAGES, sample

    before, rest = (DOCS / "guides" / "receive.md").read_text().split(SAMPLES_BEGIN)
    _, after = rest.split(SAMPLES_END)
    parts = [
        f"### {label}\n\n```{FENCES[file.rsplit('.', 1)[1]]}\n{sample(language).rstrip()}\n```\n\n"
        for language, (label, file) in LANGUAGES.items()
    ]
    return f"{before}{SAMPLES_BEGIN}\n{''.join(parts)}{SAMPLES_END}{after}"


SCOPES_BEGIN = "<!-- Written by `python -m scripts.reference_docs` from orgs/scopes.py. -->\n"
SCOPES_END = "<!-- The end of the scopes. -->\n"


def concepts() -> str:
    """Return concepts.md with the table of the scopes."""
    from orgs.scopes import SCOPE_ALLOWS, Scope

    before, rest = (DOCS / "concepts.md").read_text().split(SCOPES_BEGIN)
    _, after = rest.split(SCOPES_END)
    table = _table(("scope", "allows"), [(f"`{scope.value}`", SCOPE_ALLOWS[scope]) for scope in Scope])
    return f"{before}{SCOPES_BEGIN}\n{table}\n{SCOPES_END}{after}"


PAGES: dict[str, Callable[[], str]] = {
    "reference/api.md": api,
    "reference/cli.md": command_line,
    "reference/commands.md": commands,
    "reference/metrics.md": metrics,
    "reference/problems.md": problems,
    "reference/settings.md": settings,
    "reference/webhooks.md": webhooks,
    "guides/receive.md": receive,
    "concepts.md": concepts,
}


def stale() -> Iterator[str]:
    """Yield each page that isn't what the code says, which `main` would write."""
    for name, write in PAGES.items():
        path = DOCS / name
        if not path.exists() or path.read_text() != write():
            yield name


def main() -> None:
    """Write all pages."""
    sys.path.insert(0, str(ROOT / "clients" / "python" / "src"))
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "devstack.typing_settings")
    import django

    django.setup()
    settings_docs.main()
    for name in list(stale()):
        (DOCS / name).write_text(PAGES[name]())
        print(f"docs/{name}")


if __name__ == "__main__":
    main()
