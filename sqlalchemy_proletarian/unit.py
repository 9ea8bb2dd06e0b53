"""The transaction that holds a batch of jobs, and the session their handlers write through in it.

One failing job costs its own writes only: the handlers' session is joined into the claiming
transaction by a SAVEPOINT, which is sent when a handler first uses the database. A handler that
only adds objects does not: what it added waits, and is flushed together with what the other
handlers of the batch added, in one SAVEPOINT; if that fails, each on its own. It waits for the end
of the batch, or for the next handler that uses the database, which sees it.
"""

from __future__ import annotations

from asyncio import CancelledError
from collections.abc import Callable, Generator, Iterable
from contextlib import ExitStack, contextmanager, suppress
from itertools import chain
from typing import Any

from sqlalchemy import Connection, Engine, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session, SessionTransaction, make_transient

from . import keepalive
from .announce import has_announcements
from .callbacks import tamed
from .connect import is_lost, sever
from .dialects import Database, causes_of, database_of, driver_connection, is_busy, is_undone
from .errors import HandlerEndedTransactionError
from .lines import LeasedJobs
from .runs import Run


class JobUnit:
    """One transaction that holds jobs, and the session that their handlers write through in it.

    :param connection: whose transaction claims and settles.
    :param make_session: makes the handlers' session; a ``sessionmaker`` or ``Session`` itself.
    """

    def __init__(self, connection: Connection, make_session: Callable[..., Session]) -> None:
        self.connection = connection
        self.broken = False
        """Whether the connection or the transaction was lost with what waited: not by whoever used
        it then."""
        self._make_session = make_session
        self._joined: Session | None = None
        self._flusher: Session | None = None
        self._waiting: dict[Run, list[Any]] = {}
        self._errors: dict[Run, Exception] = {}

    @contextmanager
    def savepoint(self, owner: Run) -> Generator[Session]:
        """Hand out the handlers' session: all of the block's work takes effect, or none of it.

        Its commit reaches a SAVEPOINT only, and is refused to handlers.

        :param owner: whose work it is, see :meth:`flush`.
        """
        joined = self._session()
        transaction = joined.begin()
        joined.info[_TOUCHED] = False
        try:
            with _kept_open(self.connection, "commit", "rollback", "close"):
                yield joined
            if joined.get_transaction() is not transaction:
                raise _ended_transaction()
            if _can_wait(joined):
                self._waiting[owner] = list(joined.new)
                joined.expunge_all()
            else:
                _commit(joined)
        finally:
            joined.close()

    def flush(self) -> dict[Run, Exception]:
        """Flush what waits, and return the owners whose work failed, with the errors."""
        self._flush_waiting()
        errors, self._errors = self._errors, {}
        return errors

    def _flush_waiting(self) -> None:
        waiting, self._waiting = self._waiting, {}
        if not waiting:
            return
        given = {
            id(thing): frozenset(thing.__dict__) for thing in chain.from_iterable(waiting.values())
        }
        error = self._flush(chain.from_iterable(waiting.values()))
        if error is None:
            return
        self.broken = self.connection.invalidated
        if len(waiting) == 1:
            self._errors.update(dict.fromkeys(waiting, error))
            return
        for owner, things in waiting.items():
            for thing in things:
                _as_it_was(thing, given[id(thing)])
            if error := self._flush(things):
                self._errors[owner] = error

    def _flush(self, things: Iterable[Any]) -> Exception | None:
        """Flush in a SAVEPOINT; return what undid it, and raise what undid the transaction."""
        if self._flusher is None:
            self._flusher = self._new_session()
        flusher = self._flusher

        def flush() -> None:
            with flusher, flusher.begin():
                flusher.add_all(things)

        try:
            tamed(flush)  # defaults and listeners are the user's
        except Exception as error:
            if is_undone(error):
                self.broken = True
                raise
            return error
        return None

    def _session(self) -> Session:
        if self._joined is None:
            joined = self._joined = self._new_session()
            event.listen(joined, "before_commit", _refuse_commit)
            event.listen(joined, "after_begin", _touched)
            find_bind = joined.get_bind

            def get_bind(*args: Any, **kwargs: Any) -> Any:
                # The last moment before this session's own SAVEPOINT.
                self._flush_waiting()
                return find_bind(*args, **kwargs)

            joined.get_bind = get_bind  # type: ignore[method-assign]
        return self._joined

    def _new_session(self) -> Session:
        return self._make_session(
            bind=self.connection, binds=None, join_transaction_mode="create_savepoint"
        )


