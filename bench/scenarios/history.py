"""Whether anything takes longer beside a month of history: pages, lists, metrics, and the delivery itself."""

from __future__ import annotations

import json
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from dataclasses import asdict, dataclass
from typing import Any

from bench.bulk import partition_the_past, without_indexes
from bench.figures import Figure
from bench.rates import drain
from bench.scenarios.bigtables import logged_in
from bench.scenarios.history_pages import api_answers, console_pages, portal_pages
from bench.stack import BenchStack, cpu_nanoseconds
from bench.stats import median
from devstack.demo_data import Demo, fill

ROWS = 1_500_000
IS_FILLED = False
ORGANIZATIONS = 1000
SUBSCRIPTIONS = 2003
DAYS = 30
GETS = 5
WARM_UP = 2_000
DELIVERIES = 20_000
PAGE_SUBSCRIPTIONS = 10
METRICS_TOKEN = "bench-only"
METRICS_PAUSE = 15.1  # `MOST_FRESH_SECONDS` of triggers_project/metrics.py, and a little
NAME = "history"


def history(stack: BenchStack) -> list[Figure]:
    """A month of 1,500,000 deliveries (--rows) of 1,000 organizations: pages, lists, metrics, delivery rate."""
    kept = stack.home / "history.json"
    if IS_FILLED:
        found = json.loads(kept.read_text())
    else:
        empty = _rate(stack)
        stack.reset()
        found = {"demo": asdict(_fill(stack)), "empty": asdict(empty)}
        kept.write_text(json.dumps(found, default=str))
    demo = Demo(**{name: uuid.UUID(str(value)) for name, value in found["demo"].items()})
    figures = _pages(stack, demo)
    # What waits must not be sent while the rate is measured; it stays where it is.
    queues = [row[0] for row in stack.sql(_PAUSE)]
    try:
        return [*figures, *_compared(_Rate(**found["empty"]), _rate(stack))]
    finally:
        stack.sql(_GO_ON, (queues,))


_PAUSE = """
UPDATE webhooks_subscriptionqueue SET paused_until = now() + interval '1 day', breaker_trips = 1, failing_since = now()
WHERE next_due_at IS NOT NULL AND breaker_trips = 0 RETURNING subscription_id
"""
_GO_ON = """
UPDATE webhooks_subscriptionqueue SET paused_until = NULL, breaker_trips = 0, failing_since = NULL
WHERE subscription_id = ANY (%s)
"""


@dataclass(frozen=True)
class _Rate:
    """Deliveries a second, and what one of them takes of the worker's and PostgreSQL's processor time, in ms."""

    per_second: float
    processor: float


def _compared(empty: _Rate, full: _Rate) -> list[Figure]:
    return [
        Figure(NAME, "delivered, empty tables", empty.per_second, "/s"),
        Figure(NAME, "delivered", full.per_second, "/s"),
        Figure(NAME, "share of the empty tables' rate", full.per_second / empty.per_second * 100, "%", ">= 80"),
        Figure(NAME, "processor time of worker and PostgreSQL, empty tables", empty.processor, "ms/delivery"),
        Figure(NAME, "processor time of worker and PostgreSQL", full.processor, "ms/delivery"),
    ]


def _fill(stack: BenchStack) -> Demo:
    started = time.monotonic()
    partition_the_past(stack, DAYS)
    with without_indexes():
        demo = fill(ROWS, ORGANIZATIONS, SUBSCRIPTIONS, days=DAYS, backlogs=True)
    stack.sql("VACUUM ANALYZE")
    stack.sql("CHECKPOINT")
    print(f"filled in {time.monotonic() - started:.0f} s …", end=" ", file=sys.stderr, flush=True)
    return demo


def _rate(stack: BenchStack) -> _Rate:
    tenant = stack.tenant(f"Bench {uuid.uuid4()}")  # that of an earlier run may be there
    with stack.receiver() as receiver, stack.running_worker() as worker:
        drain(stack, tenant, receiver, deliveries=WARM_UP, subscriptions=2, pids=[worker.pid])
        pids = [worker.pid, *_servers(stack)]
        runs = [
            drain(stack, tenant, receiver, deliveries=DELIVERIES, subscriptions=PAGE_SUBSCRIPTIONS, pids=pids)
            for _ in range(2)
        ]
    spent = sum(run.cpu for run in runs) * 1000 / sum(run.deliveries for run in runs)
    return _Rate(sum(run.per_second for run in runs) / 2, spent)


