"""Fixtures with a PostgreSQL database: a server of the suite's own, or PROLETARIAN_TEST_URL."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import Generator, Iterator
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import URL, Engine, create_engine, make_url, text
from sqlalchemy.orm import Session

from sqlalchemy_proletarian.embedded import embedded_postgres
from sqlalchemy_proletarian.models import SCHEMA, Base

from .packages import built

__all__ = ["built"]

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell ignores SIGINT for a background process; the tests need it to simulate Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of the suite; pytest needs them before it collects the tests."""
    group = parser.getgroup("faults")
    group.addoption(
        "--soak", default=0, type=float, help="seconds of random faults in each fault test"
    )
    group.addoption(
        "--seed", default=None, type=int, help="repeat the random faults of an earlier run"
    )
    group = parser.getgroup("migrations")
    group.addoption(
        "--whole-matrix", action="store_true", help="run every combination of test_matrix"
    )


def pytest_collection_finish() -> None:
    """Keep the garbage collector from looking through all tests, again and again."""
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print why tests needed a second try: each of them has a defect, or has found one."""
    reports = terminalreporter.getreports("rerun")
    if reports:
        terminalreporter.section("SECOND TRIES")
    for report in reports:
        terminalreporter.write_sep("_", report.nodeid)
        terminalreporter.write_line(report.longreprtext)
        for _, content in report.get_sections("Captured log"):
            terminalreporter.write_line(content)


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable() -> Generator[None, Any, Any]:
    """Escape lone surrogates in reports, which cannot be sent between processes otherwise."""
    return _escaped((yield))


def _escaped(data: Any) -> Any:
    if isinstance(data, str):
        return data.encode("utf-8", "backslashreplace").decode()
    if isinstance(data, dict):
        return {_escaped(key): _escaped(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return type(data)(map(_escaped, data))
    return data


@pytest.fixture(scope="session")
def server_url() -> Iterator[URL]:
    """The URL of a database of the server on which the tests create other databases."""
    if given := os.environ.get("PROLETARIAN_TEST_URL"):
        yield make_url(given)
    else:
        with embedded_postgres() as url:
            yield url


@pytest.fixture(scope="session")
def _admin(server_url: URL) -> Iterator[Engine]:
    engine = create_engine(server_url, isolation_level="AUTOCOMMIT")
    yield engine
    engine.dispose()


@pytest.fixture
def empty_database(server_url: URL, _admin: Engine) -> Iterator[URL]:
    """The URL of a new database without tables, dropped after the test."""
    name = f"proletarian_test_{uuid4().hex}"
    with _admin.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    yield server_url.set(database=name)
    with _admin.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture(scope="session")
def _shared_database(server_url: URL, _admin: Engine) -> Iterator[URL]:
    name = f"proletarian_test_{uuid4().hex}"
    with _admin.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    url = server_url.set(database=name)
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(text(f"CREATE SCHEMA {SCHEMA}"))
        Base.metadata.create_all(connection)
    engine.dispose()
    yield url
    with _admin.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture
def url(_shared_database: URL) -> URL:
    """The URL of a database with empty job tables."""
    return _shared_database


@pytest.fixture
def engine(url: URL) -> Iterator[Engine]:
    """An engine on a database with empty job tables."""
    engine = create_engine(url)
    yield engine
    with engine.begin() as connection:
        for table in Base.metadata.sorted_tables:
            connection.execute(table.delete())
    engine.dispose()


@pytest.fixture
def session(engine: Engine) -> Iterator[Session]:
    """A session on the test's engine."""
    with Session(engine) as session:
        yield session
