"""What an operator does with jobs: functions of a Session, in whose transaction they act."""

from .cancellation import cancel
from .pause import pause, resume

__all__ = ["cancel", "pause", "resume"]
