"""Measurements of the queue beside raw psycopg and beside its peers; see README.md here."""
