"""The front door: an ASGI application in front of Django, for requests that must be fast or that may wait long.

A connection to it costs memory, not a thread.  It serves its own routes (`app`), and passes everything else to Django
in a bounded number of threads (`wsgi_bridge`).
"""