class ConnectionLostError(Exception):
    """The session that a handler was handed has lost its connection, or cannot get one.

    Or it cannot write to it, because somebody else does all the time.
    """


class OwnTransactions:
    """Sessions for handlers, each with a transaction of its own.

    :param make_session: makes them.
    :param engine: which the jobs are in. On its connections an isolation level of the engine's own
        gives way to READ COMMITTED: in AUTOCOMMIT nothing could be undone, and above it a job could
        not complete whose lease was extended meanwhile.
    :param lines: lets others find those connections.
    """

    def __init__(
        self,
        make_session: Callable[..., Session],
        engine: Engine,
        job_model: type[Any],
        lines: LeasedJobs | None,
    ) -> None:
        self._make_session = make_session
        self._engine = engine
        self._database = database_of(engine.dialect)
        self._read_committed = _marking(engine.execution_options(), self._database.isolation_level)
        self._job_model = job_model
        self._lines = lines

    @contextmanager
    def begin(self, owner: Run, complete: Callable[[Connection], object]) -> Generator[Session]:
        """Hand out a session; its transaction commits with the block.

        Its commit is refused to handlers. If it was not used at all, nothing is sent.

        :param owner: whose work it is.
        :param complete: called in the transaction, just before it commits; what it raises rolls
            back.
        :raises ConnectionLostError: if that is why the block, or the commit, has failed.
        """
        with ExitStack() as watches, _closed_at_the_end(self._make_session()) as session:
            event.listen(session, "before_commit", _refuse_commit)
            event.listen(session, "after_begin", _touched)
            line = self._watch(session, watches, owner)
            session.info[_TOUCHED] = False
            transaction = session.begin()
            try:
                with line.handed_out():
                    yield session
                self._end(session, transaction, line, complete)
            except CancelledError:  # the event loop ends, and need not wait for a rollback
                line.cut()
                raise
            except Exception as error:
                if line.is_lost(error):
                    raise ConnectionLostError from error
                raise

    def _end(
        self,
        session: Session,
        transaction: SessionTransaction,
        line: _Line,
        complete: Callable[[Connection], object],
    ) -> None:
        if session.get_transaction() is not transaction or line.is_closed():
            raise _ended_transaction()
        if session.info[_TOUCHED] or session.new or session.dirty or session.deleted:
            session.flush()
            line.require_whole()
            complete(session.connection(bind_arguments={"mapper": self._job_model}))
            _commit(session)

    def _watch(self, session: Session, watches: ExitStack, owner: Run) -> _Line:
        line = _Line(self._database)
        find_bind = session.get_bind

        def get_bind(*args: Any, **kwargs: Any) -> Any:
            found = find_bind(*args, **kwargs)
            return self._read_committed if found is self._engine else found

        def begun(_session: Session, transaction: SessionTransaction, to: Connection) -> None:
            if not transaction.nested:
                if to.engine is self._read_committed:
                    line.begun(to)
                    if self._lines is not None:
                        self._lines.show(to, owner.job.job_id)
                line.keep_open(to)
                watches.enter_context(keepalive.at_both_ends(to, driver_connection(to)))

        session.get_bind = get_bind  # type: ignore[method-assign]
        event.listen(session, "after_begin", begun)
        return line


