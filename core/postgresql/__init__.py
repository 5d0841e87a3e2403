"""Django's PostgreSQL backend, which answers fast while the database is away."""
