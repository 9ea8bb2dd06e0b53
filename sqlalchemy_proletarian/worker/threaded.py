"""The worker with threads: what it is told, and its life from start to stop.

::

    worker = QueueWorker(engine, handlers, threads=4)
    worker.run()  # until SIGINT or SIGTERM

What its threads do is in :mod:`.loop`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any, Self, Unpack

from sqlalchemy import Engine
from sqlalchemy.orm import sessionmaker

from ..arguments import at_least_one
from ..errors import ShutdownTimeoutError
from ..execution.invoke import InvokeInThread
from ..handlers.checks import sync_only
from ..handlers.registry import Handlers, as_handlers
from ..models.defaults import Job
from ..runtime.signals import on_stop_signals
from ..runtime.threads import Threads
from .core import WorkerCore
from .options import WorkerOptions
from .sessions import session_source

_CHECK_SIGNALS = 1.0
"""Seconds after which the main thread wakes up, in case another thread received a signal."""


class QueueWorker:
    """Runs due jobs in threads, each in the transaction that completes it.

    All but the first two are keyword arguments with a default. Durations are timedeltas.

    :param bind: an Engine, or a ``sessionmaker`` bound to one: handlers then get its sessions. The
        worker takes connections of its own from it and never changes it.
    :param handlers: :class:`.Handlers`, or a plain callable of (job_type, payload).
    :param queues: a queue's name, or several, served strictly in that order. By default "default".
    :param threads: how many jobs run at a time in this worker; 1 by default.
    :param batch_size: the most jobs that share a transaction; 1 is one job per transaction. It
        counts for the fastest jobs only: slower ones are fewer, as ``batch_window`` says. 500 by
        default; of no effect with ``lease``.
    :param batch_window: how long jobs may share a transaction; 50 milliseconds by default.
    :param lease: hold jobs by leases of this duration instead of transactions; the worker extends
        them while jobs run. For jobs of minutes, and for many that wait. None by default:
        transactions, but on SQLite, where nothing else is possible, a lease of a minute.
    :param polling_interval: how often to look for jobs that nothing else announces; 1 second by
        default.
    :param shutdown_timeout: how long ``stop`` waits for running handlers; 10 seconds by default.
    :param job_model: the mapped class of the job table; :class:`.Job` by default.
    :param archived_job_model: the mapped class of the archive; :class:`.ArchivedJob` by default.
    :param running_job_model: the mapped class of the running markers, which say what runs where,
        and by which a job that kills its workers is found. Several job tables may share it
        where their ids are UUIDs. None: no markers. By default RunningJob for the default Job, and
        none for a model of yours. SQLite does without: it is of no effect there.
    :param serializer: must be the one that the jobs were enqueued with; JSONSerializer() by
        default.
    :param retry_strategy: for job types that ``handlers`` say nothing about: a strategy, its
        mapping form, or a function of (job, exception). None by default: a failed job is not
        retried.
    :param max_deaths: how many workers in a row may die, or lose the lease, while they run a job
        and no other, until the job fails with a :class:`.WorkerDiedError`; 3 by default. A death
        uses up no attempt. Has no effect where jobs have neither running markers nor leases.
    :param on_failed: called with (job, exception) after a job was archived as a failure. An error
        in it is logged and undoes nothing. None by default.
    :param on_polling_error: called with an error that is no job's; a true result stops the worker.
        None by default. Such an error is logged in any case, and polling goes on after a pause that
        grows to 5 seconds.
    :param on_shutdown: called without arguments when the worker has stopped. None by default.
    :param format_error: called with the exception of an attempt that failed; returns the text that
        is kept in the job's ``error``, or None to keep nothing. By default the traceback. If it
        raises, the name of the exception's class is kept.
    :param name: what the worker is called in events. By default made of the host's name, the
        process id and a random part. The ``application_name`` of its connections, and ``worker`` in
        its running markers, is the name, cut short where it is long, and a suffix of its own for
        each start.
    :param log: called with (event, data) for everything that happens, which is logged as well. None
        by default.
    :param clock: returns the time as an aware datetime; :func:`.utcnow` by default. When leases end
        is then told by the database's clock, on which all workers agree; otherwise by yours.
    :param notify: be woken by commits, through LISTEN on a connection of its own and directly by
        those of the same process, and hear what :func:`.manage.cancel` asks; otherwise the worker
        polls. While it listens, it polls ten times less often. True by default.
    :raises TypeError: if an argument is of the wrong type, or a handler is ``async``.
    :raises ValueError: if a number or duration is out of range, no queue is named, or the database
        is one of SQLite in memory.
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
        """Whether the worker was asked to stop; a long handler looks here and raises to give up.

        A job whose handler raises after that is no failure: it is rolled back, not counted, and due
        again at once.
        """
        return self._core.stopping

    def run(self) -> None:
        """Work until SIGINT or SIGTERM; a second signal no longer waits for running handlers.

        :raises DatabaseNotReadyError: if the tables or the role's privileges are not what it needs;
            the message says what to do.
        :raises ShutdownTimeoutError: if handlers outlast ``shutdown_timeout``.
        """
        with on_stop_signals(self.request_stop, again=lambda: self.stopping):
            pool = self._core.start(Threads(), self._invoke)
            try:
                # What is sent to a process that is frozen may be handed to any of its threads, and
                # then does not wake this one, which alone deals with signals.
                while not pool.stopping.wait(_CHECK_SIGNALS):
                    pass
            except KeyboardInterrupt:  # two signals at once
                with suppress(ShutdownTimeoutError):
                    self._core.stop(timeout=0)
                raise
            self.stop()

    def start(self) -> None:
        """Start the worker's threads and return.

        :raises DatabaseNotReadyError: if the tables or the role's privileges are not what it needs;
            the message says what to do.
        :raises RuntimeError: if the worker is running.
        """
        self._core.start(Threads(), self._invoke)

    def stop(self) -> None:
        """Claim no more jobs, wait for the running handlers, and return when they have ended.

        Jobs whose handlers have not ended after ``shutdown_timeout`` are rolled back: they are due
        again at once and their attempt is not counted.

        :raises ShutdownTimeoutError: if that happened.
        """
        self._core.stop()

    def request_stop(self) -> None:
        """Ask the worker to stop and return at once; ``stop`` waits for it."""
        self._core.request_stop()

    def __enter__(self) -> Self:
        """Start the worker."""
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Stop the worker."""
        self.stop()

    def drain(self) -> int:
        """Run what is due now, on ``threads`` threads, and return how many runs that took.

        Retries that come due meanwhile are run too.

        :raises DatabaseNotReadyError: if the tables or the role's privileges are not what it needs;
            the message says what to do.
        :raises RuntimeError: if the worker is running.
        """
        return self._core.drain(Threads(), self._invoke)
