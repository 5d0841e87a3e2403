"""Ask a real Prometheus, which scrapes a running system, for everything that the board and the alerts show.

`make monitoring-check`.  Prints a line for each query that returns nothing, and fails if there is one.
"""

from __future__ import annotations

import datetime
import json
import os
import signal
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import trustme
import yaml

from devstack import prometheus
from devstack.http_receiver import Receiver, Response
from devstack.processes import ROOT
from devstack.sockets import free_port
from devstack.stack import Stack, forget_settings_of_the_shell, stop_on_signals
from devstack.waiting import wait_until

DEPLOY = ROOT / "deploy"
SCRAPE_SECONDS = 1
PATIENCE_SECONDS = 60.0


def main() -> int:
    """Start everything, look, and stop it; return the exit code."""
    stop_on_signals()
    forget_settings_of_the_shell()
    with tempfile.TemporaryDirectory(prefix="triggers-monitoring-") as folder:
        stack = Stack(ROOT / ".local" / "monitoring")
        started: Any = None
        try:
            stack.start()
            stack.empty()
            port, own_port = free_port(), free_port()
            (Path(folder) / "metrics").mkdir()
            env = {"METRICS_DIR": f"{folder}/metrics", "METRICS_BIND": f"127.0.0.1:{own_port}"}
            stack.start_web(2, {**env, "MAX_WAITING_DELIVERIES": "20"})
            _ask(f"{stack.url}/api/health/detailed")  # a 503, because no worker lives yet
            stack.start_workers(env)
            started = prometheus.make(Path(folder), _config(own_port), port).start()
            started.wait_for_url(f"http://127.0.0.1:{port}/-/ready")
            return _look(stack, f"http://127.0.0.1:{port}")
        finally:
            if started is not None:
                started.stop()
            stack.stop()


def _ask(request: urllib.request.Request | str) -> Any:
    """Make a request, whatever the response; return its JSON, if it succeeds."""
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return json.loads(response.read() or b"null")
    except urllib.error.HTTPError as error:
        error.close()
        return None


def _mutual_tls(url: str) -> dict[str, object]:
    """Return a subscription whose endpoint asks for a client certificate, which is about to end."""
    soon = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=3)
    issued = trustme.CA().issue_cert("client.example", not_after=soon)
    pair = {
        "certificate": issued.cert_chain_pems[0].bytes().decode(),
        "private_key": issued.private_key_pem.bytes().decode(),
    }
    return {"url": url, "event_types": ["none.of.them"], "client_certificate": pair}


def _config(port: int) -> str:
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": f"{SCRAPE_SECONDS}s", "evaluation_interval": f"{SCRAPE_SECONDS}s"}
    config["rule_files"] = [str(DEPLOY / "prometheus" / "alerts.yml")]
    config["scrape_configs"][0]["static_configs"] = [{"targets": [f"127.0.0.1:{port}"]}]
    text: str = yaml.safe_dump(config)
    return text


def _look(stack: Stack, url: str) -> int:
    """Make traffic until every query returns data, look at the rules, and stop a worker until its alert is pending.

    Returns the exit status.
    """
    organization = stack.make_organization("Acme")
    key = stack.make_key(organization)
    queries = _queries()

    def call(method: str, path: str, body: object = None) -> Any:
        request = urllib.request.Request(
            stack.url + path, json.dumps(body).encode() if body is not None else None,
            {"X-API-Key": key, "Content-Type": "application/json"}, method=method,
        )  # fmt: skip
        return _ask(request)

    with Receiver() as good, Receiver(lambda request, number: Response(500)) as bad:
        for receiver in (good, bad):
            call("POST", "/api/subscriptions", {"url": receiver.url("/hook"), "event_types": ["*"]})
        call("POST", "/api/subscriptions", _mutual_tls("https://mutual.example/hook"))

        def everything_answers() -> bool:
            for number in range(3):  # with some that are refused
                call("POST", "/api/events", {"type": "order.created" if number else "", "data": {"number": number}})
            call("GET", "/api/events")
            # One of the two is acknowledged; the other one stays leased.
            fetched = call("GET", "/api/inbox?limit=2") or {"events": [], "lease_id": None}
            ids = [event["id"] for event in fetched["events"][:1]]
            call("POST", "/api/inbox/ack", {"lease_id": fetched["lease_id"], "event_ids": ids})
            time.sleep(SCRAPE_SECONDS)
            return not [query for query in queries if not _answers(url, query)]

        try:
            wait_until(everything_answers, "a query returns nothing", PATIENCE_SECONDS)
        except TimeoutError:
            for query in queries:
                if not _answers(url, query):
                    print(f"returns nothing: {query}")
            return 1
        rules = _get(f"{url}/api/v1/rules")["data"]["groups"][0]["rules"]
        unhealthy = [rule["name"] for rule in rules if rule["health"] != "ok"]
        print(f"{len(queries)} queries return data; {len(rules)} alerts, {len(unhealthy)} of them unhealthy.")
        os.kill(stack.workers[0].pid, signal.SIGSTOP)
        try:
            # An alert that fires in truth: no heartbeat for 30 seconds, and then `for: 1m`.
            wait_until(lambda: "TriggersNoWorker" in _pending(url), "no alert for a worker that hangs", 90)
        finally:
            os.kill(stack.workers[0].pid, signal.SIGCONT)
        print("A worker that hangs makes TriggersNoWorker pending.")
        return int(bool(unhealthy))


def _queries() -> list[str]:
    """Return every query of the board, and of the alerts what they compare: a system that is well fires none."""
    board = json.loads((DEPLOY / "grafana" / "dashboards" / "triggers.json").read_text())
    groups = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text())["groups"]
    asked = [target["expr"] for panel in board["panels"] for target in panel.get("targets", [])]
    for rule in (rule for group in groups for rule in group["rules"]):
        expression = rule["expr"].replace("\n", " ")
        for operator in (" == ", " > ", " < "):
            expression = expression.replace(operator, f"{operator}bool ")
        asked.append(expression)
    return [query.replace("$__rate_interval", "10s") for query in asked]


def _answers(url: str, query: str) -> bool:
    found = _get(f"{url}/api/v1/query?{urllib.parse.urlencode({'query': query})}")["data"]["result"]
    return any(series["value"][1] != "NaN" for series in found)


def _pending(url: str) -> set[str]:
    return {alert["labels"]["alertname"] for alert in _get(f"{url}/api/v1/alerts")["data"]["alerts"]}


def _get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=30) as response:
        return json.load(response)


if __name__ == "__main__":
    sys.exit(main())
