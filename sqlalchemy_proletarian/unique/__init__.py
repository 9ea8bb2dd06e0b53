"""Unique jobs: enqueueing a job unless one with the same key is there, or in place of that one."""
