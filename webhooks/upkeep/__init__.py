"""What keeps the tables in order: the sweep, replays, recoveries, retention, and key rotation."""
