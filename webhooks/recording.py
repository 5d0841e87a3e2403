"""Recording what attempts brought: attempts, deliveries and lanes in one transaction."""

from __future__ import annotations

import uuid
from collections import defaultdict
from dataclasses import dataclass, field, replace

import structlog
from django.conf import settings

from core.db import in_transaction, is_transient, pipelined, server_cursor
from webhooks import health, schedule, sql
from webhooks.claiming import Claimed
from webhooks.schedule import Answer, Verdict

log = structlog.get_logger()

GONE = "The receiver answered 410 Gone."


@dataclass(frozen=True, slots=True)
class Result:
    """An attempt that is over.  started_at: seconds since the epoch by the database's clock."""

    claimed: Claimed
    answer: Answer
    started_at: float
    duration_ms: float


@dataclass(slots=True)
class _Lane:
    """A lane under its lock, while results are counted in."""

    is_open: bool
    is_deleted: bool
    standing: health.Health
    failing_seconds: float | None
    most: int
    was_full: bool
    settled: int = 0
    succeeded: bool = False
    failing: bool = False
    retry_after: float = 0.0
    due: float | None = None
    disable: str = field(default="")


def policy() -> health.Policy:
    """Return the settings that a lane's health is judged by."""
    return health.Policy(
        settings.INITIAL_WINDOW, settings.CIRCUIT_THRESHOLD, settings.CIRCUIT_BASE_DELAY, settings.CIRCUIT_MAX_DELAY
    )


def record(results: list[Result]) -> bool:
    """Store the results, committed when this returns; tell whether something may be due that no claim could take.

    A result whose lease was lost adds its attempt and changes nothing else.
    """
    parts = in_transaction(lambda: [_record(part) for part in _rounds(results)])
    for disabled, _ in parts:
        for subscription_id, reason in disabled:
            log.warning("subscription_disabled", subscription_id=str(subscription_id), reason=reason)
    return any(made_room for _, made_room in parts)


def _rounds(results: list[Result]) -> list[list[Result]]:
    """Return the results so that no part has two of one delivery: a late one and the one after it."""
    rounds: list[dict[uuid.UUID, Result]] = [{}]
    for result in results:
        for part in rounds:
            if result.claimed.delivery_id not in part:
                part[result.claimed.delivery_id] = result
                break
        else:
            rounds.append({result.claimed.delivery_id: result})
    return [list(part.values()) for part in rounds]


def record_each(results: list[Result]) -> tuple[list[Result], bool]:
    """Store the results; one that can't be stored as it is holds back none of the others.

    Returns those that are not stored because the database or the moment is at fault, for the caller to try
    again, and what `record` tells.  One that the database refuses whatever is left out of it is logged and dropped: its
    lease runs out, which is recorded as a lost worker.
    """
    try:
        return [], record(results)
    except Exception as error:
        if is_transient(error):
            log.warning("record_failed", results=len(results), error=repr(error)[:300])
            return results, False
        log.error("record_batch_failed", results=len(results), error=repr(error)[:300])
    for position, result in enumerate(results):
        # What the receiver said is the only part that is not ours: leave it out, keep what it means.
        answer = replace(result.answer, detail="The answer could not be stored.", body="", retry_after=None)
        for version in (result, replace(result, answer=answer)):
            try:
                record([version])
                break
            except Exception as error:
                if is_transient(error):
                    return results[position:], True
                log.error("record_failed_alone", delivery_id=str(result.claimed.delivery_id), error=repr(error)[:300])
    return [], True


def storable(text: str) -> str:
    """Return `text` without what PostgreSQL's text can't hold: U+0000 and lone surrogates."""
    return text.encode("utf-8", "replace").decode().replace("\x00", "\ufffd")


