"""What an operator does with jobs: functions of a Session, in whose transaction they act."""

from .cancellation import cancel
from .schedules import ScheduleOptions, schedule, unschedule

__all__ = ["ScheduleOptions", "cancel", "schedule", "unschedule"]
