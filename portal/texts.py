"""The sentences about states and failures, for people who have never seen the API; `meanings.py` chooses among them."""

from __future__ import annotations

from webhooks import delivery_actions
from webhooks.destinations.http.egress_policy import NOT_ALLOWED
from webhooks.destinations.outcome import Failure
from webhooks.models import Delivery, DeliveryStatus

STATES = {
    "active": "Webhooks are being sent.",
    "failing": "The last attempt failed. We retry automatically and wait longer each time.",
    "paused": "Too many attempts failed in a row, so we only try now and then. Nothing is lost: what is waiting is "
    "sent as soon as your endpoint responds.",
    "disabled": "Nothing is sent. New webhooks are held and sent once you enable the endpoint.",
}
ASKED_FOR_PAUSE = (
    "Your endpoint asked us to wait, with a Retry-After header. Nothing is lost: what is waiting is sent after that."
)
ASKED_FOR_PAUSE_ADVICE = (
    "Nothing, if that is what you want. To try right away, open a waiting delivery and press “Retry now”."
)
DISABLED_GONE = (
    "Your endpoint responded with 410, which says that it doesn't want webhooks anymore. So nothing is sent, and new "
    "webhooks are held."
)
DISABLED_ALWAYS_FAILED = "Every attempt failed for days, so nothing is sent anymore. New webhooks are held."
DISABLED_WITH_HOST = (
    "Whoever runs this service has stopped sending to this server, for all of its endpoints. New webhooks are held."
)
DISABLED_BY_OPERATOR = "Whoever runs this service has disabled the endpoint. New webhooks are held."
ASK_OPERATOR = "Ask whoever gave you the link."
ASK_OPERATOR_FIRST = "Ask whoever gave you the link, before you enable the endpoint."

DELIVERY_STATES = {
    "pending": "It is waiting for its first attempt.",
    "retrying": "An attempt failed; the next one is scheduled.",
    "delivering": "It is being sent right now.",
    "delivered": "Your endpoint accepted it.",
    "failed": "All attempts have failed. It is only sent again if you retry it, with its endpoint enabled.",
    "held": "Its endpoint is disabled. It is sent once you enable that.",
    "cancelled": "It won't be sent.",
}
# What the help page, which isn't about a certain cause, says in addition.
MORE_OF_STATES = {
    "pending": "Or it is waiting its turn because the endpoint is paused, is at its limit, or gets webhooks in order.",
    "held": "Or whoever runs this service is holding it back for a while.",
    "cancelled": "Its endpoint was deleted, its data was erased, it was held for too long, or somebody skipped it.",
}
AGAIN = "It has been sent before, and somebody has asked for another attempt."
DUE = "It is sent when its turn comes, which is usually right away."
SENDING_DISABLED = (
    "Whoever runs this service has stopped all sending for now. Nothing is lost: it is sent once they resume."
)
WAITS_FOR_PAUSE = (
    "Its endpoint is paused {when}, because too many attempts failed in a row. It is sent as soon as the endpoint "
    "responds again."
)
CORRECT_IT = "Fix your endpoint."
WAITS_FOR_PAUSE_ADVICE = f"{CORRECT_IT} To try right away, press “Retry now”."
WAITS_FOR_ASKED_PAUSE = "Its endpoint asked us to wait {when}, with a Retry-After header. It is sent after that."
WAITS_FOR_ASKED_PAUSE_ADVICE = "Nothing, if that is what you want. To try right away, press “Retry now”."
WAITS_FOR_RATE = "It is waiting its turn: its endpoint gets at most {limit} webhooks a second."
WAITS_FOR_RATE_ADVICE = "Nothing. To get webhooks faster, raise the limit: edit the endpoint, under “Advanced”."
WAITS_IN_ORDER = (
    "It is waiting for an earlier webhook with the same ordering key, because its endpoint gets those one at a time "
    "and in order."
)
EARLIER_PENDING = "It is sent as soon as that one is finished."
EARLIER_RETRYING = (
    "An attempt of that one failed, and it is being retried. This one is sent once that one is delivered, or all its "
    "attempts have failed."
)
EARLIER_RETRYING_BLOCKS = (
    "An attempt of that one failed, and it is being retried. This one is sent once that one is delivered."
)
EARLIER_RETRYING_ADVICE = (
    "Open the earlier one to see why it fails. If it isn't worth waiting for, skip it; then it is never sent."
)
EARLIER_FAILED = "All attempts of that one have failed, and the endpoint is set to wait until it is delivered."
EARLIER_FAILED_ADVICE = "Open the earlier one. Retry it once the cause is fixed, or skip it to go on without it."
EARLIER_HELD = "That one is being held back."
HELD_BY_OPERATOR = "Whoever runs this service is holding it back. It is sent once they release it."
HELD_ADVICE = "Open its endpoint to see why it is disabled, and enable it."
FAILED_AT_ONCE = "It couldn't be sent, and another attempt would fail in the same way. It is only sent if you retry it."
FAILED_ERASED = "It was never accepted, and can't be sent again."
FAILED_DELETED = "All attempts have failed, and its endpoint has since been deleted. It can't be sent again."
FAILED_DISABLED = "All attempts have failed. Its endpoint is disabled: enable that first, and then retry it."
# By `last_error`.
CANCELLED_BECAUSE: dict[str, str] = {
    Failure.PAYLOAD_ERASED: "It won't be sent: somebody erased the event's data permanently.",
    Failure.HELD_TOO_LONG: "It won't be sent: its endpoint was disabled for too long.",
    Failure.NOT_FETCHED: "It can't be fetched anymore: no consumer fetched it in time.",
}
CANCELLED_DELETED = "It won't be sent: its {what} was deleted."
CANCELLED_SKIPPED = "It won't be sent: somebody skipped it, so that the ones behind it could be sent."
# The same in an inbox, where nothing is sent.
INBOX_STATES = {
    "pending": "It is waiting in the inbox until a consumer fetches it.",
    "retrying": "A consumer gave it back. It can be fetched again.",
    "delivering": "A consumer has fetched it, and hasn't acknowledged it yet.",
    "delivered": "A consumer has acknowledged it.",
    "held": "Its inbox is disabled. It can be fetched once that is enabled.",
}

