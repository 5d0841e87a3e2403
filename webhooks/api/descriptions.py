"""Descriptions of members that several requests and responses have, about subscriptions, attempts, and runs."""

from __future__ import annotations

# --- subscriptions ----------------------------------------------------------------------------------

DESCRIPTION = "What it is for, in your own words."
EVENT_TYPES = "The types that it receives: exact (`order.created`), by prefix (`order.*`), or all (`*`)."
ORDERED_ATTEMPTS = "After so many attempts, a delivery with an ordering key is `failed`. Null for the retry schedule's."
ORDERED_ON_FAILURE = (
    "When a delivery with an ordering key has failed: `skip` continues with the next one, `block` keeps the key "
    "waiting until the failed one is retried successfully."
)
MAX_IN_FLIGHT = "At most so many requests at the same time. Null for the limit of this installation."
DELIVERIES_PER_SECOND = "At most so many requests per second, on average. Null for no limit."
FORMAT = (
    "What the body of a request looks like. `standard`: Standard Webhooks. `cloudevents`, `cloudevents-binary`: "
    "CloudEvents 1.0, structured or binary. `legacy`: `event_id`, `event_type`, `payload`, and `created_at`. `raw`: "
    "the data alone. `transform`: what the expression `transform` makes of the standard body. All are signed in the "
    "same way."
)
TRANSFORM = (
    "A JMESPath expression over the standard body, such as `{text: join(' ', [type, data.total])}`, for the format "
    "`transform`; empty for none. A delivery for which it fails is `transform_failed`."
)

# --- attempts ---------------------------------------------------------------------------------------

STATUS_CODE = "The status of the endpoint's response; null if there was none."
ERROR = "Error class; null for a success."
ERROR_DETAIL = "The error in a sentence; for a success, empty or a remark about the response's body."
DURATION_MS = "How long it took in all, in milliseconds."
RESPONSE_BODY = "The beginning of the response's body."
METHOD = "The HTTP method: always `POST`."
REQUEST_HEADERS = "The request's headers, in the order in which they are sent."
BODY_BYTES = "The length of the body, in bytes."

# --- runs -------------------------------------------------------------------------------------------

RUN_STATUS = "`running` until everything that matches was looked at, then `done`; `cancelled` if an operator ended it."
RUN_CREATED_AT = "When the run began."
RUN_FINISHED_AT = "When the run ended; null while it is `running`."
