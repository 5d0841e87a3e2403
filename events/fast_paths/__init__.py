"""Shortcuts around the POST that will be taken out together when the front door comes."""
