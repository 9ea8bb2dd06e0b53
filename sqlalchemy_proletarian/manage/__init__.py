"""What an operator does with jobs: functions of a Session, in whose transaction they act."""

from .cancellation import cancel
from .changes import discard, reschedule
from .pause import pause, resume
from .prune import prune
from .results import JobResult, ResultHandler, result
from .retry import retry, retry_where
from .running import Running, running
from .schedules import ScheduleOptions, schedule, unschedule
from .stats import JobCounts, Stats, stats
from .waiting import wait_for

__all__ = [
    "JobCounts",
    "JobResult",
    "ResultHandler",
    "Running",
    "ScheduleOptions",
    "Stats",
    "cancel",
    "discard",
    "pause",
    "prune",
    "reschedule",
    "result",
    "resume",
    "retry",
    "retry_where",
    "running",
    "schedule",
    "stats",
    "unschedule",
    "wait_for",
]
