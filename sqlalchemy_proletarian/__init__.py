"""A durable job queue for SQLAlchemy, built from mapped tables and your own ``Session``.

:func:`enqueue` adds a row to the caller's unit of work, so the job and the business data are
committed together or not at all. :class:`QueueWorker` locks due rows with
``FOR UPDATE SKIP LOCKED``, runs their handlers and moves the rows to the archive in the same
transaction.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .clock import utcnow, uuid7
from .errors import (
    ArchiveRefusedError,
    DatabaseNotReadyError,
    HandlerEndedTransactionError,
    HandlerError,
    JobCancelledError,
    JobExistsError,
    JobFailedError,
    JobInterruptedError,
    JobNotFinishedError,
    JobNotFoundError,
    JobTimeoutError,
    LeaseLostError,
    LimitKeyError,
    ModelError,
    NoResultError,
    OwnJobRemovedError,
    PayloadError,
    PoolerError,
    PrivilegeError,
    ProletarianError,
    ReadOnlyDatabaseError,
    ResultError,
    SchemaMismatchError,
    ShutdownTimeoutError,
    TablesMissingError,
    TooManyConnectionsError,
    UnboundSessionError,
    WorkerDiedError,
)
from .handlers.handler import Handler
from .handlers.options import HandlerOptions
from .handlers.registry import Handlers
from .models.defaults import (
    ArchivedJob,
    Base,
    Job,
    LimitPlace,
    PausedQueue,
    RecurringJob,
    RunningJob,
)
from .models.limits import LimitPlaceMixin
from .models.mixins import ArchivedJobMixin, JobMixin, PausedQueueMixin, RunningJobMixin
from .models.recurring import RecurringJobMixin
from .models.values import CatchUp, Status
from .producer.bulk import enqueue_many
from .producer.enqueue import enqueue
from .producer.options import JobOptions
from .retry import Discard, RetryAfter, RetryStrategy, Snooze
from .serializers.json_serializer import JSONSerializer, Serializer

if TYPE_CHECKING:
    from .handlers.batch import BatchHandler
    from .handlers.batch_failed import BatchFailed
    from .transit.serializer import TransitSerializer
    from .unique.conflicts import Enqueued
    from .unique.enqueue import enqueue_unique
    from .worker.health import Health
    from .worker.next_job import process_next_job
    from .worker.threaded import QueueWorker

__all__ = [
    "ArchiveRefusedError",
    "ArchivedJob",
    "ArchivedJobMixin",
    "Base",
    "BatchFailed",
    "BatchHandler",
    "CatchUp",
    "DatabaseNotReadyError",
    "Discard",
    "Enqueued",
    "Handler",
    "HandlerEndedTransactionError",
    "HandlerError",
    "HandlerOptions",
    "Handlers",
    "Health",
    "JSONSerializer",
    "Job",
    "JobCancelledError",
    "JobExistsError",
    "JobFailedError",
    "JobInterruptedError",
    "JobMixin",
    "JobNotFinishedError",
    "JobNotFoundError",
    "JobOptions",
    "JobTimeoutError",
    "LeaseLostError",
    "LimitKeyError",
    "LimitPlace",
    "LimitPlaceMixin",
    "ModelError",
    "NoResultError",
    "OwnJobRemovedError",
    "PausedQueue",
    "PausedQueueMixin",
    "PayloadError",
    "PoolerError",
    "PrivilegeError",
    "ProletarianError",
    "QueueWorker",
    "ReadOnlyDatabaseError",
    "RecurringJob",
    "RecurringJobMixin",
    "ResultError",
    "RetryAfter",
    "RetryStrategy",
    "RunningJob",
    "RunningJobMixin",
    "SchemaMismatchError",
    "Serializer",
    "ShutdownTimeoutError",
    "Snooze",
    "Status",
    "TablesMissingError",
    "TooManyConnectionsError",
    "TransitSerializer",
    "UnboundSessionError",
    "WorkerDiedError",
    "enqueue",
    "enqueue_many",
    "enqueue_unique",
    "process_next_job",
    "utcnow",
    "uuid7",
]

# Imported when they are used: an application that only enqueues jobs has no worker in memory, and a
# worker has the payload format of the Clojure library only if it reads it.
_LATER = {
    "BatchFailed": ".handlers.batch_failed",
    "BatchHandler": ".handlers.batch",
    "Enqueued": ".unique.conflicts",
    "Health": ".worker.health",
    "QueueWorker": ".worker.threaded",
    "TransitSerializer": ".transit.serializer",
    "enqueue_unique": ".unique.enqueue",
    "process_next_job": ".worker.next_job",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg, name=name)
    value = getattr(import_module(_LATER[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
