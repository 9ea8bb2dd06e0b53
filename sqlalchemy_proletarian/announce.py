"""Telling workers that jobs were committed: one NOTIFY per queue and transaction.

It takes effect with the commit, just before which it is sent; that of a job which is first heard of
when its row is inserted, is sent then. A rollback, or the rollback of the SAVEPOINT in which a job
was enqueued, takes it back. Workers in the same process are woken without the database. Nothing
here listens to more than the one session that enqueued.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import sha1
from threading import Lock
from time import monotonic
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary, WeakSet

from sqlalchemy import Connection, Engine, Text, bindparam, event, func, select
from sqlalchemy import inspect as sa_inspect
from sqlalchemy.orm import InstanceState, Session, SessionTransaction

from .job_classes import job_table
from .wakeup import Doorbell

DEBOUNCE = 0.01
"""Seconds in which a process announces a queue once: at commit, NOTIFY takes a lock on the whole
database. A worker that goes idle looks once more after it."""

_MAX_IDENTIFIER = 63
_INFO_KEY = "sqlalchemy_proletarian.announce"
_QUIET = "sqlalchemy_proletarian.quiet"
_NOTIFY = select(func.pg_notify(bindparam("channel", type_=Text), bindparam("queue", type_=Text)))


def channel_of(table_name: str) -> str:
    """Return the notification channel of a job table, an identifier of at most 63 bytes."""
    channel = f"proletarian {table_name}"
    if len(channel.encode()) <= _MAX_IDENTIFIER:
        return channel
    return f"proletarian {sha1(table_name.encode(), usedforsecurity=False).hexdigest()}"


def cancel_channel_of(table_name: str) -> str:
    """Return the channel on which workers are asked to end running jobs of a table."""
    return channel_of(f"{table_name} cancel")


def cancel_request(job_id: Any, reason: str) -> str:
    """Return what is sent on that channel; see :func:`cancelled`."""
    return f"{job_id}\n{reason}"


def cancelled(request: str | None) -> tuple[str, str]:
    """Return the job's id, as text, and the reason that a request tells."""
    job_id, _, reason = (request or "").partition("\n")
    return job_id, reason


@dataclass
class _Enqueued:
    """The jobs of one queue in a session: the model of their table, and where they were enqueued.

    A transaction is a SAVEPOINT's where there is one; what is left when the session commits was not
    rolled back. ``sent``: so is the NOTIFY, which was sent already.
    """

    model: type[Any]
    transactions: set[SessionTransaction] = field(default_factory=set)
    sent: bool = False


_Key: TypeAlias = tuple[str, str]
"""A channel and a queue."""

_Pending: TypeAlias = dict[_Key, _Enqueued]


class _Process:
    """What this process announced last, and the doorbells of the workers that run in it.

    It is the one thing here that outlives a call: a debounce per process needs a place per process.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._sent: WeakKeyDictionary[Engine, dict[_Key, float]] = WeakKeyDictionary()
        self._doorbells: WeakSet[Doorbell] = WeakSet()

    def add(self, doorbell: Doorbell) -> None:
        with self._lock:
            self._doorbells.add(doorbell)

    def ring(self) -> None:
        with self._lock:
            doorbells = list(self._doorbells)
        for doorbell in doorbells:
            doorbell.ring()

    def may_send(self, engine: Engine, key: _Key) -> bool:
        now = monotonic()
        with self._lock:
            sent = self._sent.setdefault(engine, {})
            if now - sent.get(key, -DEBOUNCE) < DEBOUNCE:
                return False
            sent[key] = now
            return True


_process = _Process()


def ring_on_commit(doorbell: Doorbell) -> None:
    """Ring ``doorbell``, while it lives, whenever this process commits jobs."""
    _process.add(doorbell)


def announce(session: Session, job_model: type[Any], queue: str) -> None:
    """Wake the workers of ``queue`` when the session's transaction commits, if it does."""
    _note(session, _key(job_model, queue), job_model)


def announce_insert(connection: Connection, state: InstanceState[Any], queue: str) -> None:
    """Do the same for an object whose row is being inserted, if nobody has done so.

    The flush may be that of the commit, and ``before_commit`` over: the NOTIFY is sent at once. It
    is not debounced, because the commit may be far off.
    """
    session = state.session
    if session is None or _QUIET in state.info:
        return
    key = _key(state.class_, queue)
    enqueued = _note(session, key, state.class_)
    if enqueued is not None and _can_notify(session, connection):
        _notify(connection, key)
        enqueued.sent = True


def keep_quiet(job: Any) -> None:
    """Have the job's row inserted without a word to anybody."""
    sa_inspect(job).info[_QUIET] = True


def _key(job_model: type[Any], queue: str) -> _Key:
    return _channel(job_model), queue  # type: ignore[arg-type]  # a class is hashable


@lru_cache
def _channel(job_model: type[Any]) -> str:
    return channel_of(str(job_table(job_model)))


def _note(session: Session, key: _Key, job_model: type[Any]) -> _Enqueued | None:
    """Return what is to be announced, unless it was to be already."""
    pending: _Pending | None = session.info.get(_INFO_KEY)
    if pending is None:
        pending = session.info[_INFO_KEY] = {}
        event.listen(session, "before_commit", _before_commit)
        event.listen(session, "after_commit", _after_commit)
        event.listen(session, "after_soft_rollback", _after_soft_rollback)
    transaction = session.get_nested_transaction() or session.get_transaction()
    if transaction is None:
        return None
    enqueued = pending.setdefault(key, _Enqueued(job_model))
    is_first = not enqueued.transactions
    enqueued.transactions.add(transaction)
    return enqueued if is_first else None


def has_announcements(session: Session) -> bool:
    """Tell whether jobs were enqueued in the session that its next commit announces."""
    return bool(session.info.get(_INFO_KEY))


def _before_commit(session: Session) -> None:
    if session.in_nested_transaction():
        return
    pending: _Pending = session.info[_INFO_KEY]
    root = session.get_transaction()
    for key, enqueued in list(pending.items()):
        if not any(_is_inside(transaction, root) for transaction in enqueued.transactions):
            del pending[key]
            continue
        if enqueued.sent:
            continue
        connection = session.connection(bind_arguments={"mapper": enqueued.model})
        if _can_notify(session, connection) and _process.may_send(connection.engine, key):
            _notify(connection, key)


def _can_notify(session: Session, connection: Connection) -> bool:
    # A prepared transaction cannot.
    return connection.dialect.name == "postgresql" and not session.twophase


def _notify(connection: Connection, key: _Key) -> None:
    connection.execute(_NOTIFY, {"channel": key[0], "queue": key[1]})


def _after_commit(session: Session) -> None:
    if session.in_nested_transaction():
        return
    pending: _Pending = session.info[_INFO_KEY]
    if pending:
        pending.clear()
        _process.ring()


def _after_soft_rollback(session: Session, rolled_back: SessionTransaction) -> None:
    pending: _Pending = session.info[_INFO_KEY]
    for enqueued in pending.values():
        left = {
            transaction
            for transaction in enqueued.transactions
            if not _is_inside(transaction, rolled_back)
        }
        enqueued.sent = enqueued.sent and left == enqueued.transactions
        enqueued.transactions = left


def _is_inside(transaction: SessionTransaction | None, outer: SessionTransaction | None) -> bool:
    while transaction is not None:
        if transaction is outer:
            return True
        transaction = transaction.parent
    return False