def _servers(stack: BenchStack) -> list[int]:
    return [] if stack.postgres.pid is None else [stack.postgres.pid]


def _pages(stack: BenchStack, demo: Demo) -> list[Figure]:
    with tempfile.TemporaryDirectory(prefix="triggers-bench-") as folder:
        env = {"METRICS_DIR": folder, "METRICS_TOKEN": METRICS_TOKEN}
        # One process, so that a page is measured in the process that the page before has warmed.
        web = stack.make_web(1, env).start()
        try:
            web.wait_for_url(f"{stack.url}/api/health")
            pids = web.pid
            browser, root = logged_in(stack.url)
            groups = [("console: ", browser, root, console_pages(stack, demo), "< 300")]
            key = stack.make_key(str(demo.organization))
            groups.append(("portal: ", _portal(stack, key), stack.url, portal_pages(stack, demo), "< 300"))
            api = urllib.request.build_opener()
            api.addheaders = [("X-API-Key", key)]
            groups.append(("API: ", api, f"{stack.url}/api/", api_answers(stack, demo), "< 100"))
            metrics = urllib.request.build_opener()
            metrics.addheaders = [("Authorization", f"Bearer {METRICS_TOKEN}")]
            figures = []
            for kind, opener, base, paths, target in groups:
                for name, path in paths.items():
                    figures += _measured(stack, pids, opener, kind + name, base + path, target)
            # Figures are used again for some seconds; each request here reads them anew.
            url = f"{stack.url}/metrics"
            return [*figures, *_measured(stack, pids, metrics, "GET /metrics", url, "< 50", METRICS_PAUSE)]
        finally:
            web.stop(timeout=15)


def _portal(stack: BenchStack, key: str) -> urllib.request.OpenerDirector:
    """Return somebody with a session of the portal."""
    request = urllib.request.Request(
        f"{stack.url}/api/portal-links", b"{}", {"X-API-Key": key, "Content-Type": "application/json"}, method="POST"
    )
    with urllib.request.urlopen(request, timeout=30) as response:
        token = json.load(response)["url"].partition("#")[2]
    opener = urllib.request.build_opener(_Stay)
    form = urllib.parse.urlencode({"token": token.removeprefix("token=")}).encode()
    try:
        headers = opener.open(f"{stack.url}/portal/open", form, timeout=30).headers
    except urllib.error.HTTPError as error:  # the redirect, which isn't followed
        headers = error.headers
    opener = urllib.request.build_opener()
    opener.addheaders = [("Cookie", headers["Set-Cookie"].partition(";")[0])]
    return opener


class _Stay(urllib.request.HTTPRedirectHandler):
    """Follows no redirect."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


def _measured(
    stack: BenchStack, web: int, opener: urllib.request.OpenerDirector, name: str, url: str, target: str,
    pause: float = 0.0,
) -> list[Figure]:  # fmt: skip
    """Return the median time of GETs after the first, and the processor time of a GET, here and in PostgreSQL."""
    taken, spent, queried = [], [], []
    for _ in range(GETS + 1):
        time.sleep(pause)
        of_web, of_database = cpu_nanoseconds([web]), cpu_nanoseconds(_servers(stack))
        started = time.perf_counter()
        try:
            opener.open(url, timeout=60).read()
        except urllib.error.HTTPError as error:
            if error.code == 503 and "/health/" in url:  # no worker lives
                error.read()
            else:
                print(f"{name}: {error.code} at {url}")
                return [Figure(NAME, name, float("nan"), "ms", target)]
        taken.append((time.perf_counter() - started) * 1000)
        spent.append((cpu_nanoseconds([web]) - of_web) / 1e6)
        queried.append((cpu_nanoseconds(_servers(stack)) - of_database) / 1e6)
    return [
        Figure(NAME, name, median(taken[1:]), "ms", target),
        Figure(NAME, f"{name}, processor time of the web process", median(spent[1:]), "ms"),
        Figure(NAME, f"{name}, processor time of PostgreSQL", median(queried[1:]), "ms"),
    ]
