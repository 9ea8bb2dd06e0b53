"""All of the worker's SQL: claim, settle, lease, markers.

The stores for PostgreSQL and for the other databases are siblings under one base.
"""
