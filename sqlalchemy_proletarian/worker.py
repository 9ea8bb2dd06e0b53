"""The worker with threads: what it is told, and its life from start to stop.

::

    worker = QueueWorker(engine, handlers, threads=4)
    worker.run()  # until SIGINT or SIGTERM

What its threads do stands in :mod:`.crew`.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from threading import Event
from typing import Any, Literal, Self

from sqlalchemy import Engine
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import sessionmaker

from .batch import Pace
from .checks import at_least_one, queue_names, sync_only
from .clock import Clock, as_timedelta, utcnow, uuid7
from .connect import engine_and_maker
from .crew import Crew
from .errors import ShutdownTimeoutError
from .events import Events, LogFunction
from .handlers import Handlers, as_handlers
from .job import JSON
from .markers import Markers
from .models import (
    DEFAULT_QUEUE,
    ArchivedJob,
    ArchivedJobMixin,
    Job,
    JobMixin,
    RunningJob,
    RunningJobMixin,
)
from .perform import FailedFunction, Performer
from .retry import RetryFunction, RetryLike
from .serializers import Serializer
from .signals import on_stop_signals
from .store import Store


class QueueWorker:
    """Runs due jobs in threads, each in the transaction that completes it.

    :param bind: an Engine, or a ``sessionmaker`` bound to one: handlers then get its sessions. The
        worker takes connections of its own from it and never changes it.
    :param handlers: :class:`.Handlers`, or a plain callable of (job_type, payload).
    :param queues: a queue's name, or several, served strictly in that order.
    :param threads: how many jobs run at a time in this worker.
    :param batch_size: the most jobs that share a transaction; 1 is one job per transaction. It
        counts for the fastest jobs only: slower ones are fewer, as ``batch_window`` says.
    :param batch_window: how long jobs may share a transaction.
    :param polling_interval: how often to look for jobs that nothing else announces.
    :param shutdown_timeout: how long ``stop`` waits for running handlers.
    :param job_model: the mapped class of the job table.
    :param archived_job_model: the mapped class of the archive.
    :param running_job_model: the mapped class of the running markers, which tell what runs where
        and make a job that kills its worker use up its attempts. Several job tables may share it
        where their ids are UUIDs. None: no markers. By default RunningJob for the default Job, and
        none for a model of yours.
    :param serializer: must be the one that the jobs were enqueued with.
    :param retry_strategy: for job types that ``handlers`` say nothing about: a strategy, its
        mapping form, or a function of (job, exception). By default a failed job is not retried.
    :param on_failed: called with (job, exception) after a job was archived as a failure. An error
        in it is logged and undoes nothing.
    :param on_polling_error: called with an error that is no job's; a true result stops the worker.
        By default it is logged, and polling goes on after a pause that grows to 5 seconds.
    :param on_shutdown: called without arguments when the worker has stopped.
    :param name: what the worker is called in logs and by the database server.
    :param log: called with (event, data) for everything that happens.
    :param clock: returns the time as an aware datetime.
    :param notify: be woken by commits, through LISTEN on a connection of its own and directly by
        those of the same process; otherwise the worker polls. While it listens, it polls ten times
        less often.
    :raises TypeError: if an argument is of the wrong type, or a handler is ``async``.
    :raises ValueError: if a number or duration is out of range, or no queue is named.

    .. versionadded:: 0.1
    """

    def __init__(
        self,
        bind: Engine | sessionmaker[Any],
        handlers: Handlers | Callable[[str, Any], Any],
        *,
        queues: str | Sequence[str] = DEFAULT_QUEUE,
        threads: int = 1,
        batch_size: int = 500,
        batch_window: timedelta = timedelta(milliseconds=50),
        polling_interval: timedelta = timedelta(seconds=1),
        shutdown_timeout: timedelta = timedelta(seconds=10),
        job_model: type[JobMixin] = Job,
        archived_job_model: type[ArchivedJobMixin] = ArchivedJob,
        running_job_model: type[RunningJobMixin] | Literal["default"] | None = "default",
        serializer: Serializer = JSON,
        retry_strategy: RetryFunction | RetryLike | None = None,
        on_failed: FailedFunction | None = None,
        on_polling_error: Callable[[BaseException], object] | None = None,
        on_shutdown: Callable[[], object] | None = None,
        name: str | None = None,
        log: LogFunction | None = None,
        clock: Clock = utcnow,
        notify: bool = True,
    ) -> None:
        self._engine, make_session = engine_and_maker(bind, job_model)
        self.name = name or f"{socket.gethostname()}-{os.getpid()}-{uuid7().hex[-6:]}"
        self.threads = at_least_one("threads", threads)
        self._shutdown_timeout = as_timedelta("shutdown_timeout", shutdown_timeout).total_seconds()
        self._on_shutdown = on_shutdown
        self._events = Events(log, worker=self.name)
        if running_job_model == "default":
            running_job_model = RunningJob if job_model is Job else None
        markers = Markers(self._engine, running_job_model, self.name) if running_job_model else None
        self._store = Store(
            job_model,
            archived_job_model,
            queue_names(queues),
            running=markers.table if markers else None,
        )
        self._performer = Performer(
            self._store,
            sync_only(as_handlers(handlers)),
            serializer=serializer,
            retry=retry_strategy,
            on_failed=on_failed,
            events=self._events,
            clock=clock,
            stopping=lambda: self.stopping,
            markers=markers,
        )
        self._pace = Pace(
            at_least_one("batch_size", batch_size),
            as_timedelta("batch_window", batch_window, zero=False),
        )
        self._new_crew = partial(
            Crew,
            self._engine,
            make_session=make_session,
            performer=self._performer,
            markers=markers,
            pace=self._pace,
            events=self._events,
            name=self.name,
            polling_interval=as_timedelta(
                "polling_interval", polling_interval, zero=False
            ).total_seconds(),
            on_polling_error=on_polling_error,
            notify=notify,
        )
        self._crew: Crew | None = None
        self._stopping = Event()

    @property
    def stopping(self) -> bool:
        """Whether the worker was asked to stop; a long handler looks here and raises to give up.

        A job whose handler raises after that is no failure: it is rolled back, not counted, and due
        again at once.
        """
        return self._stopping.is_set()

    def run(self) -> None:
        """Work until SIGINT or SIGTERM; a second signal no longer waits for running handlers.

        :raises TablesMissingError: if the tables are not there.
        :raises ShutdownTimeoutError: if handlers outlast ``shutdown_timeout``.
        """
        with on_stop_signals(self.request_stop, again=lambda: self.stopping):
            crew = self._start()
            try:
                crew.stopping.wait()
            finally:
                self.stop()

    def start(self) -> None:
        """Start the worker's threads and return.

        :raises TablesMissingError: if the tables are not there.
        :raises RuntimeError: if the worker is running.
        """
        self._start()

    def _start(self) -> Crew:
        if self._crew is not None:
            msg = f"the worker {self.name} is running already"
            raise RuntimeError(msg)
        crew = self._take_on()
        self._events.emit("worker-starting", threads=self.threads)
        try:
            self._check_tables()
        except OperationalError as error:
            # The database may come up after its workers: they keep trying, and say so.
            self._events.emit("polling-error", error)
        except BaseException:
            self._crew = None
            raise
        crew.start(self.threads)
        return crew

    def _take_on(self) -> Crew:
        # Before anything that takes time, so that a stop asked for meanwhile is heard.
        crew = self._crew = self._new_crew()
        self._stopping = crew.stopping
        return crew

    def stop(self) -> None:
        """Claim no more jobs, wait for the running handlers, and return when they have ended.

        Jobs whose handlers have not ended after ``shutdown_timeout`` are rolled back: they are due
        again at once and their attempt is not counted.

        :raises ShutdownTimeoutError: if that happened.
        """
        crew = self._crew
        if crew is None:
            return
        self._events.emit("worker-stopping")
        late = crew.stop(self._shutdown_timeout)
        self._crew = None
        self._events.emit("worker-stopped")
        self._events.call(self._on_shutdown)
        if late:
            self._events.emit("worker-stop-timed-out", threads=late)
            msg = (
                f"{len(late)} of {self.threads} threads of {self.name} were still running handlers "
                f"after {self._shutdown_timeout:g} s: their jobs are rolled back and due again"
            )
            raise ShutdownTimeoutError(msg)

    def request_stop(self) -> None:
        """Ask the worker to stop and return at once; ``stop`` waits for it."""
        if self._crew is not None:
            self._crew.request_stop()

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

        :raises TablesMissingError: if the tables are not there.
        :raises RuntimeError: if the worker is running.
        """
        if self._crew is not None:
            msg = f"the worker {self.name} is running: it runs what is due by itself"
            raise RuntimeError(msg)
        crew = self._take_on()
        try:
            self._check_tables()
            return crew.drain(self.threads)
        finally:
            self._crew = None

    def _check_tables(self) -> None:
        with self._engine.connect() as connection:
            self._store.check_tables(connection)
