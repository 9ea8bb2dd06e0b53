"""Notifies workers of committed jobs: one NOTIFY per queue and transaction.

A job is noted with the connection that inserts it, by whatever API it was inserted. The NOTIFY is
sent on that connection, just before its COMMIT. A rollback of the transaction, or of the SAVEPOINT
in which the job was inserted, discards the note. Workers in the same process are woken after the
COMMIT, without the database.

The methods of an engine's dialect that end transactions and begin SAVEPOINTs are replaced when one
of its connections inserts the first job. SQLAlchemy's events would do as well, but they would make
every transaction of the engine slower, also those without jobs: each Connection prepares all the
events of an engine that has a listener for one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache, wraps
from threading import Lock
from time import monotonic
from typing import Any, Final, TypeAlias
from weakref import WeakKeyDictionary, ref

from sqlalchemy import Connection, Dialect, PoolProxiedConnection, event
from sqlalchemy import inspect as sa_inspect
from sqlalchemy.orm import InstanceState, Mapper, Session
from sqlalchemy.orm.interfaces import EXT_CONTINUE

from ..database.dialects import features_of
from ..models.job_classes import bind_arguments, job_table
from ..models.mixins import JobMixin
from ..runtime.doorbell import Doorbell
from ..telemetry.observers import observe_inserts
from .channels import Notify, channel_of, end_channel_of

DEBOUNCE = 0.01
"""Seconds after a commit with a NOTIFY for a queue in which this process sends no other NOTIFY for
it: at commit, NOTIFY takes a lock on the whole database. A worker that becomes idle polls again
after this time, and so does somebody who waits for the end of a job."""

_QUIET: Final = "sqlalchemy_proletarian.quiet"
"""The key in the ``info`` of an object's state: its row wakes no workers."""

_NOTES: Final = "sqlalchemy_proletarian.notes"
"""The key in the ``info`` of a DBAPI connection: the notes of its transaction."""

_Key: TypeAlias = tuple[str, str]
"""A channel and a queue, or a channel and an empty text for the end of jobs."""


