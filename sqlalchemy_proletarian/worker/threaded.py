"""The worker with threads.

::

    worker = QueueWorker(engine, handlers, threads=4)
    worker.run()  # until SIGINT or SIGTERM

What its threads do is in :mod:`.loop`, and its life from start to stop in :mod:`.core`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Self, Unpack

from sqlalchemy import Engine
from sqlalchemy.orm import sessionmaker

from ..arguments import at_least_one
from ..errors import ShutdownTimeoutError
from ..execution.invoke import InvokeInThread
from ..handlers.checks import sync_only
from ..handlers.every_type import as_handlers
from ..handlers.registry import Handlers
from ..models.defaults import Job
from ..runtime.signals import on_stop_signals
from ..runtime.threads import Threads
from .core import WorkerCore
from .options import WorkerOptions
from .sessions import session_source

if TYPE_CHECKING:
    from .health import Health

_CHECK_SIGNALS = 1.0
"""Seconds after which the main thread wakes up, in case another thread received a signal."""


class QueueWorker:
    """Runs due jobs in threads, each in the transaction that completes it.

    All parameters except the first two are keyword-only and optional. Durations are timedeltas.

    :param bind: an Engine, or a ``sessionmaker`` bound to one; handlers then get sessions from it.
        The worker opens connections of its own and does not change the engine.
    :param handlers: :class:`.Handlers`, or a plain callable of (job_type, payload).
    :param queues: the name of a queue, or a sequence of names, the most urgent first: jobs of a
        later queue run only if none is due in the earlier ones. Or a mapping of names to weights,
        ints of at least 1, as in ``{"critical": 5, "bulk": 1}``: while all have due jobs, five jobs
        of "critical" start for each one of "bulk". "default" by default.
    :param threads: how many jobs run at a time; 1 by default.
    :param batch_size: the maximum number of jobs that share a transaction; 500 by default. With 1,
        each job has a transaction of its own. Only very fast jobs reach the maximum, because
        ``batch_window`` limits the time. Batch handlers have a ``size`` of their own. Ignored in
        lease mode.
    :param batch_window: how long a transaction with several jobs may take; 50 milliseconds by
        default. Ignored in lease mode.
    :param lease: the duration of leases, which the worker extends while jobs run. Selects lease
        mode: no transaction is open while a handler runs. Use it for jobs that take minutes, or for
        many jobs that wait. None by default, which selects transaction mode; on SQLite, which
        supports only lease mode, the default is 1 minute.
    :param polling_interval: how often to poll for jobs that no notification announces; 1 second by
        default.
    :param shutdown_timeout: how long ``stop`` waits for running handlers; 10 seconds by default.
    :param job_model: the mapped class of the job table; :class:`.Job` by default.
    :param archived_job_model: the mapped class of the archive; :class:`.ArchivedJob` by default.
    :param running_job_model: the mapped class of the table of running markers, by which a job that
        crashes its workers is found. Job tables whose ids are UUIDs may share one. None for no
        markers. By default :class:`.RunningJob` if ``job_model`` is :class:`.Job`, otherwise None.
        Ignored on SQLite.
    :param paused_queue_model: the mapped class of the table of paused queues; see
        :func:`.manage.pause`. Workers of several job tables may share one. None if no queue is ever
        paused. By default :class:`.PausedQueue` if ``job_model`` is :class:`.Job`, otherwise None.
    :param recurring_job_model: the mapped class of the table of recurring jobs, whose ticks the
        worker then enqueues. By default :class:`.RecurringJob` if the handlers define recurring
        jobs, otherwise none: the worker then does not use the table. Pass the class to enqueue the
        ticks of :func:`.manage.schedule` with handlers that define none; pass None to leave the
        ticks to other workers.
    :param limit_place_model: the mapped class of the table of the places of limits, if a handler
        has a limit. One table belongs to one job table. By default :class:`.LimitPlace`; required
        if ``job_model`` is not :class:`.Job`.
    :param serializer: the serializer that the jobs were enqueued with; ``JSONSerializer()`` by
        default.
    :param retry_strategy: a :class:`.RetryStrategy`, its mapping form, or a function of (job,
        exception), for job types that have no strategy in ``handlers``. None by default: a failed
        job is not retried.
    :param max_deaths: how many workers in a row may crash or lose the lease, while they run a job
        alone, until the job fails with a :class:`.WorkerDiedError`; 3 by default, at least 1. With
        1, two crashes are needed in transaction mode with several threads. A crash does not count
        as an attempt. Needs running markers or lease mode.
    :param on_failed: called with (job, exception) after a job was archived as a failure. Its errors
        are logged. None by default.
    :param on_polling_error: called with an error that is not an error of a job; if it returns a
        true value, the worker stops. Such an error is also logged, and polling continues after a
        pause of at most 5 seconds. None by default.
    :param on_shutdown: called without arguments when the worker has stopped. None by default.
    :param format_error: called with the exception of a failed attempt; returns the text to store in
        the job's ``error``, or None to store none. By default it returns the traceback. If it
        raises, the name of the exception's class is stored.
    :param archive_retention: how long jobs stay in the archive, a timedelta; or a mapping of
        statuses to timedeltas, such as ``{"success": timedelta(days=7)}``, which keeps jobs of all
        other statuses. Older jobs are deleted in the background, in small batches, by one worker at
        a time. None by default: nothing is deleted.
    :param name: the name of the worker in events. By default it is made of the host name, the
        process id and a random part. The ``application_name`` of the worker's connections, and
        ``worker`` in its running markers, is the name, shortened if necessary, with a suffix that
        differs for each start.
    :param log: called with (event, data) for each event. Events are also logged. None by default.
    :param clock: returns the current time as an aware datetime; :func:`.utcnow` by default. With
        the default, the database's clock, which all workers share, decides when leases expire;
        otherwise this clock does.
    :param notify: whether commits wake the worker: those of the same process directly, and others
        by LISTEN on a separate connection, on which it also receives the requests of
        :func:`.manage.cancel`. While it listens, the worker polls ten times less often. True by
        default.
    :raises TypeError: if an argument is of the wrong type, or a handler is ``async``.
    :raises ValueError: if a number or duration is out of range, if no queue is named, or if the
        database is an in-memory SQLite database.
    :raises NotImplementedError: if the database is none of PostgreSQL, MySQL, MariaDB and SQLite.

    .. versionadded:: 0.1
    """

    def __init__(
        self,
        bind: Engine | sessionmaker[Any],
        handlers: Handlers | Callable[[str, Any], Any],
        *,
        threads: int = 1,
        **options: Unpack[WorkerOptions],
    ) -> None:
        sessions = session_source(bind, options.get("job_model", Job))
        self.threads: int = at_least_one("threads", threads)
        self._core = WorkerCore(sessions, sync_only(as_handlers(handlers)), threads, **options)
        self.name: str = self._core.name
        self._invoke = InvokeInThread(self._core.events)

    @property
    def stopping(self) -> bool:
        """Whether the worker was requested to stop; long handlers may check this, and raise.

        If a handler raises after that, its job has not failed: it is rolled back and due again at
        once, and the attempt is not counted.
        """
        return self._core.stopping

    def run(self) -> None:
        """Run jobs until SIGINT or SIGTERM; after a second signal, do not wait for handlers.

        :raises DatabaseNotReadyError: if the tables or the privileges of the role do not fit; the
            message says what to do.
        :raises ShutdownTimeoutError: if handlers run longer than ``shutdown_timeout``.
        """
        is_requested = False

        def stop() -> None:
            nonlocal is_requested
            is_requested = True
            self.request_stop()

        with on_stop_signals(stop, again=lambda: self.stopping):
            pool = self._core.start(Threads(), self._invoke)
            if is_requested:  # perhaps before there was a pool to stop
                self.request_stop()
            try:
                # A signal to a frozen process may be delivered to any of its threads. It does not
                # wake this one, which alone handles signals.
                while not pool.stopping.wait(_CHECK_SIGNALS):
                    pass
            except KeyboardInterrupt:  # two signals at once
                with suppress(ShutdownTimeoutError):
                    self._core.stop(timeout=0)
                raise
            self.stop()

    def start(self) -> None:
        """Start the worker's threads and return.

        :raises DatabaseNotReadyError: if the tables or the privileges of the role do not fit; the
            message says what to do.
        :raises RuntimeError: if the worker is running.
        """
        self._core.start(Threads(), self._invoke)

    def stop(self) -> None:
        """Stop claiming jobs, wait until the running handlers have ended, and return.

        Jobs whose handlers have not ended after ``shutdown_timeout`` are rolled back. They are due
        again at once, and the attempts are not counted.

        :raises ShutdownTimeoutError: if there were such jobs.
        """
        self._core.stop()

    def request_stop(self) -> None:
        """Request that the worker stops, and return at once. Call ``stop`` to wait for it."""
        self._core.request_stop()

    def health(self) -> Health:
        """Return whether the worker is well, for the probes of an orchestrator and for metrics.

        It sends no statement and does not wait, so any thread may call it.
        Call it every few seconds: a standstill is found by looking repeatedly. While it is called,
        the worker measures ``oldest_due`` on a connection of its own, every ten seconds.

        .. versionadded:: 0.1
        """
        return self._core.health_check.look()

    def __enter__(self) -> Self:
        """Start the worker."""
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Stop the worker."""
        self.stop()

    def drain(self) -> int:
        """Run jobs until none is due, on ``threads`` threads, and return the number of runs.

        Retries that come due in the meantime are run, too.

        :raises DatabaseNotReadyError: if the tables or the privileges of the role do not fit; the
            message says what to do.
        :raises RuntimeError: if the worker is running.
        """
        return self._core.drain(Threads(), self._invoke)
