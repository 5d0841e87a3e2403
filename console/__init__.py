"""The Django admin: its site, its dashboard, and a page for each model."""
