"""The alerts and the board that `deploy/` holds fit the metrics and the documentation."""

from __future__ import annotations

import json
import os
import re
import subprocess
from typing import Any

import pytest
import yaml

import triggers_project.metrics  # noqa: F401 - for the metrics that are declared
from core.metrics.kinds import Histogram, declared
from devstack.processes import ROOT
from devstack.prometheus import find

DEPLOY = ROOT / "deploy"
PAGE = (ROOT / "docs" / "monitoring.md").read_text()
ALERTS: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text())["groups"]
    for rule in group["rules"]
]
BOARD: dict[str, Any] = json.loads((DEPLOY / "grafana" / "dashboards" / "triggers.json").read_text())


def promtool(*arguments: str) -> None:
    """Run promtool, which must not complain."""
    program, more = find("promtool")
    done = subprocess.run([program, *arguments], cwd=DEPLOY / "prometheus", env={**os.environ, **more},
                          capture_output=True, text=True, timeout=100, check=False)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow  # to unpack Prometheus in a fresh clone
def test_the_rules_load_and_each_fires_when_it_should_and_no_other_with_it() -> None:
    promtool("check", "rules", "alerts.yml")
    promtool("check", "config", "--syntax-only", "prometheus.yml")
    promtool("test", "rules", "alerts_test.yml")
    tested = set(re.findall(r'alertname="(\w+)"', (DEPLOY / "prometheus" / "alerts_test.yml").read_text()))
    assert tested == {rule["alert"] for rule in ALERTS}


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_each_alert_has_a_severity_a_summary_and_a_runbook(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in {"critical", "warning"}
    assert rule["annotations"]["summary"]
    page, _, anchor = rule["annotations"]["runbook_url"].partition("#")
    assert page == "docs/monitoring.md"
    paragraph = re.search(rf"^### {anchor}\n\n(.+?)(?=\n\n###|\n\n##|\Z)", PAGE, re.S | re.M | re.I)
    assert paragraph
    assert anchor == rule["alert"].lower()
    assert len(paragraph[1]) > 100


def test_no_runbook_is_left_of_an_alert_that_is_gone() -> None:
    assert re.findall(r"^### (Triggers\w+)$", PAGE, re.M) == [rule["alert"] for rule in ALERTS]


def queries() -> list[str]:
    """Return every query of the board and of the alerts."""
    of_board = [target["expr"] for panel in BOARD["panels"] for target in panel.get("targets", [])]
    return [*of_board, *(rule["expr"] for rule in ALERTS)]


def test_every_metric_that_is_asked_for_exists() -> None:
    documented = set(re.findall(r"^\| `(triggers_\w+)` \|", PAGE, re.M))  # which is tested against those that there are
    series = {
        f"{name}{suffix}"
        for name in documented
        for suffix in (("_bucket", "_count", "_sum") if isinstance(declared.get(name), Histogram) else ("",))
    }
    for query in queries():
        asked = set(re.findall(r"\btriggers_\w+", query))
        assert asked <= series, query
        assert asked or "up{" in query


def test_the_board_has_a_title_and_a_place_for_each_panel() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in BOARD["panels"]:
        assert panel["title"]
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells


def test_each_panel_has_its_unit_where_grafana_looks_for_it() -> None:
    shown = [panel for panel in BOARD["panels"] if "targets" in panel]
    assert [panel["title"] for panel in shown if "unit" not in panel["fieldConfig"]["defaults"]] == []
    assert len({panel["id"] for panel in BOARD["panels"]}) == len(BOARD["panels"])


def test_compose_starts_prometheus_and_grafana_with_these_files_and_only_when_asked() -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    services = compose["services"]
    for name in ("prometheus", "grafana"):
        assert services[name]["profiles"] == ["monitoring"]
        assert all(port.startswith("127.0.0.1:") for port in services[name]["ports"])
        for volume in services[name]["volumes"]:
            source, _, _ = volume.partition(":")
            assert (ROOT / source).is_dir() if source.startswith("./") else source in compose["volumes"]
    (job,) = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())["scrape_configs"]
    assert job["static_configs"][0]["targets"] == [f"web:{services['web']['environment']['METRICS_BIND'][-4:]}"]
    assert services["web"]["volumes"] == services["worker"]["volumes"] == ["metrics:/run/metrics"]
    source = yaml.safe_load((DEPLOY / "grafana/provisioning/datasources/prometheus.yml").read_text())["datasources"][0]
    assert {panel["datasource"]["uid"] for panel in BOARD["panels"] if "targets" in panel} == {source["uid"]}
