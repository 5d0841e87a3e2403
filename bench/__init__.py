"""The benchmark: `make bench`, or `make bench SCENARIO=name`.  docs/performance.md says what it measures."""
