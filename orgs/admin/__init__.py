"""The admin's pages for organisations, API keys, the audit log and staff.

Django imports this package; each module registers one page.
"""

from orgs.admin import audit_log, keys, organizations, staff

__all__ = ["audit_log", "keys", "organizations", "staff"]
