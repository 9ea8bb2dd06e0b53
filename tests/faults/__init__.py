"""What production does to a queue, done to real processes and a real PostgreSQL."""
