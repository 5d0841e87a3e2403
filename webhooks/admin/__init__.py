"""The admin's pages for subscriptions, deliveries, attempts and bulk runs, and an event's with its deliveries.

Django imports this package; each module registers one page.
"""

from webhooks.admin import attempts, bulk_runs, deliveries, events, subscriptions

__all__ = ["attempts", "bulk_runs", "deliveries", "events", "subscriptions"]
