"""Metrics: what the processes count, in files that outlive them, and the page that Prometheus reads."""
