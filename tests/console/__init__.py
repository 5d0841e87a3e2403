"""The admin as its staff use it."""
