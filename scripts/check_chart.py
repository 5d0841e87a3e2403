"""Check what the Helm chart makes against the schemas of Kubernetes: `make chart-check`."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path

import yaml

CHART = Path(__file__).resolve().parents[1] / "deploy" / "helm" / "triggers-api"
# The oldest version that Chart.yaml allows, and the newest that there is.
VERSIONS = ("1.25", "1.31", "1.37")
VALUES = (
    ["existingSecret=mine"],
    [
        "existingSecret=mine", "ingress.enabled=true", "web.autoscaling.enabled=true",
        "worker.autoscaling.enabled=true", "config.EMAIL_HOST=mail.example.com", "config.EMAIL_PORT=465",
        "networkPolicy.ingressFrom[0].podSelector.matchLabels.app=proxy",
    ],
)  # fmt: skip


def main() -> int:
    """Print what isn't valid; return 1 if there is any."""
    warnings.simplefilter("ignore")
    import kubernetes_validate

    faults = checked = 0
    for values in VALUES:
        given = [part for value in values for part in ("--set", value)]
        helm = [str(Path(sys.executable).with_name("helm")), "template", "demo", str(CHART), *given]
        rendered = subprocess.run(helm, capture_output=True, text=True, check=True).stdout
        for found in filter(None, yaml.safe_load_all(rendered)):
            for version in VERSIONS:
                checked += 1
                try:
                    kubernetes_validate.validate(found, version, strict=True)
                except kubernetes_validate.ValidationError as error:
                    faults += 1
                    print(f"{version} {found['kind']} {found['metadata']['name']}: {error.message[:300]}")
    print(f"{checked} objects checked, {faults} aren't valid")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
