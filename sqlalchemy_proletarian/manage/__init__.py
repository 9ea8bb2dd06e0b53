"""What an operator does with jobs: functions of a Session, in whose transaction they act."""

from .cancellation import cancel

__all__ = ["cancel"]
