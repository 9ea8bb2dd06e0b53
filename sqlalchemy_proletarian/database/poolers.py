"""Connection poolers between this process and PostgreSQL, such as PgBouncer.

With session pooling, a connection to the pooler has a session of the server for itself. With
transaction pooling, each transaction may run in another session, which the pooler then gives to
others. Settings, LISTEN, prepared statements and the name of the connection belong to a session, so
they would take effect for others, or not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any, Final
from uuid import uuid4
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, Dialect, Engine, func, select, text
from sqlalchemy.exc import DBAPIError

from ..errors import PoolerError
from .dialects import HELD, driver_connection
from .error_codes import PREPARED, refusal_of, said_by_driver

PER_TRANSACTION: Final = "proletarian_per_transaction"
"""An execution option: each transaction of the connection may run in another session."""

_ROUNDS: Final = 6
"""How often the two connections are compared. Other clients may use the session that one of them
has used before."""

_WHERE: Final = (
    "a connection pooler with transaction pooling is between this process and PostgreSQL"
)

_pools_transactions: Final[WeakKeyDictionary[Dialect, bool]] = WeakKeyDictionary()
"""What was found behind an engine; the engines of one pool share a dialect."""


def client_pid(connection: Connection) -> int | None:
    """Return the process id that the other end has announced; None if the driver does not say.

    A pooler makes ids up, because its client has no process of the server for itself.
    """
    driver = driver_connection(connection)
    pid: int | None = None
    with suppress(Exception):
        match connection.dialect.driver:
            case "psycopg" | "psycopg2":
                pid = driver.info.backend_pid
            case "asyncpg":
                pid = driver.get_server_pid()
    return pid


def is_per_transaction(connection: Connection) -> bool:
    """Return whether one of the worker's own connections is behind transaction pooling."""
    return bool(connection.get_execution_options().get(PER_TRANSACTION))


def may_share_sessions(bind: Engine | Connection) -> bool:
    """Return whether other clients may use the same sessions of the server.

    They do not if it is one of the worker's own connections, and no pooler was found behind it.
    """
    options = bind.get_execution_options() if isinstance(bind, Connection) else {}
    return HELD not in options or bool(options.get(PER_TRANSACTION))


def pools_transactions(
    connection: Connection, another: Callable[[], AbstractContextManager[Connection]]
) -> bool:
    """Return whether the pooler behind a connection pools transactions, not sessions.

    :param connection: a connection that is not in a transaction.
    :param another: opens one more connection of the same engine.
    """
    found = _pools_transactions.get(connection.dialect)
    if found is None:
        with another() as other:
            found = _pools_transactions[connection.dialect] = _share_a_session(connection, other)
    return found


def _share_a_session(one: Connection, other: Connection) -> bool:
    """Return whether two idle connections have used the same session, or one has used several."""
    last: dict[int, int] = {}
    for n in (0, 1, 1, 0) * _ROUNDS:  # a pooler may take its sessions in turn
        with (one, other)[n].begin():
            pid = (one, other)[n].scalar(select(func.pg_backend_pid())) or 0
        if last.get(n, pid) != pid or last.get(1 - n) == pid:
            return True
        last[n] = pid
    return False


def loses_prepared(connection: Connection) -> bool:
    """Return whether the driver's prepared statements fail behind the pooler.

    :param connection: a connection behind transaction pooling, not in a transaction.
    """
    if not _prepares(connection):
        return False
    connection = connection.execution_options(isolation_level="READ COMMITTED")
    with connection.begin():
        return not _renames(connection)


def _prepares(connection: Connection) -> bool:
    """Return whether the driver prepares statements that are used by more than one transaction."""
    dialect = connection.dialect
    if dialect.driver == "psycopg":
        return driver_connection(connection).prepare_threshold is not None
    if dialect.driver == "asyncpg":
        adapted: Any = connection.connection.dbapi_connection
        named = adapted._prepared_statement_name_func() is not None
        return not (named and adapted._prepared_statement_cache is None)
    return False


def _renames(connection: Connection) -> bool:
    """Return whether the pooler gives prepared statements names of its own, and follows them.

    PgBouncer does so since 1.21, with ``max_prepared_statements``.
    """
    connection.scalar(select(1))  # so that the transaction has begun
    name = f"proletarian_{uuid4().hex}"
    driver = driver_connection(connection)
    if connection.dialect.driver == "psycopg":
        from psycopg import capabilities

        if not capabilities.has_send_close_prepared():  # it could not close such a statement
            return False
        statement = driver.pgconn.prepare(name.encode(), b"SELECT 1")
    else:
        from sqlalchemy.util import await_

        statement = await_(driver.prepare("SELECT 1", name=name))
    known = text("SELECT count(*) FROM pg_prepared_statements WHERE name = :name")
    if not connection.scalar(known, {"name": name}):
        return True
    connection.exec_driver_sql(f"DEALLOCATE {name}")
    del statement  # not before: asyncpg would close it, sooner or later
    return False


def prepared_remedy(dialect: Dialect) -> str:
    """Return how to create an engine whose driver prepares no statements behind a pooler."""
    if dialect.driver == "asyncpg":
        return (
            'create the engine with connect_args={"prepared_statement_name_func": lambda: "", '
            '"prepared_statement_cache_size": 0, "statement_cache_size": 0}'
        )
    return 'create the engine with connect_args={"prepare_threshold": None}'


def prepared_lost(error: BaseException, dialect: Dialect) -> PoolerError:
    """Return the error for a prepared statement that another client has made, or removed."""
    return PoolerError(
        f"{said_by_driver(error)}: another client of a connection pooler uses the same session of "
        f"the server; {prepared_remedy(dialect)}"
    )


@contextmanager
def prepared_explained(dialect: Dialect) -> Generator[None]:
    """Raise :class:`.PoolerError` in place of an error about a prepared statement."""
    try:
        yield
    except DBAPIError as error:
        if refusal_of(error) != PREPARED:
            raise
        raise prepared_lost(error, dialect) from error


def require_session(connection: Connection, what: str) -> None:
    """Raise :class:`.PoolerError` if one of the worker's own connections has no session.

    :param what: what needs one.
    """
    if is_per_transaction(connection):
        msg = f"{_WHERE}: {what} needs a direct connection, or session pooling"
        raise PoolerError(msg)


def unfit(
    worker: str, features: Sequence[str], options: Sequence[str], *, engine: str = ""
) -> PoolerError:
    """Return the error for a worker that cannot work behind transaction pooling.

    :param features: what does not work.
    :param options: the options of the worker that turn it off.
    :param engine: how to create its engine.
    """
    remedies = [
        *([f"give it {', '.join(options)}"] if options else []),
        *([engine] if engine else []),
    ]
    return PoolerError(
        f"{_WHERE}, and the worker {worker} cannot use {' and '.join(features)} there: "
        f"{', and '.join(remedies)}; or give it a direct connection, or session pooling"
    )