def _record(results: list[Result]) -> tuple[list[tuple[uuid.UUID, str]], bool]:
    """Store results of different deliveries; return the lanes that were disabled, and whether one has room again."""
    by_lane: dict[uuid.UUID, list[Result]] = defaultdict(list)
    for result in results:
        by_lane[result.claimed.subscription_id].append(result)
    with server_cursor() as locking, server_cursor() as cursor, server_cursor() as settling, pipelined():
        locking.execute(sql.LOCK_LANES, {"ids": list(by_lane), "most": settings.MAX_IN_FLIGHT_PER_SUBSCRIPTION})
        lanes = {
            row[0]: _Lane(row[1], row[2], health.Health(row[3], row[4], row[5], row[6] or 0.0), row[7], row[8], row[9])
            for row in locking.fetchall()
        }
        statuses, delays = [], []
        for result in results:
            status, delay = _next_step(result, lanes[result.claimed.subscription_id])
            statuses.append(status)
            delays.append(delay)
        cursor.execute(
            sql.RECORD,
            {
                "ids": [r.claimed.delivery_id for r in results],
                "leases": [r.claimed.lease_id for r in results],
                "statuses": statuses,
                "delays": delays,
                "codes": [r.answer.status_code for r in results],
                "errors": [r.answer.failure.value if r.answer.failure else "" for r in results],
                "details": [storable(r.answer.detail[:500]) for r in results],
                "bodies": [storable(r.answer.body) for r in results],
                "started": [r.started_at for r in results],
                "durations": [r.duration_ms for r in results],
                "causes": [r.claimed.cause for r in results],
            },
        )
        for _, subscription_id, own, due, status in cursor.fetchall():
            lane = lanes[subscription_id]
            lane.settled += own
            if own and status == "pending":
                lane.due = due if lane.due is None else min(lane.due, due)
        for subscription_id, lane_results in by_lane.items():
            _judge(lanes[subscription_id], lane_results)
        settling.execute(
            sql.SETTLE_LANES,
            {
                "lanes": list(lanes),
                "settled": [lane.settled for lane in lanes.values()],
                "windows": [lane.standing.window for lane in lanes.values()],
                "failures": [lane.standing.failures_in_row for lane in lanes.values()],
                "opened": [lane.standing.circuit_opened for lane in lanes.values()],
                "pauses": [max(lane.standing.pause, lane.retry_after) for lane in lanes.values()],
                "failing": [lane.failing for lane in lanes.values()],
                "succeeded": [lane.succeeded for lane in lanes.values()],
                "due": [lane.due for lane in lanes.values()],
            },
        )
    made_room = any(lane.was_full for lane in lanes.values()) or any(delay == 0 for delay in delays)
    return _disable_failing(lanes), made_room


def _next_step(result: Result, lane: _Lane) -> tuple[str, float | None]:
    """Return the delivery's next status and, for a retry, the seconds until it."""
    used = result.claimed.tries_used + 1
    plan = settings.DELIVERY_RETRY_SCHEDULE
    verdict = schedule.decide(result.answer, used, plan)
    if verdict is Verdict.DELIVERED:
        return "delivered", None
    if lane.is_deleted:
        return "cancelled", None
    gone = schedule.asks_to_stop(result.answer)
    if verdict is Verdict.FAILED and not gone:
        return "failed", None
    # What the receiver asks for by disabling itself waits like everything else of its subscription.
    delay = schedule.retry_delay(min(used, len(plan) - 1), plan, settings.DELIVERY_RETRY_JITTER)
    asked = schedule.retry_after_seconds(result.answer, result.started_at, settings.RETRY_AFTER_MAX) or 0.0
    return ("pending" if lane.is_open and not gone else "held"), max(delay, asked)


def _judge(lane: _Lane, results: list[Result]) -> None:
    """Count the results into the lane's standing, in the order in which they came."""
    rules = policy()
    lane.failing = lane.failing_seconds is not None
    for result in results:
        if result.answer.succeeded:
            lane.standing = health.after_success(lane.standing, rules, lane.most)
            lane.succeeded, lane.failing, lane.failing_seconds = True, False, None
            continue
        lane.standing = health.after_failure(lane.standing, rules, schedule.looks_overloaded(result.answer))
        lane.failing = True
        asked = schedule.retry_after_seconds(result.answer, result.started_at, settings.RETRY_AFTER_MAX)
        if asked:
            lane.retry_after = max(lane.retry_after, asked)
        if schedule.asks_to_stop(result.answer):
            lane.disable = GONE
    if lane.failing and (lane.failing_seconds or 0.0) >= settings.DISABLE_AFTER_FAILING_FOR:
        days = (lane.failing_seconds or 0.0) / 86400
        lane.disable = lane.disable or f"Every delivery failed for {days:.1f} days."
    lane.standing = replace(lane.standing, window=min(lane.standing.window, max(lane.most, 1)))


def _disable_failing(lanes: dict[uuid.UUID, _Lane]) -> list[tuple[uuid.UUID, str]]:
    """Disable the subscriptions whose results ask for it; return them with the reasons."""
    from webhooks.subscriptions import disable_rows

    chosen = [(key, lane.disable) for key, lane in lanes.items() if lane.disable and lane.is_open]
    for subscription_id, reason in chosen:
        disable_rows([subscription_id], reason)
    return chosen
