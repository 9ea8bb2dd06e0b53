"""The errors this library raises; every one derives from :class:`ProletarianError`."""

from __future__ import annotations


class ProletarianError(Exception):
    """Base class of all errors of this library.

    .. versionadded:: 0.1
    """


class PayloadError(ProletarianError, ValueError):
    """A payload cannot be encoded, or stored text cannot be decoded to what the handler asks for.

    .. versionadded:: 0.1
    """


class HandlerError(ProletarianError, TypeError):
    """A handler cannot be registered: its name is taken or its signature cannot be served.

    .. versionadded:: 0.1
    """


class ModelError(ProletarianError, TypeError):
    """A mapped class cannot be one of a job table; the message says what to declare.

    .. versionadded:: 0.1
    """


class HandlerEndedTransactionError(ProletarianError):
    """A handler committed or rolled back the session in whose transaction its job completes.

    .. versionadded:: 0.1
    """


class OwnJobRemovedError(ProletarianError):
    """A handler removed its own job in the session it was handed, which completes it.

    .. versionadded:: 0.1
    """

    def __init__(self) -> None:
        super().__init__(
            "the handler has removed its own job in the session it was handed, which completes "
            "it: raise Discard, or another error, to end a job"
        )


class WorkerDiedError(ProletarianError):
    """Workers died, or lost their lease or connection, several times in a row while the job ran.

    The job has failed, with this as its error. No retry strategy is asked. See ``max_deaths`` of
    :class:`.QueueWorker`.

    .. versionadded:: 0.1
    """


class ArchiveRefusedError(ProletarianError):
    """A job has ended, and the database refuses to move it to the archive; it says why.

    The job stays in its queue, its handler does not run again, and the archive is asked again.

    .. versionadded:: 0.1
    """


class JobTimeoutError(ProletarianError, TimeoutError):
    """A handler ran longer than the ``timeout`` it was registered with; the attempt has failed.

    .. versionadded:: 0.1
    """


class JobCancelledError(ProletarianError):
    """Somebody asked for the end of a job that was running; this stands as the job's error.

    .. versionadded:: 0.1
    """


class JobInterruptedError(ProletarianError):
    """A run was given up that says nothing about the job: it is due again, its attempt not counted.

    .. versionadded:: 0.1
    """


class LeaseLostError(JobInterruptedError):
    """The job ran beyond its lease and is no longer this worker's; what the run wrote is undone.

    .. versionadded:: 0.1
    """


class UnboundSessionError(ProletarianError):
    """The session given to ``enqueue`` knows no database for the job's table.

    .. versionadded:: 0.1
    """


class DatabaseNotReadyError(ProletarianError):
    """The database must be changed before anything can work; the message says what to do.

    It says nothing about a job: no attempt is counted for it.

    .. versionadded:: 0.1
    """


class TablesMissingError(DatabaseNotReadyError):
    """The job tables are not in the database; the message names the command that creates them.

    .. versionadded:: 0.1
    """


class SchemaMismatchError(DatabaseNotReadyError):
    """The job tables are not what the models say; the message names the columns that differ.

    .. versionadded:: 0.1
    """


class PrivilegeError(DatabaseNotReadyError):
    """The role may not do what the library does; the message names the GRANT that is missing.

    .. versionadded:: 0.1
    """


class ReadOnlyDatabaseError(DatabaseNotReadyError):
    """The database takes no writes: it is a standby, or read-only by its settings.

    .. versionadded:: 0.1
    """


class ShutdownTimeoutError(ProletarianError):
    """Handlers were still running when the patience of the worker's ``stop`` ended.

    .. versionadded:: 0.1
    """
