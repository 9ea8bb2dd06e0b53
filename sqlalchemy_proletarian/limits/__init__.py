"""Limits of job types: how many jobs run at a time, and how many start in a period."""
