"""Enqueueing: jobs are rows in the caller's unit of work."""
