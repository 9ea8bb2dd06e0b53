"""Statements that are prepared under a name of our own, for psycopg.

The text ``EXECUTE name (…)`` can be part of a longer text: ``COMMIT``, ``BEGIN`` and the next claim
are then one round trip instead of three. And it can be sent without waiting for the answer. Neither
is possible with the statements that psycopg prepares itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import count
from time import sleep
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import ARRAY, ClauseElement, Connection, Dialect, Select
from sqlalchemy.dialects.postgresql import asyncpg
from sqlalchemy.exc import DBAPIError

from .dialects import driver_connection
from .error_codes import code_of
from .poolers import is_per_transaction

if TYPE_CHECKING:
    from psycopg.pq.abc import PGresult

_NUMBERED: Final = asyncpg.dialect()  # type: ignore[no-untyped-call]
"""A dialect that writes parameters as PREPARE does: ``$1::TEXT``. It does not import its driver."""

_numbers = count(1)


def compile_to_prepare(connection: Connection, statement: ClauseElement) -> Any:
    """Return a statement compiled for :class:`PreparedStatement`; None if that is not possible.

    A ``prepare_threshold`` of None says that statements cannot be prepared, for example because of
    a pooler. If the engine logs its statements, SQLAlchemy executes all of them.
    """
    dialect = connection.dialect
    if dialect.driver != "psycopg" or dialect.is_async or connection.engine.echo:
        return None
    if driver_connection(connection).prepare_threshold is None or is_per_transaction(connection):
        return None
    translated = connection.get_execution_options().get("schema_translate_map")
    compiled: Any = statement.compile(
        dialect=_NUMBERED,
        schema_translate_map=translated,
        render_schema_translate=bool(translated),
    )
    # SQLAlchemy must not have to convert a value on the way to or from the driver.
    given = [_implementation(bind.type, dialect) for bind in compiled.binds.values()]
    read = statement.selected_columns if isinstance(statement, Select) else ()
    if any(own.bind_processor(dialect) for own in given):
        return None
    if any(_implementation(c.type, dialect).result_processor(dialect, None) for c in read):
        return None
    return compiled


def _implementation(kind: Any, dialect: Dialect) -> Any:
    return (kind.item_type if isinstance(kind, ARRAY) else kind).dialect_impl(dialect)


class PreparedStatement:
    """A statement that is prepared on one psycopg connection.

    psycopg deallocates all prepared statements after a rollback, and so may a handler.
    :func:`is_deallocated` recognizes the error.

    :param compiled: what :func:`compile_to_prepare` returned.
    """

    def __init__(self, connection: Connection, compiled: Any) -> None:
        from psycopg.adapt import Transformer

        self._name = f"proletarian_{next(_numbers)}"
        self._parameters: list[str] = compiled.positiontup
        self._values: Callable[[Mapping[str, Any]], dict[str, Any]] = compiled.construct_params
        self._literal = Transformer(driver_connection(connection)).as_literal
        self._texts: dict[str, tuple[Any, str]] = {}
        execute_text(connection, f"PREPARE {self._name} AS {compiled}").check()

    def call(self, values: Mapping[str, Any]) -> str:
        """Return the text that executes the statement with these parameters."""
        given = self._values(values)
        arguments = ", ".join(self._text(name, given[name]) for name in self._parameters)
        return f"EXECUTE {self._name} ({arguments})"

    def _text(self, name: str, value: Any) -> str:
        known, text = self._texts.get(name, (None, "NULL"))
        if known != value:
            text = self._literal(value).decode()
            self._texts[name] = value, text
        return text


@dataclass
class Answer:
    """The server's answer to the text of one or more statements."""

    connection: Connection
    results: list[PGresult]
    """The results of the statements that were executed."""
    error: BaseException | None = None
    """Why the next one failed; the server does not execute those after it."""

    def check(self) -> None:
        """Raise the error, if there is one."""
        if self.error is not None:
            raise self.error

    def rows(self, statement: int = -1) -> list[tuple[Any, ...]]:
        """Return the rows of a statement as the driver returns them, or raise the error.

        :param statement: the index of the statement; the last one by default.
        """
        from psycopg.adapt import Transformer

        self.check()
        loader = Transformer(driver_connection(self.connection))
        result = self.results[statement]
        loader.set_pgresult(result)
        return loader.load_rows(0, result.ntuples, tuple)


def execute_text(connection: Connection, text: str) -> Answer:
    """Execute the text of one or more statements."""
    try:
        send_text(connection, text)
    except Exception as error:
        return Answer(connection, [], error)
    return receive(connection, text)


def send_text(connection: Connection, text: str) -> None:
    """Send the text of one or more statements without waiting for the answer.

    When this returns, the operating system has the whole message, which reaches the server even if
    the process is killed. :func:`receive` must be called before the connection is used again.
    """
    from psycopg import Error

    server = driver_connection(connection).pgconn
    try:
        server.send_query(text.encode())
        while server.flush():
            sleep(0.001)
    except Error as error:
        raise _wrapped(connection, text, error) from error


def receive(connection: Connection, text: str) -> Answer:
    """Wait for the answer to :func:`send_text`."""
    from psycopg import Error
    from psycopg.errors import error_from_result
    from psycopg.generators import fetch_many
    from psycopg.pq import ExecStatus

    driver = driver_connection(connection)
    try:
        results = driver.wait(fetch_many(driver.pgconn))
    except Error as error:
        return Answer(connection, [], _wrapped(connection, text, error))
    if results and results[-1].status == ExecStatus.FATAL_ERROR:
        return Answer(
            connection, results[:-1], _wrapped(connection, text, error_from_result(results[-1]))
        )
    return Answer(connection, results)


def _wrapped(connection: Connection, text: str, error: Exception) -> BaseException:
    """Return an error of psycopg as SQLAlchemy raises it; invalidate a connection that is lost."""
    from psycopg import Error

    lost = connection.dialect.is_disconnect(error, connection.connection, None)  # type: ignore[arg-type]
    wrapped = DBAPIError.instance(text, None, error, Error, connection_invalidated=lost)
    wrapped.__cause__ = error
    if lost:
        connection.invalidate(error)
    return wrapped


def is_deallocated(error: BaseException | None) -> bool:
    """Return whether an error means that a prepared statement does not exist any more."""
    return isinstance(error, DBAPIError) and code_of(error) == "26000"


def is_division_by_zero(error: BaseException | None) -> bool:
    """Return whether an error is that of a division by zero."""
    return isinstance(error, DBAPIError) and code_of(error) == "22012"
