"""Benchmarks that compare the queue with raw psycopg and with its peers; see README.md."""
