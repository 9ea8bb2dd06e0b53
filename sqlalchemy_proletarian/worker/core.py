"""The life of a worker: start, stop, drain.

:class:`.QueueWorker` and :class:`.AsyncQueueWorker` are thin layers over this. They differ only in
the runtime and in how they call handlers.
"""

from __future__ import annotations

import os
from functools import cached_property
from threading import Event
from typing import TYPE_CHECKING, Final, Unpack

from ..database.connections import cannot_connect
from ..database.forks import discard_inherited
from ..database.poolers import prepared_explained
from ..errors import ReadOnlyDatabaseError, ShutdownTimeoutError
from ..execution.invoke import Invoke
from ..handlers.registry import Handlers
from ..models.preflight import check_tables
from ..models.requirements import TableUse
from ..runtime.base import Flag, Runtime
from ..telemetry.events import Events
from .assemble import Assembly
from .connection_count import require_connections
from .options import WorkerOptions, WorkerSettings, check_options
from .pool import WorkerPool
from .sessions import SessionSource

if TYPE_CHECKING:
    from .health import HealthCheck

_POLL_STOP: Final = 0.1
"""Seconds between two checks whether a worker that is starting was requested to stop."""


class WorkerCore:
    """A worker whose options were checked; each start makes a new pool.

    :param concurrency: how many handlers run at a time.
    """

    def __init__(
        self,
        sessions: SessionSource,
        handlers: Handlers,
        concurrency: int,
        **options: Unpack[WorkerOptions],
    ) -> None:
        self.settings: WorkerSettings = check_options(sessions, handlers, concurrency, **options)
        self.name: str = self.settings.name
        self.events: Events = Events(self.settings.log, worker=self.name)
        self.pool: WorkerPool | None = None
        self.was_started: bool = False
        """Whether it has been started, or drained, at least once."""
        self._assembly = Assembly(self.settings, self.events)
        self._process = os.getpid()
        self._stopping: Flag = Event()

    @property
    def stopping(self) -> bool:
        """Whether the worker was requested to stop."""
        return self._stopping.is_set()

    @cached_property
    def health_check(self) -> HealthCheck:
        """Looks at the worker, if somebody asks how it is."""
        # A worker that nobody asks does not need it in memory.
        from .health import HealthCheck

        return HealthCheck(self)

    def start(self, runtime: Runtime, invoke: Invoke) -> WorkerPool:
        """Check the tables, and start the members."""
        self._require_own_process()
        if self.pool is not None:
            msg = f"the worker {self.name} is running already"
            raise RuntimeError(msg)
        pool = self._new_pool(runtime, invoke)
        self.events.emit("worker-starting", concurrency=self.settings.concurrency)
        try:
            self._check_until_stopped(runtime)
        except BaseException as error:
            if not (isinstance(error, ReadOnlyDatabaseError) or cannot_connect(error)):
                self.pool = None
                raise
            # The database may start, or become the primary, after its workers: they keep trying.
            pool._loop.note_failure(error)
            self.events.emit("polling-error", error)
        else:
            pool._loop.contact.reached = True
        pool.start()
        return pool

    def drain(self, runtime: Runtime, invoke: Invoke) -> int:
        """Run jobs until none is due, and return how many runs that took."""
        self._require_own_process()
        if self.pool is not None:
            msg = f"the worker {self.name} is running: it runs what is due by itself"
            raise RuntimeError(msg)
        pool = self._new_pool(runtime, invoke)
        try:
            self._check_tables()
            return pool.drain()
        finally:
            self.pool = None

    def request_stop(self) -> None:
        """Request that the members end."""
        if self.pool is not None:
            self.pool.request_stop()

    def stop(self, timeout: float | None = None) -> None:
        """Stop the members, and report that the worker has stopped.

        :param timeout: how many seconds to wait for running handlers; by default the worker's own
            ``shutdown_timeout``.
        """
        self._require_own_process()
        pool = self.pool
        if pool is None:
            return
        self.events.emit("worker-stopping")
        late, interrupt = 0, None
        try:
            late = pool.stop(self.settings.shutdown_timeout if timeout is None else timeout)
        except KeyboardInterrupt as error:
            interrupt = error
        if self.pool is pool:  # no other thread has stopped it meanwhile
            self.pool = None
            self.events.emit("worker-stopped")
            self.events.call(self.settings.on_shutdown)
        if interrupt is not None:
            raise interrupt
        if late:
            self.events.emit("worker-stop-timed-out", handlers=late)
            msg = (
                f"{late} of {self.settings.concurrency} handlers of {self.name} were still running "
                f"after {self.settings.shutdown_timeout:g} s: their jobs are rolled back and due "
                f"again"
            )
            raise ShutdownTimeoutError(msg)

    def _require_own_process(self) -> None:
        """Raise ``RuntimeError`` in a fork of the process in which the worker was started."""
        if self.pool is not None and self._process != os.getpid():
            msg = (
                f"the worker {self.name} was started in process {self._process}, and this process "
                f"is a fork of it: threads and connections are not inherited. Start a worker in "
                f"each process, after the fork"
            )
            raise RuntimeError(msg)

    def _new_pool(self, runtime: Runtime, invoke: Invoke) -> WorkerPool:
        # Before anything that takes time, so that a request to stop is not missed.
        self._stopping = runtime.flag()
        self._process = os.getpid()
        self.was_started = True
        discard_inherited(self.settings.engine)
        self.pool = self._assembly.pool(runtime, invoke, self._stopping)
        return self.pool

    def _check_until_stopped(self, runtime: Runtime) -> None:
        """Check the tables, until requested to stop: connecting may take minutes."""
        checked = runtime.flag()
        raised: list[BaseException] = []

        def check() -> None:
            try:
                self._check_tables()
            except BaseException as error:  # raised below, in the caller's thread
                raised.append(error)
            finally:
                checked.set()

        runtime.spawn(check, f"{self.name}-check")
        while not (checked.wait(_POLL_STOP) or self.stopping):
            pass
        if raised:
            raise raised[0]

    def _check_tables(self) -> None:
        engine = self.settings.engine
        with prepared_explained(engine.dialect), engine.connect() as connection:
            self._assembly.cluster.check(connection)
            self._assembly.store.check_tables(connection)
            if self._assembly.recurring is not None:
                check_tables(connection, self._assembly.recurring.uses)
            if self.settings.places is not None:
                privileges = "SELECT", "INSERT", "UPDATE", "DELETE"
                check_tables(connection, [TableUse(self.settings.places, privileges)])
            require_connections(connection, self.settings)
