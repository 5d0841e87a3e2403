"""The Helm chart: rendered by Helm itself, from the values that people would give."""

from __future__ import annotations

import ipaddress
import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from triggers_project.options import OPTIONS
from webhooks.destinations.http.egress_policy import IPV6_GLOBAL_UNICAST, REFUSED, is_allowed

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "deploy" / "helm" / "triggers-api"
HELM = shutil.which("helm", path=f"{Path(sys.executable).parent}") or shutil.which("helm")
SECRETS = {f"secrets.{name}": "x" for name in ("DATABASE_URL", "REDIS_URL", "SECRET_KEY", "SECRETS_ENCRYPTION_KEYS")}
EVERYTHING = {
    "existingSecret": "mine",
    "ingress.enabled": "true",
    "serviceMonitor.enabled": "true",
    "serviceMonitor.bearerTokenKey": "METRICS_TOKEN",
    "web.autoscaling.enabled": "true",
    "worker.autoscaling.enabled": "true",
}

pytestmark = pytest.mark.skipif(HELM is None, reason="requirements-dev.txt has Helm for Linux on x86-64")


def helm(values: Mapping[str, str], command: str = "template") -> subprocess.CompletedProcess[str]:
    """Run Helm with these values."""
    given = [part for name, value in values.items() for part in ("--set", f"{name}={value}")]
    name = ["demo"] if command == "template" else ["--strict"]
    return subprocess.run([str(HELM), command, *name, str(CHART), *given], capture_output=True, text=True, check=False)


def render(values: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return the objects that the chart makes of these values."""
    done = helm(values)
    assert done.returncode == 0, done.stderr
    return [found for found in yaml.safe_load_all(done.stdout) if found]


@pytest.fixture(scope="module")
def everything() -> dict[tuple[str, str], dict[str, Any]]:
    """Return the objects of a chart with everything switched on, by kind and name."""
    return {(found["kind"], found["metadata"]["name"]): found for found in render(EVERYTHING)}


def containers(objects: Mapping[tuple[str, str], dict[str, Any]]) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Return each container and its pod's spec, by the container's name."""
    specs = [one["spec"]["template"]["spec"] for (kind, _), one in objects.items() if kind in {"Deployment", "Job"}]
    return {container["name"]: (container, spec) for spec in specs for container in spec["containers"]}


def test_helm_s_own_checks_pass() -> None:
    done = helm(SECRETS, "lint")
    assert done.returncode == 0, done.stdout


def test_it_has_all_parts_and_each_of_them_selects_the_pods_that_it_means(
    everything: dict[tuple[str, str], dict[str, Any]],
) -> None:
    assert set(everything) == {
        ("ConfigMap", "demo"), ("ConfigMap", "demo-migrations"), ("Deployment", "demo-web"),
        ("Deployment", "demo-worker"), ("HorizontalPodAutoscaler", "demo-web"),
        ("HorizontalPodAutoscaler", "demo-worker"), ("Ingress", "demo-web"), ("Job", "demo-migrations"),
        ("NetworkPolicy", "demo-egress"), ("NetworkPolicy", "demo-others-ingress"),
        ("NetworkPolicy", "demo-web-ingress"), ("PodDisruptionBudget", "demo-web"),
        ("PodDisruptionBudget", "demo-worker"), ("Service", "demo-web"), ("ServiceAccount", "demo"),
        ("ServiceMonitor", "demo-web"),
    }  # fmt: skip
    pods = {
        name: everything[kind, name]["spec"]["template"]["metadata"]["labels"]
        for kind, name in everything if kind in {"Deployment", "Job"}
    }  # fmt: skip

    def selected(selector: Mapping[str, str]) -> set[str]:
        return {name for name, labels in pods.items() if selector.items() <= labels.items()}

    for part in ("web", "worker"):
        for kind, place in (("Deployment", "selector"), ("PodDisruptionBudget", "selector")):
            assert selected(everything[kind, f"demo-{part}"]["spec"][place]["matchLabels"]) == {f"demo-{part}"}
    assert selected(everything["Service", "demo-web"]["spec"]["selector"]) == {"demo-web"}
    egress = everything["NetworkPolicy", "demo-egress"]["spec"]
    assert selected(egress["podSelector"]["matchLabels"]) == set(pods)
    service = everything["Service", "demo-web"]
    monitor = everything["ServiceMonitor", "demo-web"]["spec"]["selector"]["matchLabels"]
    assert monitor.items() <= service["metadata"]["labels"].items()
    ports = {port["name"] for port in containers(everything)["web"][0]["ports"]}
    assert service["spec"]["ports"][0]["targetPort"] in ports


def test_containers_run_without_rights_and_write_only_to_tmp(
    everything: dict[tuple[str, str], dict[str, Any]],
) -> None:
    found = containers(everything)
    assert set(found) == {"web", "worker", "migrate"}
    for container, spec in found.values():
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert "runAsUser" not in spec["securityContext"]
        assert spec["automountServiceAccountToken"] is False
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert [mount["mountPath"] for mount in container["volumeMounts"]] == ["/tmp"]


def test_every_setting_that_it_names_exists(everything: dict[tuple[str, str], dict[str, Any]]) -> None:
    named = set(everything["ConfigMap", "demo"]["data"])
    for container, _spec in containers(everything).values():
        named |= {one["name"] for one in container.get("env", [])}
    named |= set(yaml.safe_load((CHART / "values.yaml").read_text())["secrets"])
    assert named <= {option.name for option in OPTIONS}


def test_processes_get_the_configuration_and_the_secret(everything: dict[tuple[str, str], dict[str, Any]]) -> None:
    def sources(name: str) -> set[str]:
        return {next(iter(one.values()))["name"] for one in containers(everything)[name][0]["envFrom"]}

    assert sources("web") == sources("worker") == {"demo", "mine"}
    # Before an install, only what the hook brings itself is there.
    assert sources("migrate") == {"demo-migrations", "mine"}
    own = {(one["kind"], one["metadata"]["name"]): one for one in render(SECRETS)}
    assert set(own["Secret", "demo"]["stringData"]) == {name.removeprefix("secrets.") for name in SECRETS}
    assert own["Secret", "demo"]["stringData"] == own["Secret", "demo-migrations"]["stringData"]
    for name in ("ConfigMap", "Secret"):
        weight = own[name, "demo-migrations"]["metadata"]["annotations"]["helm.sh/hook-weight"]
        assert int(weight) < 0, "the job needs it"


def test_a_changed_setting_replaces_the_pods() -> None:
    def annotations(values: Mapping[str, str]) -> list[Any]:
        return [
            found["spec"]["template"]["metadata"]["annotations"]
            for found in render(values) if found["kind"] == "Deployment"
        ]  # fmt: skip

    before = annotations(SECRETS)
    assert annotations({**SECRETS, "config.LOG_LEVEL": "DEBUG"}) != before
    assert annotations({**SECRETS, "secrets.SECRET_KEY": "y"}) != before
    assert annotations(SECRETS) == before


def test_nothing_but_the_internet_is_left_to_webhooks(everything: dict[tuple[str, str], dict[str, Any]]) -> None:
    blocks = [
        peer["ipBlock"]
        for rule in everything["NetworkPolicy", "demo-egress"]["spec"]["egress"]
        for peer in rule["to"] if "ipBlock" in peer
    ]  # fmt: skip

    def reachable(address: str) -> bool:
        one = ipaddress.ip_address(address)
        return any(
            one in ipaddress.ip_network(block["cidr"])
            and not any(one in ipaddress.ip_network(without) for without in block["except"])
            for block in blocks
            if ipaddress.ip_network(block["cidr"]).version == one.version
        )

    inside = [
        "10.1.2.3", "127.0.0.1", "169.254.169.254", "172.20.0.1", "192.168.1.1", "100.64.0.1", "::1", "fd00::1",
        "fe80::1", "::ffff:10.0.0.1", "64:ff9b::a00:1",
    ]  # fmt: skip
    assert [address for address in inside if reachable(address)] == []
    assert [address for address in inside if is_allowed(ipaddress.ip_address(address))] == []
    for address in ("93.184.216.34", "2606:2800:220:1::1"):
        assert reachable(address)


def test_the_network_policy_refuses_the_ranges_that_the_application_refuses() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())["networkPolicy"]
    outside = ipaddress.IPv6Network("::/0").address_exclude(IPV6_GLOBAL_UNICAST)
    assert set(values["refusedIPv4"]) == {str(network) for network in REFUSED if network.version == 4}
    assert set(values["refusedIPv6"]) == {str(network) for network in (*outside, *REFUSED) if network.version == 6}


