"""Recurring jobs: when their ticks are, and how each tick becomes a job."""
