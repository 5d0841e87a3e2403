"""Webhooks over HTTP: one signed POST for each attempt."""