class _Line:
    """A session's connection to the database that its job is in."""

    def __init__(self, database: Database) -> None:
        self.connection: Connection | None = None
        self._database = database
        self._handed_out: ExitStack | None = None

    def begun(self, connection: Connection) -> None:
        """Note that the transaction has begun, and on which connection."""
        self.connection = connection
        self._database.begun(connection)

    def require_whole(self) -> None:
        """Raise if the transaction is not the one that has begun."""
        if self.connection is None:
            return
        try:
            self._database.require_whole(self.connection)
        except DBAPIError as error:
            if not is_undone(error):
                raise
            msg = (
                "the database has undone the transaction of the handler's session at a deadlock, "
                "and the handler went on: let such an error pass, the job is retried as a whole"
            )
            raise HandlerEndedTransactionError(msg) from error

    @contextmanager
    def handed_out(self) -> Generator[None]:
        """Refuse to end the session's connections while a handler has them."""
        try:
            with ExitStack() as self._handed_out:
                yield
        finally:
            self._handed_out = None

    def keep_open(self, connection: Connection) -> None:
        """Note one more connection of the session's."""
        if self._handed_out is not None:
            # Not its close: the session closes it itself, when the handler ends the session.
            self._handed_out.enter_context(_kept_open(connection, "commit", "rollback"))

    def is_closed(self) -> bool:
        """Tell whether the handler has closed it."""
        return self.connection is not None and self.connection.closed

    def cut(self) -> None:
        """End it at once."""
        if self.connection is not None:
            sever(self.connection, busy=False)

    def is_lost(self, error: BaseException) -> bool:
        """Tell whether ``error`` comes of the loss of it, and not of that of any other.

        A database that others were writing to all the time is as good as lost.
        """
        causes = list(causes_of(error))
        if any(hasattr(cause, _REFUSED) for cause in causes):
            return True
        if self.connection is None:
            return False
        if any(is_busy(cause) for cause in causes):
            return True
        # A query that is cancelled costs its connection too. A failed commit leaves it closed.
        gone = self.connection.invalidated or self.connection.closed
        return any(is_lost(cause) for cause in causes) and (gone or not _answers(self.connection))


def _answers(connection: Connection) -> bool:
    """Tell whether the server still answers on a connection that is to be rolled back anyway.

    One that is about to close it has said so, which SQLAlchemy does not take for the end.
    """
    try:
        connection.connection.rollback()
    except Exception as error:
        connection.invalidate(error)
        return False
    return True


@contextmanager
def _closed_at_the_end(session: Session) -> Generator[Session]:
    """Close a session; what ended it counts for more than that it could not be rolled back."""
    try:
        yield session
    except BaseException:
        with suppress(DBAPIError):
            session.close()
        raise
    session.close()


def _marking(engine: Engine, isolation_level: str | None) -> Engine:
    """Mark errors of connecting, which else look like those of whatever a handler connects to.

    :param isolation_level: of the connections, where it is not to be the engine's own.
    """
    connect = engine.connect

    def connect_or_mark() -> Connection:
        try:
            connection = connect()
            try:
                if isolation_level is not None:
                    connection.execution_options(isolation_level=isolation_level)
            except BaseException:  # the one that the pool had may be lost
                connection.invalidate()
                connection.close()
                raise
        except Exception as error:
            setattr(error, _REFUSED, True)
            raise
        return connection

    engine.connect = connect_or_mark  # type: ignore[method-assign]
    return engine


_MAY_COMMIT = "proletarian_may_commit"
_TOUCHED = "proletarian_touched"
_REFUSED = "proletarian_refused"


def _can_wait(session: Session) -> bool:
    idle = not (session.info[_TOUCHED] or session.dirty or session.deleted)
    return idle and not has_announcements(session)


def _commit(session: Session) -> None:
    session.info[_MAY_COMMIT] = True
    try:
        session.commit()
    finally:
        del session.info[_MAY_COMMIT]


def _refuse_commit(session: Session) -> None:
    if _MAY_COMMIT not in session.info and not session.in_nested_transaction():
        raise _ended_transaction()


@contextmanager
def _kept_open(connection: Connection, *ends: str) -> Generator[None]:
    """Refuse to end a connection or its transaction, in which jobs complete, by these methods."""
    for name in ends:
        setattr(connection, name, _refuse)
    try:
        yield
    finally:
        for name in ends:
            delattr(connection, name)


def _refuse() -> None:
    raise _ended_transaction()


def _touched(session: Session, _transaction: SessionTransaction, _connection: Connection) -> None:
    session.info[_TOUCHED] = True


def _as_it_was(thing: Any, names: frozenset[str]) -> None:
    """Take back what a flush that was rolled back has set: ids, foreign keys, defaults."""
    make_transient(thing)
    for name in thing.__dict__.keys() - names:
        del thing.__dict__[name]


def _ended_transaction() -> HandlerEndedTransactionError:
    return HandlerEndedTransactionError(
        "the handler ended the transaction of the session it was handed (commit, rollback or "
        "close): it completes with the job; use session.begin_nested() for a part that may be "
        "undone, or a session of your own for what must stay whatever becomes of the job"
    )
