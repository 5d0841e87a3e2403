"""Kills processes and servers under load and counts what was lost: `make soak`."""
