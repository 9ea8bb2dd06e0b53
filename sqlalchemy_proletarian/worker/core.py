"""What every worker is told, and its life from start to stop.

The two workers are thin layers over this: they differ in how they wait, see :mod:`.waiting`.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import timedelta
from functools import partial
from threading import Event
from typing import Literal, TypedDict

from sqlalchemy import Connection, Table
from sqlalchemy import inspect as sa_inspect

from ..arguments import at_least_one
from ..clock import Clock, as_timedelta, utcnow, uuid7
from ..database.connections import SessionSource, cannot_connect
from ..database.dialects import MAX_IDENTITY, database_of, require_file
from ..database.forks import forget_inherited
from ..database.server_clock import SharedClock
from ..errors import ReadOnlyDatabaseError, ShutdownTimeoutError
from ..execution.lease.runner import LeaseDesk
from ..execution.lease.session import OwnTransactions
from ..execution.perform import FailedFunction, Performer
from ..execution.runner import Desk
from ..execution.transaction.batch_size import Pace
from ..execution.transaction.runner import TransactionDesk
from ..handlers.checks import claim_filter, queue_names, require_served, require_sessions
from ..handlers.registry import Handlers
from ..lifecycle.outcomes import FormatFunction, error_text
from ..liveness.lease_markers import LeaseMarkers
from ..liveness.marker_cleanup import MarkerSweep
from ..liveness.markers import Markers
from ..liveness.orphans import LeasedJobs, Line, Orphans
from ..liveness.poison import MAX_DEATHS
from ..liveness.presence import Presence
from ..models.job_classes import check_models, job_table
from ..models.mixins import (
    DEFAULT_QUEUE,
    ArchivedJob,
    ArchivedJobMixin,
    Job,
    JobMixin,
    RunningJob,
    RunningJobMixin,
)
from ..producer.options import JSON
from ..retry import RetryFunction, RetryLike, as_retries
from ..runtime.doorbell import Flag
from ..runtime.threads import Waiting
from ..serializers.json_serializer import Serializer
from ..store.markers import MarkerTable, open_marker_table
from ..store.open import open_store
from ..telemetry.events import Events, LogFunction
from .pool import Crew
from .unknown_types import UnknownTypes

LEASE_WITHOUT_LOCKS = timedelta(minutes=1)
"""How jobs are held by default where a transaction cannot hold them: on SQLite."""

_GLANCE = 0.1
"""Seconds between two looks at whether a worker that starts is told to stop."""


class WorkerOptions(TypedDict, total=False):
    """The options that every worker takes, all of them optional: see :class:`.QueueWorker`.

    .. versionadded:: 0.1
    """

    queues: str | Sequence[str]
    batch_size: int
    batch_window: timedelta
    lease: timedelta | None
    polling_interval: timedelta
    shutdown_timeout: timedelta
    job_model: type[JobMixin]
    archived_job_model: type[ArchivedJobMixin]
    running_job_model: type[RunningJobMixin] | Literal["default"] | None
    serializer: Serializer
    retry_strategy: RetryFunction | RetryLike | None
    max_deaths: int
    on_failed: FailedFunction | None
    on_polling_error: Callable[[BaseException], object] | None
    on_shutdown: Callable[[], object] | None
    format_error: FormatFunction
    name: str | None
    log: LogFunction | None
    clock: Clock
    notify: bool


class WorkerCore:
    """A worker's parts, checked once; each start makes a new crew of them.

    :param members: how many handlers run at a time.
    """

    def __init__(
        self,
        sessions: SessionSource,
        handlers: Handlers,
        members: int,
        *,
        queues: str | Sequence[str] = DEFAULT_QUEUE,
        batch_size: int = 500,
        batch_window: timedelta = timedelta(milliseconds=50),
        lease: timedelta | None = None,
        polling_interval: timedelta = timedelta(seconds=1),
        shutdown_timeout: timedelta = timedelta(seconds=10),
        job_model: type[JobMixin] = Job,
        archived_job_model: type[ArchivedJobMixin] = ArchivedJob,
        running_job_model: type[RunningJobMixin] | Literal["default"] | None = "default",
        serializer: Serializer = JSON,
        retry_strategy: RetryFunction | RetryLike | None = None,
        max_deaths: int = MAX_DEATHS,
        on_failed: FailedFunction | None = None,
        on_polling_error: Callable[[BaseException], object] | None = None,
        on_shutdown: Callable[[], object] | None = None,
        format_error: FormatFunction = error_text,
        name: str | None = None,
        log: LogFunction | None = None,
        clock: Clock = utcnow,
        notify: bool = True,
    ) -> None:
        self.name = name or f"{socket.gethostname()}-{os.getpid()}-{uuid7().hex[-6:]}"
        self.crew: Crew | None = None
        self._process = os.getpid()
        self._stopping: Flag = Event()
        self._members = members
        self.events = Events(log, worker=self.name)
        self._shutdown_timeout = as_timedelta("shutdown_timeout", shutdown_timeout).total_seconds()
        self._on_shutdown = on_shutdown
        self._engine = engine = sessions.engine
        self._make_session = sessions.make
        self._lease = None if lease is None else as_timedelta("lease", lease, zero=False)
        require_file(engine)
        database = database_of(engine.dialect)
        if self._lease is None and not database.locks:
            self._lease = LEASE_WITHOUT_LOCKS
        if running_job_model == "default":
            running_job_model = RunningJob if job_model is Job else None
        require_served(handlers, job_model)
        require_sessions(handlers, sessions)
        check_models(job_model, archived_job_model, running_job_model)
        self._running: Table | None = None
        self._markers: MarkerTable | None = None
        if running_job_model is not None and database.shows is not None:
            running: Table = sa_inspect(running_job_model).local_table
            self._running, self._markers = running, open_marker_table(database, running)
        self._store = open_store(
            engine.dialect,
            job_model,
            archived_job_model,
            queue_names(queues),
            running=self._running,
            leased=self._lease is not None,
            claim_filter=claim_filter(handlers, job_model),
        )
        self._new_performer = partial(
            Performer,
            self._store,
            handlers,
            serializer=serializer,
            retry=as_retries(retry_strategy),
            max_deaths=at_least_one("max_deaths", max_deaths),
            on_failed=on_failed,
            format_error=format_error,
            events=self.events,
            clock=clock,
        )
        self._pace = Pace(
            at_least_one("batch_size", batch_size),
            as_timedelta("batch_window", batch_window, zero=False),
        )
        self._polling_interval = as_timedelta(
            "polling_interval", polling_interval, zero=False
        ).total_seconds()
        self._on_polling_error = on_polling_error
        self._notify = notify
        self._shared_time = SharedClock(clock, self.events)

    @property
    def stopping(self) -> bool:
        """Whether the worker was asked to stop."""
        return self._stopping.is_set()

    def start(self, waiting: Waiting) -> Crew:
        """Start the worker's members."""
        self._require_own_process()
        if self.crew is not None:
            msg = f"the worker {self.name} is running already"
            raise RuntimeError(msg)
        crew = self._take_on(waiting)
        self.events.emit("worker-starting", concurrency=self._members)
        try:
            self._check_until_stopped(waiting)
        except BaseException as error:
            if not (isinstance(error, ReadOnlyDatabaseError) or cannot_connect(error)):
                self.crew = None
                raise
            # The database may come up, or become the primary, after its workers: they keep trying,
            # and say so.
            self.events.emit("polling-error", error)
        crew.start()
        return crew

    def drain(self, waiting: Waiting) -> int:
        """Run what is due and return how many runs that took."""
        self._require_own_process()
        if self.crew is not None:
            msg = f"the worker {self.name} is running: it runs what is due by itself"
            raise RuntimeError(msg)
        crew = self._take_on(waiting)
        try:
            self._check_tables()
            return crew.drain()
        finally:
            self.crew = None

    def request_stop(self) -> None:
        """Ask the members to end."""
        if self.crew is not None:
            self.crew.request_stop()

    def stop(self, patience: float | None = None) -> None:
        """End the members, and report that the worker has stopped.

        :param patience: seconds to wait for running handlers instead of the worker's own.
        """
        self._require_own_process()
        crew = self.crew
        if crew is None:
            return
        self.events.emit("worker-stopping")
        late, interrupt = 0, None
        try:
            late = crew.stop(self._shutdown_timeout if patience is None else patience)
        except KeyboardInterrupt as error:
            interrupt = error
        if self.crew is crew:  # nobody else has stopped it meanwhile
            self.crew = None
            self.events.emit("worker-stopped")
            self.events.call(self._on_shutdown)
        if interrupt is not None:
            raise interrupt
        if late:
            self.events.emit("worker-stop-timed-out", handlers=late)
            msg = (
                f"{late} of {self._members} handlers of {self.name} were still running after "
                f"{self._shutdown_timeout:g} s: their jobs are rolled back and due again"
            )
            raise ShutdownTimeoutError(msg)

    def _require_own_process(self) -> None:
        """Raise ``RuntimeError`` in a fork of the process in which the worker was started."""
        if self.crew is not None and self._process != os.getpid():
            msg = (
                f"the worker {self.name} was started in process {self._process}, of which this one "
                f"is a fork: threads and connections stay there. Start a worker in each process, "
                f"after the fork"
            )
            raise RuntimeError(msg)

    def _take_on(self, waiting: Waiting) -> Crew:
        # Before anything that takes time, so that a stop asked for meanwhile is heard.
        self._stopping = waiting.flag()
        self._process = os.getpid()
        forget_inherited(self._engine)
        self.crew = self._new_crew(waiting, self._stopping)
        return self.crew

    def _check_until_stopped(self, waiting: Waiting) -> None:
        """Check the tables, unless told to stop first: to connect in vain may take minutes."""
        checked = waiting.flag()
        raised: list[BaseException] = []

        def check() -> None:
            try:
                self._check_tables()
            except BaseException as error:  # raised again below, in the caller's thread
                raised.append(error)
            finally:
                checked.set()

        waiting.spawn(check, f"{self.name}-check")
        while not (checked.wait(_GLANCE) or self.stopping):
            pass
        if raised:
            raise raised[0]

    def _when_idle(
        self, table: MarkerTable | None, performer: Performer
    ) -> Callable[[Connection], object]:
        """Return what is done when nothing is due, now and then."""

        def count(connection: Connection) -> dict[str, int]:
            with self._store.begin(connection):
                return self._store.unknown_types(connection, performer.now())

        works: list[Callable[[Connection], object]] = [UnknownTypes(count, self.events)]
        if table is not None:
            job = job_table(self._store.job_model)
            works.append(MarkerSweep(self._store.database, table, job, performer.now))

        def work(connection: Connection) -> None:
            for each in works:
                each(connection)

        return work

    def _check_tables(self) -> None:
        with self._engine.connect() as connection:
            self._store.check_tables(connection)

    def _new_crew(self, waiting: Waiting, stopping: Flag) -> Crew:
        # Of its own for each start: its markers must not be taken for those of one that has died.
        suffix = f" {uuid7().hex[-8:]}"
        # As the server will show it: it has characters of its own for what is not printable ASCII.
        plain = "".join(c if c.isascii() and c.isprintable() else "?" for c in self.name)
        identity = plain[: MAX_IDENTITY - len(suffix)] + suffix
        performer: Performer = self._new_performer(waiting=waiting, stopping=stopping.is_set)
        lease, table, running = self._lease, self._markers, self._running
        parting = ExitStack()
        markers = presence = None
        if lease is None and table is not None:
            markers = Markers(self._engine, table, identity, waiting)
            parting.callback(markers.close)
        if running is not None and self._store.database.shows == "locks":
            orphans = Orphans(running, self._store.job_model)
            presence = Presence(self._engine, identity, self.events, waiting, orphans)
            parting.callback(presence.stop)

        def new_desk(crew: Crew) -> Desk:
            if lease is None:
                return TransactionDesk(
                    performer,
                    make_session=self._make_session,
                    pace=self._pace,
                    markers=markers,
                    line=Line(identity) if presence else None,
                    found=crew.found,
                )
            return LeaseDesk(
                performer,
                sessions=OwnTransactions(
                    self._make_session,
                    self._engine,
                    self._store.job_model,
                    lines=LeasedJobs(self._store.job_model) if presence else None,
                ),
                lease=lease,
                places=self._members,
                markers=None if table is None else LeaseMarkers(table, identity),
                waiting=waiting,
                ring=crew.doorbell.ring,
                shared_time=self._shared_time,
            )

        return Crew(
            self._engine,
            new_desk=new_desk,
            members=self._members if lease is None else 1,
            store=self._store,
            stopping=stopping,
            events=self.events,
            waiting=waiting,
            name=self.name,
            identity=identity,
            polling_interval=self._polling_interval,
            on_polling_error=self._on_polling_error,
            notify=self._notify,
            now=performer.now,
            shared_time=self._shared_time,
            show=presence.show if presence else lambda: None,
            tidy=self._when_idle(table, performer),
            close=parting.close,
        )
