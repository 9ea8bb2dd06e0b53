"""Notifies workers of committed jobs: one NOTIFY per queue and transaction.

A job is recorded on the connection that inserts it, by whatever API it was inserted. The NOTIFY is
sent on that connection, just before its COMMIT. A rollback of the transaction, or of the SAVEPOINT
in which the job was inserted, discards the record. Workers in the same process are woken after the
commit, without the database. Event listeners are registered only on engines and sessions that
insert jobs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from threading import Lock
from time import monotonic
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary, WeakSet, ref

from sqlalchemy import Connection, Engine, event
from sqlalchemy import inspect as sa_inspect
from sqlalchemy.orm import InstanceState, Mapper, Session

from ..database.dialects import features_of
from ..models.job_classes import bind_arguments, job_table
from ..models.mixins import JobMixin
from ..runtime.doorbell import Doorbell
from .channels import NOTIFY, channel_of

DEBOUNCE = 0.01
"""Seconds after a commit with a NOTIFY for a queue in which this process sends no other NOTIFY for
it: at commit, NOTIFY takes a lock on the whole database. A worker that becomes idle polls again
after this time."""

_QUIET = "sqlalchemy_proletarian.quiet"


_Key: TypeAlias = tuple[str, str]
"""A channel and a queue."""


class _Process:
    """The last announcements of this process, and the doorbells of its workers.

    It is the only global state of this module, because announcements are debounced per process.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._committed: WeakKeyDictionary[Engine, dict[_Key, float]] = WeakKeyDictionary()
        self._doorbells: WeakSet[Doorbell] = WeakSet()
        self._engines: WeakSet[Engine] = WeakSet()
        self.inserting: WeakKeyDictionary[Connection, _Inserted] = WeakKeyDictionary()
        self.sessions: WeakKeyDictionary[Session, WeakSet[_Inserted]] = WeakKeyDictionary()

    def listen_to(self, engine: Engine) -> None:
        """Register listeners for the transactions of an engine's connections."""
        with self._lock:
            known = engine in self._engines
            self._engines.add(engine)
        if not known and not event.contains(engine, "commit", _commit):
            for name, listener in _LISTENERS.items():
                event.listen(engine, name, listener)

    def add(self, doorbell: Doorbell) -> None:
        with self._lock:
            self._doorbells.add(doorbell)

    def ring(self) -> None:
        with self._lock:
            doorbells = list(self._doorbells)
        for doorbell in doorbells:
            doorbell.ring()

    def was_announced(self, engine: Engine, key: _Key) -> bool:
        """Return whether a commit announced a queue in the last :data:`DEBOUNCE` seconds."""
        with self._lock:
            at = self._committed.get(engine, {}).get(key)
        return at is not None and monotonic() - at < DEBOUNCE

    def committed(self, engine: Engine, keys: Iterable[_Key]) -> None:
        """Record the queues that a successful commit has announced."""
        with self._lock:
            self._committed.setdefault(engine, {}).update(dict.fromkeys(keys, monotonic()))


class _Inserted:
    """The queues of the jobs that a connection has inserted in its transaction.

    The log contains them in order, together with the SAVEPOINTs that were begun between them.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection = ref(connection)
        self.log: list[_Key | str] = []
        self.announced: set[_Key] = set()
        """Queues whose NOTIFY was sent in the transaction that is being committed."""
        self.woken = False
        """Whether to wake the workers in this process after the COMMIT."""

    def take(self) -> set[_Key]:
        """Return the queues and clear the log, at the end of the transaction."""
        queues = {key for key in self.log if isinstance(key, tuple)}
        self.log.clear()
        self.woken = self.woken or bool(queues)
        return queues


_process = _Process()


# The event listeners of an engine. The first argument of each is the connection.


def _savepoint(connection: Connection, name: str) -> None:
    inserted = _process.inserting.get(connection)
    if inserted is not None and inserted.log:
        inserted.log.append(name)


def _rollback_savepoint(connection: Connection, name: str, _context: None) -> None:
    if inserted := _process.inserting.get(connection):
        # A SAVEPOINT that is not in the log was begun before the first job: clear the whole log.
        log = inserted.log
        del log[log.index(name) if name in log else 0 :]


def _rollback(connection: Connection, *_: Any) -> None:
    if inserted := _process.inserting.get(connection):
        inserted.log.clear()


def _commit(connection: Connection) -> None:
    inserted = _process.inserting.get(connection)
    if inserted is None or not inserted.log:
        return
    queues = inserted.take()
    if not features_of(connection.dialect).notifies:
        return
    for channel, queue in sorted(queues):
        if not _process.was_announced(connection.engine, (channel, queue)):
            connection.execute(NOTIFY, {"channel": channel, "payload": queue})
            inserted.announced.add((channel, queue))


def _commit_prepared(connection: Connection, *_: Any) -> None:
    # NOTIFY is not allowed in a prepared transaction.
    if inserted := _process.inserting.get(connection):
        inserted.take()


_LISTENERS: Mapping[str, Callable[..., object]] = {
    "savepoint": _savepoint,
    "rollback_savepoint": _rollback_savepoint,
    "rollback": _rollback,
    "rollback_twophase": _rollback,
    "commit": _commit,
    "commit_twophase": _commit_prepared,
}


def ring_on_commit(doorbell: Doorbell) -> None:
    """Ring ``doorbell`` whenever this process commits jobs; keep only a weak reference to it."""
    _process.add(doorbell)


def announce(session: Session, job_model: type[Any], queue: str) -> None:
    """Wake the workers of a queue when the session, which has inserted a job, commits."""
    connection = session.connection(bind_arguments=bind_arguments(job_model))
    _note(connection, session, job_model, queue)


@event.listens_for(JobMixin, "after_insert", propagate=True, raw=True)
def _announce_insert(
    _mapper: Mapper[Any], connection: Connection, state: InstanceState[JobMixin]
) -> None:
    """Do the same as :func:`announce` for a job that was added to a session.

    After the INSERT, its queue is final: "before_insert" listeners may set it.
    """
    if _QUIET not in state.info:
        job: Any = state.obj()
        _note(connection, state.session, state.class_, job.queue)


def suppress_announcement(job: Any) -> None:
    """Insert the job's row without waking any workers."""
    sa_inspect(job).info[_QUIET] = True


def _note(
    connection: Connection, session: Session | None, job_model: type[Any], queue: str
) -> None:
    inserted = _process.inserting.get(connection)
    if inserted is None:
        _process.listen_to(connection.engine)
        inserted = _process.inserting[connection] = _Inserted(connection)
    key = (_channel(job_model), queue)  # type: ignore[arg-type]  # a class is hashable
    if not inserted.log or inserted.log[-1] != key:
        inserted.log.append(key)
    if session is None:
        return
    mine = _process.sessions.get(session)
    if mine is None:
        mine = _process.sessions[session] = WeakSet()
        event.listen(session, "after_commit", _after_commit)
    mine.add(inserted)


@lru_cache
def _channel(job_model: type[Any]) -> str:
    return channel_of(str(job_table(job_model)))


def _after_commit(session: Session) -> None:
    if session.in_nested_transaction():
        return
    woken = False
    for inserted in _process.sessions.get(session, ()):
        connection = inserted.connection()
        # In a transaction still: the session has joined it but does not own it.
        if connection is None or connection.in_transaction():
            continue
        woken = woken or inserted.woken
        if inserted.announced:
            _process.committed(connection.engine, inserted.announced)
        inserted.announced, inserted.woken = set(), False
    if woken:
        _process.ring()
