"""The one error of this package."""


class DevstackError(Exception):
    """Something could not be started or stopped; the message is one clear line."""
