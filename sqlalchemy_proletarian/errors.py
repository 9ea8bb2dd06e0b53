"""Errors raised by this library. All of them derive from :class:`ProletarianError`."""

from __future__ import annotations

from typing import Any


class ProletarianError(Exception):
    """Base class of all errors of this library.

    .. versionadded:: 0.1
    """


class PayloadError(ProletarianError, ValueError):
    """A payload cannot be encoded, or its stored text cannot be decoded to the declared type.

    For an error at enqueue time, the message names the part of the payload that is at fault.

    .. versionadded:: 0.1
    """


class HandlerError(ProletarianError, TypeError):
    """A handler cannot be registered or run.

    For example, its job type already has a handler, or its signature has a parameter that the
    library cannot supply. The message says what to change.

    .. versionadded:: 0.1
    """


class ModelError(ProletarianError, TypeError):
    """A mapped class does not meet the requirements of a job table.

    The message says what to declare.

    .. versionadded:: 0.1
    """


class HandlerEndedTransactionError(ProletarianError):
    """A handler ended the transaction that completes its job.

    The handler committed or rolled back the session it was given, or it went on after the database
    rolled the transaction back because of a deadlock.

    .. versionadded:: 0.1
    """


class LimitKeyError(ProletarianError):
    """The ``concurrency_key`` of a job could not be determined: the attempt has failed.

    The function raised an error, which is the cause, or returned a value that is no key.

    .. versionadded:: 0.1
    """


class OwnJobRemovedError(ProletarianError):
    """A handler removed its own job in the session it was given.

    The worker completes the job in the transaction of that session. To end a job early, raise
    :class:`.Discard` or another error.

    .. versionadded:: 0.1
    """

    def __init__(self) -> None:
        super().__init__(
            "the handler removed its own job in the session it was given, in which the worker "
            "completes the job: to end a job early, raise Discard or another error"
        )


class WorkerDiedError(ProletarianError):
    """Several workers in a row crashed, or lost their lease or connection, while running a job.

    The job fails with this error, and no retry strategy is applied. See ``max_deaths`` of
    :class:`.QueueWorker`.

    .. versionadded:: 0.1
    """


class ArchiveRefusedError(ProletarianError):
    """The database rejects the archive row of a job that has ended.

    The job stays in its queue and its handler does not run again. The job's column ``refusal``
    contains the database's error. The worker retries the move to the archive later.

    .. versionadded:: 0.1
    """


class JobTimeoutError(ProletarianError, TimeoutError):
    """A handler ran longer than the ``timeout`` it was registered with, so the attempt failed.

    .. versionadded:: 0.1
    """


class JobCancelledError(ProletarianError):
    """A running job was cancelled on request; this is recorded as the job's error.

    .. versionadded:: 0.1
    """


class JobInterruptedError(ProletarianError):
    """A run was abandoned for a reason unrelated to the job, such as a worker that stops.

    The job is due again at once, and the attempt is not counted.

    .. versionadded:: 0.1
    """


class LeaseLostError(JobInterruptedError):
    """The lease of a job expired while it ran, so the job no longer belongs to this worker.

    What the run wrote is rolled back.

    .. versionadded:: 0.1
    """


class ResultError(ProletarianError):
    """A job has no result; the subclasses say why.

    .. versionadded:: 0.1
    """


class JobNotFoundError(ResultError, LookupError):
    """A job is neither in its queue nor in the archive.

    .. versionadded:: 0.1
    """


class JobNotFinishedError(ResultError):
    """A job waits or is running; the message says where it is.

    .. versionadded:: 0.1
    """


class JobFailedError(ResultError):
    """A job has failed or was cancelled.

    :param message: the text of the error.
    :param status: "failure" or "cancelled".
    :param error: the last traceback, or the reason of the cancellation; None if there is none.

    .. versionadded:: 0.1
    """

    def __init__(self, message: str, status: str, error: str | None) -> None:
        super().__init__(message)
        self.status: str = status
        self.error: str | None = error

    def __reduce__(self) -> tuple[type[JobFailedError], tuple[str, str, str | None]]:
        """Return what pickle needs to make the error again."""
        return type(self), (str(self), self.status, self.error)


class NoResultError(ResultError):
    """A job has succeeded, but its result was not kept: see ``keep_result``.

    .. versionadded:: 0.1
    """


class UnboundSessionError(ProletarianError):
    """The session given to ``enqueue`` has no bind for the job's table.

    .. versionadded:: 0.1
    """


class JobExistsError(ProletarianError):
    """A queue has a job with the unique key, and ``on_conflict`` is "raise".

    The caller's transaction goes on.

    :param job_id: the id of that job; None if the role cannot see its row.
    :param queue: the queue.
    :param unique_key: the key.

    .. versionadded:: 0.1
    """

    def __init__(self, job_id: Any, queue: str, unique_key: str) -> None:
        super().__init__(job_id, queue, unique_key)  # so that it can be pickled
        self.job_id = job_id
        self.queue = queue
        self.unique_key = unique_key

    def __str__(self) -> str:
        which = "a job that the role cannot see" if self.job_id is None else f"job {self.job_id}"
        return f"{which} in queue {self.queue!r} has the unique key {self.unique_key!r}"


class DatabaseNotReadyError(ProletarianError):
    """The database is not ready for use by this library; the message says what to do.

    The error is not the fault of a job, so no attempt is counted.

    .. versionadded:: 0.1
    """


class TablesMissingError(DatabaseNotReadyError):
    """The job tables do not exist; the message names the command that creates them.

    .. versionadded:: 0.1
    """


class SchemaMismatchError(DatabaseNotReadyError):
    """The job tables do not match the models; the message names the columns that differ.

    .. versionadded:: 0.1
    """


class PrivilegeError(DatabaseNotReadyError):
    """The database role lacks a privilege; the message contains the missing GRANT.

    .. versionadded:: 0.1
    """


class ReadOnlyDatabaseError(DatabaseNotReadyError):
    """The database accepts no writes, because it is a standby or is configured as read-only.

    .. versionadded:: 0.1
    """


class TooManyConnectionsError(DatabaseNotReadyError):
    """A worker needs more connections than the server accepts; the message has both numbers.

    .. versionadded:: 0.1
    """


class PoolerError(DatabaseNotReadyError):
    """A connection pooler, such as PgBouncer, does not support what is asked of it.

    With transaction pooling there are no LISTEN, no running markers, and mostly no prepared
    statements. The message names the options to set.

    .. versionadded:: 0.1
    """


class ShutdownTimeoutError(ProletarianError):
    """Handlers were still running when ``shutdown_timeout`` of the worker's ``stop`` elapsed.

    Their jobs are rolled back and due again.

    .. versionadded:: 0.1
    """
