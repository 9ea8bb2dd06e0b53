"""What an operator does with jobs: functions of a Session, in whose transaction they act."""

from .browse import get_job, list_jobs
from .cancellation import cancel
from .changes import discard, reschedule
from .history import EndedJobs, FailureGroup, Failures, failures, history
from .job_views import JobDetails, JobPage, JobState, ListedJob
from .partitions import make_partitions
from .pause import pause, resume
from .prune import prune
from .results import JobResult, ResultHandler, result
from .retry import retry, retry_where
from .running import Running, running
from .schedule_changes import pause_schedule, resume_schedule, run_schedule
from .schedules import ScheduleOptions, schedule, unschedule
from .stats import JobCounts, Stats, stats
from .waiting import wait_for

__all__ = [
    "EndedJobs",
    "FailureGroup",
    "Failures",
    "JobCounts",
    "JobDetails",
    "JobPage",
    "JobResult",
    "JobState",
    "ListedJob",
    "ResultHandler",
    "Running",
    "ScheduleOptions",
    "Stats",
    "cancel",
    "discard",
    "failures",
    "get_job",
    "history",
    "list_jobs",
    "make_partitions",
    "pause",
    "pause_schedule",
    "prune",
    "reschedule",
    "result",
    "resume",
    "resume_schedule",
    "retry",
    "retry_where",
    "run_schedule",
    "running",
    "schedule",
    "stats",
    "unschedule",
    "wait_for",
]
