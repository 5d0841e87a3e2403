"""Shortcuts of a POST through private parts of Django, django-csp and redis-py, which the front door will replace.

They are kept together so that they can be taken out together.  Each module says in its first line what it saves and
which benchmark shows it, and has a test in tests/core/test_fast_paths.py that fails on an upgrade that would break it.
"""
