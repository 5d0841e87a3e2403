"""What states and failures mean, and what to do about them, for people who have never seen the API."""

from __future__ import annotations

from webhooks.destinations.outcome import Failure

STATES = {
    "active": "Webhooks are being sent.",
    "failing": "The last attempt failed. We try again by ourselves, later and later.",
    "paused": "Too many attempts failed in a row, so we only try now and then. Nothing is lost: what waits is sent as "
    "soon as your endpoint answers.",
    "disabled": "Nothing is sent. New webhooks are held and sent once you enable the endpoint.",
}
DELIVERY_STATES = {
    "pending": "It waits for its first attempt.",
    "retrying": "An attempt failed; the next one is planned.",
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

_BY_FAILURE = {
    Failure.REDIRECT: ("redirect", "Your endpoint redirects elsewhere, which we don't follow. Enter the final URL."),
    Failure.TIMEOUT: (
        "timeout", "Your endpoint took too long. Answer with a 200 first, and do the work afterwards.",
    ),
    Failure.DNS_FAILED: ("connection", "The host name in the URL doesn't exist, or its name server doesn't answer."),
    Failure.CONNECTION_REFUSED: ("connection", "Nothing listens at this address and port. Is your server running?"),
    Failure.CONNECTION_FAILED: ("connection", "Your server can't be reached. Look at its firewall and its address."),
    Failure.CONNECTION_LOST: ("connection", "Your server closed the connection before it answered."),
    Failure.TLS_FAILED: ("tls", "The certificate isn't valid for this host name, or its chain is incomplete."),
    Failure.INVALID_RESPONSE: ("connection", "What answered isn't a web server. Is the port right?"),
    Failure.ADDRESS_NOT_ALLOWED: ("address", "The host name leads to an address that webhooks may not be sent to."),
    Failure.OAUTH_FAILED: (
        "oauth", "We got no access token for your endpoint. Look at its authorization server, and at the client id and "
        "secret for that.",
    ),
    Failure.PAYLOAD_ERASED: ("erased", "What the event said was erased, so there is nothing to send any more."),
    Failure.PROXY_FAILED: ("ours", "This is our side's fault. We try again by ourselves."),
    Failure.INTERNAL_ERROR: ("ours", "This is our side's fault. We try again by ourselves."),
    Failure.WORKER_LOST: ("ours", "This is our side's fault. We try again by ourselves."),
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


def _for_status(status: int) -> tuple[str, str]:
    if status in {401, 403}:
        return "401", (
            "Your endpoint wants a log-in. Exempt its path from authentication and check the signature instead, or add "
            "the header that it wants to the endpoint."
        )
    if status in {404, 405}:
        return "404", "There is no page for POST requests at this URL. Check the path for typing mistakes."
    if status == 410:
        return "410", "Your endpoint said that it is gone, so it was disabled. Correct the URL and enable it."
    if status == 429:
        return "429", "Your endpoint gets more than it wants. Give it a rate limit under “Advanced”."
    if status >= 500:
        return "5xx", "Your code failed. The response's body and your own logs at this time say why."
    return "4xx", "Your endpoint didn't like the request. The response's body may say why."
