"""What states and failures mean, and what to do about them, for people who have never seen the API."""

from __future__ import annotations

from webhooks import delivery_actions
from webhooks.destinations.http.addresses import NOT_ALLOWED
from webhooks.destinations.outcome import Failure
from webhooks.models import Delivery

STATES = {
    "active": "Webhooks are being sent.",
    "failing": "The last attempt failed. We try again automatically, after longer and longer delays.",
    "paused": "Too many attempts failed in a row, so we only try now and then. Nothing is lost: what is waiting is "
    "sent as soon as your endpoint responds.",
    "disabled": "Nothing is sent. New webhooks are held and sent once you enable the endpoint.",
}
DELIVERY_STATES = {
    "pending": "It is waiting for its first attempt.",
    "retrying": "An attempt failed; the next one is scheduled.",
    "delivering": "It is being sent right now.",
    "delivered": "Your endpoint accepted it.",
    "failed": "All attempts have failed. It is only sent again if you retry it, with its endpoint enabled.",
    "held": "Its endpoint is disabled. It is sent once you enable that.",
    "cancelled": "It won't be sent: its endpoint was deleted, its data was erased, it was held for too long, or "
    "somebody skipped it.",
}
# The same in an inbox, where nothing is sent.
INBOX_STATES = {
    "pending": "It waits in the inbox until a consumer fetches it.",
    "retrying": "A consumer gave it back. It can be fetched again.",
    "delivering": "A consumer has fetched it, and hasn't acknowledged it yet.",
    "delivered": "A consumer has acknowledged it.",
    "held": "Its inbox is disabled. It can be fetched once that is enabled.",
    "cancelled": "It can't be fetched: its inbox was deleted, its data was erased, or nobody fetched it in time.",
}

# What the API says of such an address is written for somebody who knows the operator.
_PUBLIC_ONLY = "Address not allowed: webhooks only go to public addresses. To test on your own computer, use a tunnel."
_BY_FAILURE = {
    Failure.REDIRECT: ("redirect", "Your endpoint redirects elsewhere, which we don't follow. Enter the final URL."),
    Failure.TIMEOUT: (
        "timeout", "Your endpoint took too long. Return a 200 first, and do the work afterward.",
    ),
    Failure.DNS_FAILED: ("connection", "The host name in the URL doesn't exist, or its name server doesn't respond."),
    Failure.CONNECTION_REFUSED: ("connection", "Nothing is listening at this address and port. Is your server up?"),
    Failure.CONNECTION_FAILED: ("connection", "Your server can't be reached. Check its firewall and its address."),
    Failure.CONNECTION_LOST: ("connection", "Your server closed the connection before it sent a response."),
    Failure.TLS_FAILED: ("tls", "The certificate isn't valid for this host name, or its chain is incomplete."),
    Failure.INVALID_RESPONSE: ("connection", "What responded isn't a web server. Is the port correct?"),
    Failure.ADDRESS_NOT_ALLOWED: ("address", "The host name resolves to an address that webhooks can't be sent to."),
    Failure.OAUTH_FAILED: (
        "oauth", "We couldn't get an access token for your endpoint. Check its authorization server, the client id, "
        "and the client secret.",
    ),
    Failure.PAYLOAD_ERASED: ("erased", "The event's payload was erased, so there is nothing left to send."),
    Failure.PROXY_FAILED: ("ours", "The problem is on our side. We try again automatically."),
    Failure.INTERNAL_ERROR: ("ours", "The problem is on our side. We try again automatically."),
    Failure.WORKER_LOST: ("ours", "The problem is on our side. We try again automatically."),
    Failure.TRANSFORM_FAILED: ("transform", "The endpoint's expression doesn't fit this event. Change the expression."),
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
    """Return the API's error at a field as a sentence begins, in a tenant's words."""
    return _PUBLIC_ONLY if text == NOT_ALLOWED else f"{text[:1].upper()}{text[1:]}"


def why_not_retryable(delivery: Delivery) -> str:
    """Return why a delivery can't be retried.  What the API calls a subscription is an endpoint here."""
    return delivery_actions.why_not_retryable(delivery).replace("subscription", "endpoint")


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
