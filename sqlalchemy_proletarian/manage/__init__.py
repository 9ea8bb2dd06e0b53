"""What an operator does with jobs: functions of a Session, in whose transaction they act."""

from .cancellation import cancel
from .changes import discard, reschedule
from .pause import pause, resume
from .prune import prune
from .retry import retry, retry_where
from .running import Running, running
from .schedules import ScheduleOptions, schedule, unschedule
from .stats import JobCounts, Stats, stats

__all__ = [
    "JobCounts",
    "Running",
    "ScheduleOptions",
    "Stats",
    "cancel",
    "discard",
    "pause",
    "prune",
    "reschedule",
    "resume",
    "retry",
    "retry_where",
    "running",
    "schedule",
    "stats",
    "unschedule",
]
