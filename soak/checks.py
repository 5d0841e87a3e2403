"""Checks after a run that every promise was kept: what was promised, what is stored, and what was received."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

from devstack.http_receiver import Received, verify
from devstack.late_responses import late_responses, outlived_leases
from devstack.stack import Stack
from soak.consumers import Consumed
from soak.endpoints import token_of
from soak.faults import Row
from soak.producers import Ledger

SHOWN = 20  # violations of one kind that are told one by one


@dataclass
class Report:
    """The figures, and a line for each promise that was broken."""

    accepted: int = 0
    offered: int = 0
    without_response: int = 0
    stored_without_response: int = 0
    deliveries: int = 0
    attempts: int = 0
    received: int = 0
    lost: int = 0
    stuck: int = 0
    duplicates: int = 0
    in_flight_at_kills: int = 0
    late_responses: int = 0
    outlived_leases: int = 0
    attempts_lost_with_the_worker: int = 0
    repeated_keys: int = 0
    served_late: int = 0
    consumed: int = 0
    fetched_again: int = 0
    violations: list[str] = field(default_factory=list)

    def broke(self, what: str, rows: list[Any]) -> None:
        """Note a violation with its first few rows, if there are any."""
        if rows:
            self.violations.append(f"{what}: {len(rows)}, such as {rows[:SHOWN]}")


def check(
    stack: Stack,
    ledger: Ledger,
    taken: list[Received],
    secrets: dict[str, str],
    paths: dict[str, str],
    organizations: dict[str, list[str]],
    in_flight: set[Row],
) -> Report:
    """Compare the ledger, the database and what was received.

    secrets, paths: a subscription's secret and its id by its path.  organizations: each organization's paths.
    in_flight: the deliveries that may have come twice.
    """
    report = Report(accepted=ledger.accepted, offered=len(ledger.offered), in_flight_at_kills=len(in_flight))
    report.repeated_keys, report.served_late = ledger.repeated, ledger.served_late
    report.violations += ledger.faults
    events = _check_events(stack, ledger, report)
    _check_received(ledger, taken, secrets, organizations, events, report)
    _check_rows(stack, organizations, report)
    _check_attempts(stack, taken, paths, in_flight, report)
    return report


def check_consumed(report: Report, ledger: Ledger, consumed: Consumed, organization: str) -> None:
    """Check that consumers fetched each event of the organization, and none while another one held it."""
    report.consumed = len(consumed.fetches)
    report.fetched_again = consumed.fetched_again()
    report.violations += consumed.faults
    fetched = set(consumed.tokens.values())
    missing = [
        token
        for token, offered in ledger.offered.items()
        if offered.organization == organization and offered.event_id and token not in fetched
    ]
    report.lost += len(missing)
    report.broke("accepted and never fetched", missing)
    strangers = [
        token for token in fetched if token not in ledger.offered or ledger.offered[token].organization != organization
    ]
    report.broke("fetched from another organization", strangers)
    report.broke("fetched by two consumers at the same time", consumed.overlapping())
    report.broke("fetched after it had been acknowledged", consumed.fetched_after_their_acknowledgement())


def _check_events(stack: Stack, ledger: Ledger, report: Report) -> dict[str, str]:
    """Check that every promised event is stored once under its id; return the ids of all stored ones by token."""
    stored: dict[str, list[str]] = defaultdict(list)
    for event_id, token in stack.sql("SELECT id::text, data::json ->> 'token' FROM events_event"):
        stored[token].append(event_id)
    missing, wrong = [], []
    for token, offered in ledger.offered.items():
        if offered.event_id is None:
            report.without_response += 1
            report.stored_without_response += len(stored[token])
        elif not stored[token]:
            missing.append(token)
        elif stored[token] != [offered.event_id]:
            wrong.append((token, offered.event_id, stored[token]))
    report.lost += len(missing)
    report.broke("accepted and not stored", missing)
    report.broke("stored under another id than the response named", wrong)
    report.broke("stored more than once", [token for token, ids in stored.items() if len(ids) > 1])
    report.broke("stored without having been offered", [token for token in stored if token not in ledger.offered])
    return {token: ids[0] for token, ids in stored.items() if ids}


def _check_received(
    ledger: Ledger,
    taken: list[Received],
    secrets: dict[str, str],
    organizations: dict[str, list[str]],
    events: dict[str, str],
    report: Report,
) -> None:
    """Check that each stored event reached each subscription of its organization, signed, under its own id."""
    report.received = len(taken)
    reached: set[tuple[str, str]] = {(r.path, token_of(r)) for r in taken if r.status == 200}
    absent = [
        (path, token)
        for token, event_id in events.items()
        if token in ledger.offered
        for path in organizations[ledger.offered[token].organization]
        if (path, token) not in reached
    ]
    report.lost += len({token for _, token in absent})
    report.broke("stored and not received", absent)
    strangers = [
        (request.path, token)
        for request in taken
        if (token := token_of(request)) not in ledger.offered
        or request.path not in organizations[ledger.offered[token].organization]
    ]
    report.broke("received by somebody else", strangers)
    report.broke(
        "received under another webhook-id than the event's",
        [(r.path, token_of(r), _id_of(r)) for r in taken if events.get(token_of(r)) != _id_of(r)],
    )
    report.broke(
        "received with a signature or a time that isn't right",
        [(r.path, token_of(r)) for r in taken if r.path not in secrets or not verify(secrets[r.path], r)],
    )


def _check_rows(stack: Stack, organizations: dict[str, list[str]], report: Report) -> None:
    """Check that nothing is left in between, and that the queues count right."""
    report.deliveries = int(stack.value("SELECT count(*) FROM webhooks_delivery"))
    delivering = stack.sql("SELECT id::text FROM webhooks_delivery WHERE status = 'delivering'")
    report.stuck = len(delivering)
    report.broke("stuck in delivering", delivering)
    report.broke(
        "neither delivered nor on its way",
        stack.sql("SELECT status, count(*) FROM webhooks_delivery WHERE status <> 'delivered' GROUP BY 1"),
    )
    report.broke(
        "event not processed", stack.sql("SELECT id::text, status FROM events_event WHERE status <> 'processed'")
    )
    report.broke(
        "queue whose in_flight isn't the number of its deliveries that are on their way",
        stack.sql(
            "SELECT l.subscription_id::text, l.in_flight FROM webhooks_subscriptionqueue l"
            " WHERE l.in_flight <> (SELECT count(*)"
            " FROM webhooks_delivery d WHERE d.subscription_id = l.subscription_id AND d.status = 'delivering')"
        ),
    )
    report.broke(
        "subscription disabled",
        stack.sql("SELECT id::text, disabled_reason FROM webhooks_subscription WHERE NOT is_active"),
    )


def _check_attempts(
    stack: Stack, taken: list[Received], paths: dict[str, str], in_flight: set[Row], report: Report
) -> None:
    """Check that attempts are recorded, and that only what was in flight at a kill came twice.

    First what the database says of itself: attempts are numbered, and a delivered one has a success.  Then for each
    delivery, how often the endpoint was asked is compared with how many attempts were recorded.
    """
    report.attempts = int(stack.value("SELECT count(*) FROM webhooks_deliveryattempt"))
    report.attempts_lost_with_the_worker = int(
        stack.value("SELECT count(*) FROM webhooks_deliveryattempt WHERE error = 'worker_lost'")
    )
    report.broke(
        "delivery whose attempts aren't numbered 1 to attempt_count",
        stack.sql(
            # What is fetched from an inbox is an attempt without its own row.
            "SELECT d.id::text, d.attempt_count, array_agg(a.number ORDER BY a.number) FROM webhooks_delivery d"
            " JOIN webhooks_subscription s ON s.id = d.subscription_id AND s.kind <> 'inbox'"
            " LEFT JOIN webhooks_deliveryattempt a ON a.delivery_id = d.id GROUP BY d.id, d.attempt_count"
            " HAVING array_agg(a.number ORDER BY a.number)"
            " IS DISTINCT FROM (SELECT array_agg(n) FROM generate_series(1, d.attempt_count) AS n)"
        ),
    )
    recorded: dict[Row, Counter[str]] = {
        (subscription, event): Counter(errors)
        for subscription, event, errors in stack.sql(
            "SELECT d.subscription_id::text, d.event_id::text, array_agg(a.error) FROM webhooks_delivery d"
            " JOIN webhooks_deliveryattempt a ON a.delivery_id = d.id GROUP BY 1, 2"
        )
    }
    report.broke("delivered without a recorded success", [row for row, errors in recorded.items() if not errors[""]])
    came: dict[Row, list[Received]] = defaultdict(list)
    for request in taken:
        came[paths[request.path], _id_of(request)].append(request)
    unexplained, unrecorded = [], []
    for row, requests in came.items():
        again = sum(request.status == 200 for request in requests) - 1
        errors = recorded.get(row, Counter())
        if again > 0:
            late = min(again, late_responses(requests, errors))
            outlived = min(again - late, outlived_leases(errors))
            if row in in_flight:
                report.duplicates += again
            elif late + outlived == again:
                report.late_responses += late
                report.outlived_leases += outlived
            else:
                report.duplicates += again
                unexplained.append((row, dict(errors)))
        # A kept connection that ends before the first byte of a response costs no attempt: the request goes out once
        # more, within the same one.
        reset = sum(not request.status and not request.cut for request in requests)
        if len(requests) - reset > sum(errors.values()) and row not in in_flight:
            unrecorded.append((row, len(requests), dict(errors)))
    report.broke("received twice without having been in flight at a kill", unexplained)
    report.broke("received and not recorded as an attempt", unrecorded)
    if report.duplicates > report.in_flight_at_kills:
        report.violations.append(
            f"{report.duplicates} duplicates, but only {report.in_flight_at_kills} were in flight at the kills"
        )


def _id_of(request: Received) -> str:
    return request.headers.get("webhook-id", "")
