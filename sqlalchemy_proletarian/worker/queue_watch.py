"""Measuring a worker's queues while somebody asks: for its health, and for metrics.

It has a connection of its own, which is open only while somebody asks, and runs where handlers that
block the event loop cannot block it. Who asks gets what was measured last, and does not wait for
the database, or not for long.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from threading import Event, Lock
from time import monotonic
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.orm import Session

from ..database.connections import close_own_connection, own_connection, sever
from ..models.job_classes import job_table
from ..runtime.base import GRACE_PERIOD, Runtime
from ..runtime.doorbell import Doorbell
from ..store import statistics
from ..store.base import Store
from ..store.markers import open_marker_table
from .options import WorkerSettings

if TYPE_CHECKING:
    from ..manage.stats import JobCounts

T = TypeVar("T")

INTERVAL: Final = 10.0
"""Seconds between two measurements of the oldest due job, at least."""

ASKED: Final = 60.0
"""Seconds for which it goes on after somebody has asked."""

FRESH: Final = 30.0
"""Seconds for which a measurement of the oldest due job is used."""

CACHED: Final = 5.0
"""Seconds for which counts are used."""

MAX_QUEUES: Final = 1000
"""How many queues are counted."""

_END: Final = 0.2
"""Seconds that a measurement may take to end by itself when the worker stops."""

_QUEUES: Final = 40
"""How many queues one statement looks at; each has ten priorities, and SQLite allows 500 parts."""


class _Measurement(Generic[T]):
    """The last result of a measurement, which other threads read."""

    def __init__(self) -> None:
        self.value: T | None = None
        self.error: Exception | None = None
        self.done: Event = Event()
        """Set when there is a result of the last request; then another one is needed."""
        self.requested: bool = False
        self.at: float | None = None

    def is_older(self, seconds: float) -> bool:
        """Return whether the last measurement is missing or older than that."""
        return self.at is None or monotonic() - self.at > seconds

    def keep(self, value: T | None, error: Exception | None) -> None:
        """Keep a result, and let those go on who wait for it."""
        self.value, self.error, self.at = value, error, monotonic()
        self.requested = False
        self.done.set()


class _Line:
    """A connection that is opened when it is needed, and again after an error."""

    def __init__(self, engine: Engine, name: str) -> None:
        self._engine = engine
        self._name = name
        self._connection: Connection | None = None

    def connection(self) -> Connection:
        if self._connection is None:
            self._connection = own_connection(
                self._engine, self._name, isolation_level="AUTOCOMMIT"
            )
        return self._connection

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(Exception):
                close_own_connection(connection)


class QueueWatch:
    """Measures the queues of one start of a worker.

    :param name: the name of its connection on the server.
    """

    def __init__(self, settings: WorkerSettings, store: Store, runtime: Runtime, name: str) -> None:
        self._settings = settings
        self._store = store
        self._runtime = runtime
        self._name = name
        self._job = job_table(settings.job_model)
        self._lock = Lock()
        self._bell: Doorbell | None = None
        """Wakes the thread or task that measures; None if there is none."""
        self._asked_at = 0.0
        self._oldest: _Measurement[timedelta | None] = _Measurement()
        self._counts: _Measurement[Sequence[JobCounts]] = _Measurement()
        self._is_stopped = False
        self._runs = 0
        """How many threads or tasks have not ended. One may begin while another one ends."""
        self._when_ended: Callable[[], object] = lambda: None
        self._connection: Connection | None = None
        """The connection of what measures, for :meth:`stop` only."""

    # For those who ask.

    def oldest_due(self) -> timedelta | None:
        """Return for how long the oldest due job was due; None if that is not known yet."""
        self._asked_at = monotonic()
        self._wake()
        return None if self._oldest.is_older(FRESH) else self._oldest.value

    def counts(self, patience: float) -> Sequence[JobCounts]:
        """Return the numbers of each queue and type, counted in the last seconds or now.

        :param patience: how many seconds to wait for the database at the most.
        :raises TimeoutError: if that was not enough.
        :raises Exception: what counting has raised.
        """
        if self._counts.is_older(CACHED):
            done = self._counts.done
            if not self._counts.requested:
                done = self._counts.done = Event()
                self._counts.requested = True
            self._wake()
            if self._is_stopped:
                return ()
            if not done.wait(patience):
                msg = f"the jobs were not counted within {patience:g} s"
                raise TimeoutError(msg)
        if self._counts.error is not None:
            raise self._counts.error
        return self._counts.value or ()

    def _wake(self) -> None:
        with self._lock:
            if self._is_stopped:
                return
            if self._bell is not None:
                if self._counts.requested:
                    self._bell.ring()
                return
            self._bell = Doorbell()  # until the one of its runtime is there
            self._runs += 1
        try:
            self._runtime.spawn_isolated(self._run, self._name, self._note_end)
        except RuntimeError:  # the system cannot start another thread
            self._bell = None
            self._note_end()

    def _note_end(self) -> None:
        with self._lock:
            self._runs -= 1
            is_last = not self._runs
        if is_last:
            self._when_ended()

    def stop(self) -> None:
        """End, at the latest after the grace period."""
        ended = self._runtime.flag()
        with self._lock:
            self._is_stopped = True
            bell, connection = self._bell, self._connection
            self._when_ended = ended.set
            if not self._runs:
                return
        if bell is not None:
            bell.ring(everybody=True)
        if not ended.wait(_END) and connection is not None:
            sever(connection)
            ended.wait(GRACE_PERIOD)

    # What measures.

    def _run(self, runtime: Runtime) -> None:
        bell = Doorbell(runtime.flag)
        line = _Line(self._settings.engine, self._name)
        with self._lock:
            self._bell = bell
        is_asked = True
        try:
            while is_asked:
                rings = bell.rings()
                self._measure(line)
                with self._lock:
                    is_asked = self._is_asked() or self._counts.requested
                    is_asked = is_asked and not self._is_stopped
                    if not is_asked:
                        self._bell = None
                if is_asked:
                    bell.wait(rings, INTERVAL)
        finally:
            line.close()

    def _is_asked(self) -> bool:
        return monotonic() - self._asked_at < ASKED

    def _measure(self, line: _Line) -> None:
        try:
            if self._counts.requested:
                self._counts.keep(self._count(self._connected(line)), None)
            if self._is_asked() and self._oldest.is_older(0.9 * INTERVAL):
                self._oldest.keep(self._find_oldest(self._connected(line)), None)
        except Exception as error:
            line.close()
            if self._counts.requested:
                self._counts.keep(None, error)
            self._oldest.keep(None, error)

    def _connected(self, line: _Line) -> Connection:
        connection = self._connection = line.connection()
        return connection

    def _find_oldest(self, connection: Connection) -> timedelta | None:
        settings, queues = self._settings, self._store.open_queues
        now = settings.now()
        ages: list[timedelta] = []
        with connection.begin():
            workers: Sequence[str] = ()
            if settings.running is not None:
                markers = open_marker_table(settings.database, settings.running)
                workers = connection.scalars(markers.alive_workers()).all()
            values = {} if settings.running is None else {"workers": workers}
            for n in range(0, len(queues), _QUEUES):
                some = queues[n : n + _QUEUES]
                statement = statistics.oldest_due(self._job, settings.running, some, now)
                first = connection.scalar(statement, values)
                if first is not None:
                    ages.append(max(now - first, timedelta(0)))
        return max(ages, default=None)

    def _count(self, connection: Connection) -> Sequence[JobCounts]:
        from ..manage.stats import queued_jobs

        settings = self._settings
        with Session(connection) as session:
            return queued_jobs(
                session,
                self._job,
                settings.running,
                settings.database,
                settings.now(),
                most_queues=MAX_QUEUES,
            )