def test_the_mail_server_s_port_is_open_if_there_is_a_mail_server() -> None:
    def rules(values: Mapping[str, str]) -> list[dict[str, Any]]:
        (policy,) = (one for one in render({**SECRETS, **values}) if one["metadata"]["name"] == "demo-egress")
        found: list[dict[str, Any]] = policy["spec"]["egress"]
        return found

    def open_ports(values: Mapping[str, str]) -> set[int]:
        return {port["port"] for rule in rules(values) for port in rule["ports"]}

    assert open_ports({}) == {53, 5432, 6379, 80, 443}
    assert open_ports({"config.EMAIL_HOST": "mail.example"}) == {*open_ports({}), 587}
    assert open_ports({"config.EMAIL_HOST": "mail.example", "config.EMAIL_PORT": "465"}) == {*open_ports({}), 465}
    # Into the cluster as well; but to no private address outside it, such as a node's or a cloud's metadata.
    (to,) = (rule["to"] for rule in rules({"config.EMAIL_HOST": "mail.example"}) if rule["ports"][0]["port"] == 587)
    assert to[0] == {"namespaceSelector": {}}
    assert all("169.254.0.0/16" in peer["ipBlock"]["except"] for peer in to[1:2])
    own = {"networkPolicy.mail[0].to[0].ipBlock.cidr": "10.1.2.3/32", "networkPolicy.mail[0].ports[0].port": "25"}
    assert open_ports({"config.EMAIL_HOST": "mail.example", **own}) == {*open_ports({}), 25}


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({}, "Set secrets.DATABASE_URL, or name a Secret that has it as existingSecret."),
        ({**SECRETS, "config.database_url": "x"}, "database_url"),
        ({**SECRETS, "config.SECRET_KEY": "x"}, "SECRET_KEY"),
        ({**SECRETS, "worker.replica": "3"}, "replica"),
        ({**SECRETS, "service.port": "0"}, "service.port"),
    ],
)
def test_what_can_t_be_is_refused_by_name(values: dict[str, str], reason: str) -> None:
    done = helm(values)
    assert done.returncode != 0
    assert reason in done.stderr


def test_the_schema_of_the_values_is_json() -> None:
    assert json.loads((CHART / "values.schema.json").read_text())["additionalProperties"] is False
