"""The library against a real PostgreSQL."""
