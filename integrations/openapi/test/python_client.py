"""openapi-python-client's client: create a subscription, send an event, list deliveries, retry one.

Makes its own virtual environment beside the document, with the generator in it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

REQUIREMENTS = ["openapi-python-client==0.29.1"]
DOCUMENT = Path(os.environ["TRIGGERS_OPENAPI"])
HOME = DOCUMENT.parent / "python-client"
PYTHON = HOME / "venv" / "bin" / "python"


def prepare() -> None:
    """Install the generator and generate the client."""
    if not PYTHON.exists():
        subprocess.run([sys.executable, "-m", "venv", HOME / "venv"], check=True)
        subprocess.run([PYTHON, "-m", "pip", "install", "-q", "--disable-pip-version-check", *REQUIREMENTS], check=True)
    generator = PYTHON.parent / "openapi-python-client"
    # It has no client for NDJSON, and says so; everything else has to be there for `drive`.
    subprocess.run(
        [generator, "generate", "--path", DOCUMENT, "--output-path", HOME / "client", "--overwrite", "--meta", "none"],
        check=True,
    )  # fmt: skip


def drive() -> None:
    """Use the client."""
    sys.path.insert(0, str(HOME))
    from client import AuthenticatedClient
    from client.api.deliveries import list_deliveries, retry_delivery
    from client.api.events import create_event
    from client.api.subscriptions import create_subscription
    from client.models import DeliveryStatus, NewEventRequest, SubscriptionCreateRequest

    api = AuthenticatedClient(
        os.environ["TRIGGERS_URL"], os.environ["TRIGGERS_KEY"], prefix="", auth_header_name="X-API-Key"
    )
    wanted = SubscriptionCreateRequest(
        event_types=["client.python"], url=f"{os.environ['TRIGGERS_RECEIVER']}/openapi-python-client"
    )
    subscription = create_subscription.sync(client=api, body=wanted)
    sent = create_event.sync(client=api, body=NewEventRequest(type_="client.python", data={"n": 1}))
    until = time.monotonic() + 60
    while not (
        rows := list_deliveries.sync(client=api, subscription_id=subscription.id, state=DeliveryStatus.DELIVERED).data
    ):
        assert time.monotonic() < until, "nothing was delivered"
        time.sleep(0.05)
    assert rows[0].event_id == sent.id
    assert retry_delivery.sync_detailed(rows[0].id, client=api).status_code == 202
    print("ok - openapi-python-client")


if __name__ == "__main__":
    if Path(sys.executable) != PYTHON:
        prepare()
        sys.exit(subprocess.run([PYTHON, __file__], check=False).returncode)
    drive()
