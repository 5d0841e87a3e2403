"""Problem codes of the portal's links."""

from core.problems import ProblemType, register

register(
    ProblemType(
        "too_many_portal_links",
        429,
        "The organization has made too many links to the portal in this minute; retry after `Retry-After`.",
        "The organization may make 120 links to the portal a minute.",
    ),
)