# Errors of the API that name its fields, or expect somebody who knows the operator.
_OF_THE_API = {
    NOT_ALLOWED: "Address not allowed: webhooks only go to public addresses. To test on your own computer, use a "
    "tunnel.",
    "must not hold a user name or password: give them in `auth`": "Must not hold a user name or password. If your "
    "server requires them, add the header Authorization under “Advanced”.",
    "is required for the format transform": "Enter the expression that builds the body.",
    "goes with `format` `transform`": "An expression needs the format “Custom expression”.",
}
_BY_FAILURE = {
    Failure.REDIRECT: ("redirect", "Your endpoint redirects elsewhere, which we don't follow. Enter the final URL."),
    Failure.TIMEOUT: (
        "timeout", "Your endpoint took too long. Return a 200 first and do the work afterward.",
    ),
    Failure.DNS_FAILED: ("connection", "The host name in the URL doesn't exist, or its name server doesn't respond."),
    Failure.CONNECTION_REFUSED: ("connection", "Nothing is listening at this address and port. Is your server up?"),
    Failure.CONNECTION_FAILED: ("connection", "Your server can't be reached. Check its firewall and its address."),
    Failure.CONNECTION_LOST: ("connection", "Your server closed the connection before it sent a response."),
    Failure.TLS_FAILED: ("tls", "The certificate isn't valid for this host name, or its chain is incomplete."),
    Failure.INVALID_RESPONSE: (
        "invalid", "What came back isn't a valid HTTP response; the attempt says in which way. Is the port correct?",
    ),
    Failure.ADDRESS_NOT_ALLOWED: ("address", "The host name resolves to an address that webhooks can't be sent to."),
    Failure.OAUTH_FAILED: (
        "oauth", "We couldn't get an access token for your endpoint. Check its authorization server, the client id, "
        "and the client secret.",
    ),
    Failure.PAYLOAD_ERASED: ("erased", "The event's payload was erased, so there is nothing left to send."),
    Failure.PROXY_FAILED: ("ours", "The problem is on our side. We retry automatically."),
    Failure.INTERNAL_ERROR: ("ours", "The problem is on our side. We retry automatically."),
    Failure.WORKER_LOST: ("ours", "The problem is on our side. We retry automatically."),
    Failure.TRANSFORM_FAILED: (
        "transform", "The endpoint's expression doesn't work for this event. Change the expression.",
    ),
}  # fmt: skip


def advice(error: str, status_code: int | None) -> tuple[str, str]:
    """Return the part of the help page that fits a failure, and what to do, in a sentence or two; empty for none."""
    if not error:
        return "", ""
    if error == Failure.HTTP_STATUS and status_code is not None:
        return _for_status(status_code)
    try:
        return _BY_FAILURE.get(Failure(error), ("", ""))
    except ValueError:
        return "", ""


def of_an_error(text: str) -> str:
    """Return the API's error at a field, capitalized and in a tenant's words."""
    return _OF_THE_API.get(text) or f"{text[:1].upper()}{text[1:]}"


def why_not_retryable(delivery: Delivery) -> str:
    """Return why a delivery can't be retried.  What the API calls a subscription is an endpoint here."""
    if delivery.status == DeliveryStatus.HELD and delivery.subscription.is_active:
        return HELD_BY_OPERATOR
    return delivery_actions.why_not_retryable(delivery).replace("subscription", "endpoint")


def why_not_skippable(delivery: Delivery) -> str:
    """Return why a delivery can't be skipped, in the same words."""
    return delivery_actions.why_not_skippable(delivery).replace("subscription", "endpoint")


def _for_status(status: int) -> tuple[str, str]:
    if status in {401, 403}:
        return "401", (
            "Your endpoint rejected us. If it requires a login, exempt its path from that, or edit the endpoint and "
            "add the header that it requires. If its signature check failed, compare the secret that it uses."
        )
    if status in {404, 405}:
        return "404", "Nothing accepts POST requests at this URL. Check the path for typos."
    if status == 410:
        return "410", "Your endpoint said that it is gone, so it was disabled. Correct the URL and enable it."
    if status == 429:
        return "429", "Your endpoint gets more requests than it accepts. Set a rate limit under “Advanced”."
    if status >= 500:
        return "5xx", "Your code failed. The response's body and your own logs at this time say why."
    return "4xx", "Your endpoint rejected the request. The body of its response may say why."
