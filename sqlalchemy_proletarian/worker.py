"""The worker with threads: run → poll → claim → perform → settle, and how it waits in between.

::

    worker = QueueWorker(engine, handlers, threads=4)
    worker.run()  # until SIGINT or SIGTERM
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from threading import Event, Lock, Thread, current_thread, main_thread
from time import monotonic
from types import FrameType
from typing import Any, Self

from sqlalchemy import Connection, Engine
from sqlalchemy import inspect as sa_inspect
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.orm import Session, sessionmaker

from .announce import DEBOUNCE, channel_of, ring_on_commit
from .batch import Pace
from .clock import Clock, as_timedelta, utcnow, uuid7
from .connect import engine_and_maker, own_connection, sever
from .errors import HandlerError, ShutdownTimeoutError
from .events import Events, LogFunction
from .handlers import Handlers, as_handlers
from .job import JSON, require_name
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
from .perform import Batch, FailedFunction, JobUnit, Performer
from .retry import RetryFunction, RetryLike
from .serializers import Serializer
from .store import Store, require_table
from .wakeup import Doorbell, Listener

FIRST_PAUSE = 0.1
LONGEST_PAUSE = 5.0
"""Seconds between attempts to poll again after an error, doubled each time."""

LISTENING_FACTOR = 10
"""How many polling intervals an idle worker waits while commits are announced to it."""


class QueueWorker:
    """Runs due jobs in threads, each in the transaction that completes it.

    :param bind: an Engine, or a ``sessionmaker`` bound to one: handlers then get its sessions. The
        worker takes connections of its own from it and never changes it.
    :param handlers: :class:`.Handlers`, or a plain callable of (job_type, payload).
    :param queues: a queue's name, or several, served strictly in that order.
    :param threads: how many jobs run at a time in this worker.
    :param batch_size: the most jobs that share a transaction; 1 is one job per transaction.
    :param batch_window: how long jobs may share a transaction.
    :param polling_interval: how often to look for jobs that nothing else announces.
    :param shutdown_timeout: how long ``stop`` waits for running handlers.
    :param job_model: the mapped class of the job table.
    :param archived_job_model: the mapped class of the archive.
    :param running_job_model: the mapped class of the running markers, which tell what runs where
        and make a job that kills its worker use up its attempts. Several job tables may share it
        where their ids are UUIDs. None: no markers.
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
        batch_size: int = 100,
        batch_window: timedelta = timedelta(milliseconds=50),
        polling_interval: timedelta = timedelta(seconds=1),
        shutdown_timeout: timedelta = timedelta(seconds=10),
        job_model: type[JobMixin] = Job,
        archived_job_model: type[ArchivedJobMixin] = ArchivedJob,
        running_job_model: type[RunningJobMixin] | None = RunningJob,
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
        self._engine, self._make_session = engine_and_maker(bind, job_model)
        self.name = name or f"{socket.gethostname()}-{os.getpid()}-{uuid7().hex[-6:]}"
        self.threads = _at_least_one("threads", threads)
        self._pace = Pace(
            _at_least_one("batch_size", batch_size),
            as_timedelta("batch_window", batch_window, zero=False),
        )
        self._polling_interval = as_timedelta(
            "polling_interval", polling_interval, zero=False
        ).total_seconds()
        self._shutdown_timeout = as_timedelta("shutdown_timeout", shutdown_timeout).total_seconds()
        self._on_polling_error = on_polling_error
        self._on_shutdown = on_shutdown
        self._events = Events(log, worker=self.name)
        self._stopping = Event()
        self._doorbell = Doorbell()
        self._next_thread = Doorbell()
        self._watching = Lock()
        self._just_worked = True
        self._channel = channel_of(str(sa_inspect(job_model).local_table)) if notify else None
        self._listener: Listener | None = None
        self._threads: list[Thread] = []
        self._connections: dict[Thread, Connection] = {}
        self._markers = (
            Markers(self._engine, running_job_model, self.name) if running_job_model else None
        )
        self._performer = Performer(
            Store(
                job_model,
                archived_job_model,
                _queue_names(queues),
                self._markers.table if self._markers else None,
            ),
            _sync_only(as_handlers(handlers)),
            serializer=serializer,
            retry=retry_strategy,
            on_failed=on_failed,
            events=self._events,
            clock=clock,
            stopping=self._stopping.is_set,
            markers=self._markers,
        )

    @property
    def stopping(self) -> bool:
        """Whether the worker was asked to stop; a long handler looks here and raises to give up.

        A job whose handler raises after that is no failure: it is rolled back, not counted, and due
        again at once.
        """
        return self._stopping.is_set()

    # Starting and stopping.

    def run(self) -> None:
        """Work until SIGINT or SIGTERM; a second signal no longer waits for running handlers.

        :raises TablesMissingError: if the tables are not there.
        :raises ShutdownTimeoutError: if handlers outlast ``shutdown_timeout``.
        """
        with self._signals():
            self.start()
            try:
                self._stopping.wait()
            finally:
                self.stop()

    def start(self) -> None:
        """Start the worker's threads and return.

        :raises TablesMissingError: if the tables are not there.
        :raises RuntimeError: if the worker is running.
        """
        if self._threads:
            msg = f"the worker {self.name} is running already"
            raise RuntimeError(msg)
        self._stopping.clear()
        self._events.emit("worker-starting", threads=self.threads)
        try:
            with self._engine.connect() as connection:
                self._check_tables(connection)
        except OperationalError as error:
            # The database may come up after its workers: they keep trying, and say so.
            self._events.emit("polling-error", error)
        self._threads = [
            Thread(target=self._work, name=f"{self.name}-{n}", daemon=True)
            for n in range(self.threads)
        ]
        self._start_listening()
        for thread in self._threads:
            thread.start()

    def _check_tables(self, connection: Connection) -> None:
        self._performer.store.check_tables(connection)
        if self._markers is not None:
            require_table(connection, self._markers.table)

    def _start_listening(self) -> None:
        if self._channel is None:
            return
        ring_on_commit(self._doorbell)
        if Listener.supports(self._engine):
            self._listener = Listener(
                self._engine,
                channel=self._channel,
                queues=self._performer.store.queues,
                name=self.name,
                events=self._events,
                ring=self._doorbell.ring,
            )
            self._listener.start()

    def stop(self) -> None:
        """Claim no more jobs, wait for the running handlers, and return when they have ended.

        Jobs whose handlers have not ended after ``shutdown_timeout`` are rolled back: they are due
        again at once and their attempt is not counted.

        :raises ShutdownTimeoutError: if that happened.
        """
        threads, self._threads = self._threads, []
        if not threads:
            return
        self._events.emit("worker-stopping")
        self.request_stop()
        if self._listener is not None:
            self._listener.stop()
            self._listener = None
        deadline = monotonic() + self._shutdown_timeout
        for thread in threads:
            thread.join(max(0.0, deadline - monotonic()))
        late = [thread for thread in threads if thread.is_alive()]
        for thread in late:
            if connection := self._connections.get(thread):
                sever(connection)
        if self._markers is not None:
            self._markers.close()
        self._events.emit("worker-stopped")
        self._call(self._on_shutdown)
        if late:
            self._events.emit("worker-stop-timed-out", threads=[thread.name for thread in late])
            msg = (
                f"{len(late)} of {len(threads)} threads of {self.name} were still running handlers "
                f"after {self._shutdown_timeout:g} s: their jobs are rolled back and due again"
            )
            raise ShutdownTimeoutError(msg)

    def request_stop(self) -> None:
        """Ask the worker to stop and return at once; ``stop`` waits for it."""
        self._stopping.set()
        self._doorbell.ring(everybody=True)
        self._next_thread.ring(everybody=True)

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
        """
        self._stopping.clear()
        with self._engine.connect() as connection:
            self._check_tables(connection)
        try:
            return self._drain_threads()
        finally:
            if self._markers is not None:
                self._markers.close()

    def _drain_threads(self) -> int:
        if self.threads == 1:
            return self._drain()
        runs: list[int] = []
        errors: list[BaseException] = []

        def drain_one() -> None:
            try:
                runs.append(self._drain())
            except BaseException as error:  # raised again below, in the caller's thread
                errors.append(error)

        threads = [Thread(target=drain_one, daemon=True) for _ in range(self.threads)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]
        return sum(runs)

    def _drain(self) -> int:
        runs = 0
        with self._connection() as connection:
            while not self.stopping:
                batch = self._poll(connection)
                runs += len(batch.results)
                if not batch.claimed:
                    break
        return runs

    # What a thread does.

    def _work(self) -> None:
        pause = FIRST_PAUSE
        while not self.stopping:
            try:
                with self._connection() as connection:
                    while not self.stopping:
                        heard = self._doorbell.rings(), self._next_thread.rings()
                        batch = self._poll(connection)
                        pause = FIRST_PAUSE
                        if not batch.claimed:
                            self._idle(connection, batch, *heard)
            except BaseException as error:
                self._survive(error)
                self._stopping.wait(pause)
                pause = min(2 * pause, LONGEST_PAUSE)

    def _poll(self, connection: Connection) -> Batch:
        """Claim what is due, run and settle it, in one transaction."""
        batch = Batch()
        try:
            with Session(connection) as session:
                unit = JobUnit(session, self._make_session)
                self._performer.run_due(unit, self._pace, batch, found=self._found)
                session.commit()
        except BaseException as error:
            self._pace.run_alone(batch.claimed)
            self._performer.withdraw(batch)
            blamed = self._blame(connection, error, batch)
            if not (blamed and isinstance(error, Exception)):
                raise
        self._performer.report(batch)
        return batch

    def _blame(self, connection: Connection, error: BaseException, batch: Batch) -> bool:
        """Settle the job that undid its transaction as failed; tell whether one was to blame."""
        lost = connection.invalidated or (
            isinstance(error, DBAPIError) and error.connection_invalidated
        )
        if batch.suspect is None or lost or self.stopping or isinstance(error, KeyboardInterrupt):
            return False
        with Session(connection) as session:
            self._performer.blame(JobUnit(session, self._make_session), error, batch)
            session.commit()
        return True

    def _found(self, more: bool) -> None:
        """Wake the next thread: to help, or to watch in place of this one."""
        self._just_worked = True
        if more or not self._watching.locked():
            self._next_thread.ring()

    def _idle(self, connection: Connection, batch: Batch, heard: int, called: int) -> None:
        """Wait for work: one thread watches for it, the others until they are called."""
        if not self._watching.acquire(blocking=False):
            self._next_thread.wait(called)
            return
        try:
            self._events.emit("polling-for-jobs")
            wait = self._patience(connection, batch)
            if self._just_worked:
                # Commits within a debounce of the one that woke this worker announced nothing.
                self._just_worked, wait = False, min(wait, DEBOUNCE)
            self._doorbell.wait(heard, wait)
        finally:
            self._watching.release()

    def _patience(self, connection: Connection, batch: Batch) -> float:
        """Return how many seconds from now there may be work that nobody announces."""
        assert batch.claimed_at is not None  # noqa: S101 - a poll has just found nothing
        with Session(connection) as session:
            # As of the claim: what came due since was not looked for.
            due = self._performer.store.next_due(session, batch.claimed_at)
        wait = self._polling_interval
        if due.overdue:
            # Another worker holds them; if it dies, nobody says so.
            wait /= 2
        elif self._listener is not None and self._listener.active:
            wait *= LISTENING_FACTOR
        if due.at is not None:
            wait = min(wait, (due.at - self._performer.now()).total_seconds())
        return max(wait, 0.0)

    def _survive(self, error: BaseException) -> None:
        """Report an error that is no job's; go on unless the user's callable says to stop."""
        self._events.emit("polling-error", error)
        if self._on_polling_error is not None and self._call(self._on_polling_error, error):
            self.request_stop()
        self._next_thread.ring()  # this thread may have been the one that watched

    # Helpers.

    @contextmanager
    def _connection(self) -> Iterator[Connection]:
        connection = own_connection(self._engine, self.name)
        self._connections[current_thread()] = connection
        try:
            yield connection
        finally:
            del self._connections[current_thread()]
            with suppress(DBAPIError):
                connection.close()

    def _call(self, function: Callable[..., object] | None, *args: object) -> object:
        if function is None:
            return None
        try:
            return function(*args)
        except Exception as error:
            self._events.emit("callback-error", error)
            return None

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Turn SIGINT and SIGTERM into a request to stop; only the main thread hears them."""
        if current_thread() is not main_thread():
            yield
            return

        def on_signal(_number: int, _frame: FrameType | None) -> None:
            if self.stopping:
                raise KeyboardInterrupt
            self.request_stop()

        before = {
            number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def process_next_job(
    session: Session,
    handlers: Handlers | Callable[[str, Any], Any],
    *,
    queues: str | Sequence[str] = DEFAULT_QUEUE,
    job_model: type[JobMixin] = Job,
    archived_job_model: type[ArchivedJobMixin] = ArchivedJob,
    serializer: Serializer = JSON,
    retry_strategy: RetryFunction | RetryLike | None = None,
    on_failed: FailedFunction | None = None,
    log: LogFunction | None = None,
    clock: Clock = utcnow,
) -> bool | None:
    """Run the next due job in the session's transaction and commit it; for tests and the REPL.

    Works in a session that is joined into an outer transaction, and sees what is pending in it.

    :param session: it is committed, whatever else it holds included.
    :return: True if a job ran, successfully or not; False if its handler was interrupted; None if
        nothing was due.
    :raises TablesMissingError: if the tables are not there.

    .. versionadded:: 0.1
    """
    performer = Performer(
        Store(job_model, archived_job_model, _queue_names(queues)),
        _sync_only(as_handlers(handlers)),
        serializer=serializer,
        retry=retry_strategy,
        on_failed=on_failed,
        events=Events(log),
        clock=clock,
        stopping=lambda: False,
    )
    batch = Batch()
    session.flush()
    performer.run_due(JobUnit(session, Session), Pace(1, timedelta(seconds=1)), batch)
    session.commit()
    performer.report(batch)
    return True if batch.results else None


def _sync_only(handlers: Handlers) -> Handlers:
    for handler in handlers:
        if handler.signature.is_async:
            msg = (
                f"the handler of {handler.job_type!r} is async: run it with "
                f"sqlalchemy_proletarian.asyncio.AsyncQueueWorker"
            )
            raise HandlerError(msg)
    return handlers


def _queue_names(queues: str | Sequence[str]) -> tuple[str, ...]:
    names = (queues,) if isinstance(queues, str) else tuple(queues)
    if not names:
        msg = "queues must name at least one queue"
        raise ValueError(msg)
    for name in names:
        require_name("queues", name)
    return names


def _at_least_one(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        msg = f"{name} must be an int, not {value!r}"
        raise TypeError(msg)
    if value < 1:
        msg = f"{name} must be at least 1, not {value}"
        raise ValueError(msg)
    return value
