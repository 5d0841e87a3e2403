"""From a pending delivery to a recorded attempt: claim, send, record."""
