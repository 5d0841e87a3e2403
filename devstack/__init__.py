"""The servers and processes behind make run, make test, make bench and make soak; not needed in production."""
