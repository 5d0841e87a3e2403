"""Django's admin imports this module of each app; ours registers every page."""

from console import pages

__all__ = ["pages"]
