"""The life of a worker: its options, its parts, start and stop, and what its members do."""

from .threaded import QueueWorker

__all__ = ["QueueWorker"]