class _Process:
    """The dialects whose transactions are watched, and the doorbells of the workers.

    It is the only global state of this module, because announcements are debounced per process.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._announcers: WeakKeyDictionary[Dialect, _Announcer] = WeakKeyDictionary()
        self._doorbells: tuple[ref[Doorbell], ...] = ()
        self._waiters: tuple[ref[Doorbell], ...] = ()

    def announcer_of(self, dialect: Dialect) -> _Announcer:
        """Return the announcer for a dialect, whose transactions are watched from now on."""
        announcer = self._announcers.get(dialect)
        if announcer is None:
            with self._lock:
                announcer = self._announcers.get(dialect)
                if announcer is None:
                    announcer = self._announcers[dialect] = _Announcer(dialect)
                    _watch(dialect)
        return announcer

    def add(self, doorbell: Doorbell) -> None:
        with self._lock:
            self._doorbells = (*_living(self._doorbells), ref(doorbell))

    def add_waiter(self, doorbell: Doorbell) -> None:
        with self._lock:
            self._waiters = (*_living(self._waiters), ref(doorbell))

    def ring(self, *, jobs: bool, ends: bool) -> None:
        for known in (*(self._doorbells if jobs else ()), *(self._waiters if ends else ())):
            if (doorbell := known()) is not None:
                doorbell.ring()


def _living(doorbells: Iterable[ref[Doorbell]]) -> Iterator[ref[Doorbell]]:
    return (known for known in doorbells if known() is not None)


class _Announcer:
    """Sends NOTIFY on the connections of one dialect."""

    def __init__(self, dialect: Dialect) -> None:
        self._notify = Notify(dialect) if features_of(dialect).notifies else None
        self._committed: dict[_Key, float] = {}
        """The times of the last commits that announced a queue."""

    def announce(self, connection: PoolProxiedConnection, queues: set[_Key]) -> list[_Key]:
        """Send one NOTIFY for each queue, and return those queues."""
        if self._notify is None:
            return []
        now = monotonic()
        due = [key for key in queues if now - self._committed.get(key, -DEBOUNCE) >= DEBOUNCE]
        for channel, queue in sorted(due):
            self._notify(connection, channel, queue)
        return due

    def committed(self, noted: set[_Key], announced: Iterable[_Key] = ()) -> None:
        """Record what a commit has announced; wake the workers and waiters of this process.

        :param noted: what was to be announced.
        """
        if announced:
            self._committed.update(dict.fromkeys(announced, monotonic()))
        queues = [queue for _, queue in noted]
        _process.ring(jobs=any(queues), ends=not all(queues))


class _Notes:
    """The queues of the jobs that a connection has inserted in its transaction.

    The log contains them in order, together with the SAVEPOINTs that were begun between them.
    """

    __slots__ = ("announcer", "log")

    def __init__(self, announcer: _Announcer) -> None:
        self.announcer = announcer
        self.log: list[_Key | str] = []

    def queues(self) -> set[_Key]:
        return {key for key in self.log if isinstance(key, tuple)}

    def undo(self, savepoint: str) -> None:
        # A SAVEPOINT that is not in the log was begun before the first job: clear the whole log.
        del self.log[self.log.index(savepoint) if savepoint in self.log else 0 :]


_process = _Process()


def _watch(dialect: Dialect) -> None:
    """Replace the methods of a dialect that end transactions and begin SAVEPOINTs.

    A transaction without jobs has no notes, and its methods do what they did before.
    """

    def replace(name: str, method: Callable[..., Any]) -> None:
        original = getattr(dialect, name)

        @wraps(original)
        def replacement(connection: Any, *args: Any, **kwargs: Any) -> Any:
            return method(original, connection, *args, **kwargs)

        setattr(dialect, name, replacement)

    for name, method in _METHODS.items():
        replace(name, method)


def _do_commit(original: Callable[..., Any], connection: PoolProxiedConnection) -> None:
    notes: _Notes | None = connection.info.pop(_NOTES, None)
    queues = notes and notes.queues()
    if not notes or not queues:
        original(connection)
        return
    announced = notes.announcer.announce(connection, queues)
    original(connection)
    notes.announcer.committed(queues, announced)


def _do_rollback(original: Callable[..., Any], connection: PoolProxiedConnection) -> None:
    connection.info.pop(_NOTES, None)
    original(connection)


def _do_commit_twophase(
    original: Callable[..., Any], connection: Connection, *args: Any, **kwargs: Any
) -> None:
    # NOTIFY is not allowed in a prepared transaction.
    notes: _Notes | None = connection.info.pop(_NOTES, None)
    original(connection, *args, **kwargs)
    if notes and (queues := notes.queues()):
        notes.announcer.committed(queues)


def _do_rollback_twophase(
    original: Callable[..., Any], connection: Connection, *args: Any, **kwargs: Any
) -> None:
    connection.info.pop(_NOTES, None)
    original(connection, *args, **kwargs)


def _do_savepoint(original: Callable[..., Any], connection: Connection, name: str) -> None:
    original(connection, name)
    notes: _Notes | None = connection.info.get(_NOTES)
    if notes and notes.log:
        notes.log.append(name)


def _do_rollback_to_savepoint(
    original: Callable[..., Any], connection: Connection, name: str
) -> None:
    if notes := connection.info.get(_NOTES):
        notes.undo(name)
    original(connection, name)


_METHODS: Final = {
    function.__name__.removeprefix("_"): function
    for function in (
        _do_commit,
        _do_rollback,
        _do_commit_twophase,
        _do_rollback_twophase,
        _do_savepoint,
        _do_rollback_to_savepoint,
    )
}


def ring_on_commit(doorbell: Doorbell) -> None:
    """Ring ``doorbell`` whenever this process commits jobs; keep only a weak reference to it."""
    _process.add(doorbell)


def ring_at_ends(doorbell: Doorbell) -> None:
    """Ring ``doorbell`` whenever this process commits the end of a job whose result is kept."""
    _process.add_waiter(doorbell)


def has_jobs(connection: Connection) -> bool:
    """Return whether jobs were inserted in the connection's transaction, which wakes workers."""
    notes: _Notes | None = connection.info.get(_NOTES)
    return notes is not None and bool(notes.log)


def announce_on(connection: Connection, job_model: type[Any], queue: str) -> None:
    """Wake the workers of a queue when the connection, which has inserted a job, commits."""
    _note(connection, (_channel(job_model), queue))  # type: ignore[arg-type]  # a class is hashable


def announce_ends_on(connection: Connection, job_model: type[Any]) -> None:
    """Wake those who wait for the end of jobs when the connection, which has ended one, commits."""
    _note(connection, (end_channel_of(str(job_table(job_model))), ""))


def _note(connection: Connection, key: _Key) -> None:
    info = connection.info
    notes = info.get(_NOTES)
    if notes is None:
        notes = info[_NOTES] = _Notes(_process.announcer_of(connection.dialect))
    log = notes.log
    if not log or log[-1] != key:
        log.append(key)


def announce(session: Session, job_model: type[Any], queue: str) -> None:
    """Do the same as :func:`announce_on` for a session, which has inserted a job."""
    connection = session.connection(bind_arguments=bind_arguments(job_model))
    announce_on(connection, job_model, queue)


# With ``retval``, SQLAlchemy calls the function itself and not a wrapper.
@event.listens_for(JobMixin, "after_insert", propagate=True, raw=True, retval=True)
def _announce_insert(
    _mapper: Mapper[Any], connection: Connection, state: InstanceState[JobMixin]
) -> Any:
    """Do the same as :func:`announce_on` for a job that was added to a session.

    After the INSERT, its queue is final: "before_insert" listeners may set it.
    """
    job: Any = state.obj()
    observe_inserts(lambda: [(job.job_type, job.queue)])
    if _QUIET not in state.info:
        announce_on(connection, state.class_, job.queue)
    return EXT_CONTINUE


def suppress_announcement(job: Any) -> None:
    """Insert the job's row without waking any workers."""
    sa_inspect(job).info[_QUIET] = True


@lru_cache
def _channel(job_model: type[Any]) -> str:
    return channel_of(str(job_table(job_model)))
