"""Databases that are compatible with PostgreSQL: only what they have in common is used.

The other tests of this folder show that jobs work there; these show that no other SQL is sent.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import URL, Engine, create_engine, event, select, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import (
    Handlers,
    Job,
    QueueWorker,
    enqueue,
    enqueue_many,
    enqueue_unique,
    manage,
    migrate,
    process_next_job,
)
from sqlalchemy_proletarian.asyncio import AsyncQueueWorker
from tests.integration.support import archived, eventually, put

MISSING = re.compile(
    r"LATERAL|UNNEST|ORDINALITY|string_to_array|NOTIFY|LISTEN|advisory|pg_stat|pg_catalog|"
    r"set_config|current_setting|UNLOGGED|\bPREPARE\b|KEY SHARE|\bANY\s*\(",
    re.IGNORECASE,
)
"""What at least one of the compatible databases does not have."""


@pytest.fixture
def url(empty_database: URL) -> URL:
    """Return the URL of an empty database, with the plugin."""
    return empty_database.update_query_dict({"plugin": "proletarian_portable"})


@pytest.fixture
def sent() -> Iterator[list[str]]:
    """Yield a list of the statements of all engines."""
    statements: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        statements.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    yield statements
    event.remove(Engine, "before_cursor_execute", note)


def foreign(statements: list[str]) -> set[str]:
    """Return the statements of the library that compatible databases may not understand."""
    ours = [line for line in statements if "proletarian" in line or "FROM" not in line]
    # SQLAlchemy and Alembic look up tables in the catalogs.
    return {line for line in ours if MISSING.search(line) and "pg_catalog" not in line}


def test_only_common_sql_is_sent(url: URL, sent: list[str]) -> None:
    """Migrations, producers, workers and the functions of manage send nothing else."""
    migrate.upgrade(url)
    engine = create_engine(url)
    handlers = Handlers()

    @handlers("write", concurrency=2)
    def write(payload: Any, session: Session) -> None:
        session.execute(select(Job.job_id).limit(1))

    @handlers("fail", retry={"retries": 1, "delays": [1]})
    def fail(payload: Any) -> None:
        raise ValueError

    @handlers.recurring("tick", every=timedelta(hours=1))
    def tick(payload: Any) -> None: ...

    with Session(engine) as session, session.begin():
        enqueue(session, "write", 1)
        enqueue_many(session, [("write", n) for n in range(20)])
        assert enqueue_unique(session, "fail", unique_key="one").created
        assert not enqueue_unique(session, "fail", unique_key="one").created
    with Session(engine) as session, session.begin():
        manage.pause(session, "other")
        assert process_next_job(session, handlers)
    with QueueWorker(engine, handlers, archive_retention=timedelta(days=1)):
        eventually(lambda: len(archived(engine)) >= 22)
    with Session(engine) as session, session.begin():
        put(engine, "write", process_in=timedelta(hours=1))
        manage.stats(session)
        (waiting,) = manage.list_jobs(session, status="queued", job_type="write").jobs
        assert manage.cancel(session, waiting.job_id)
        assert manage.prune(session, older_than=timedelta(0))
    engine.dispose()
    assert len(sent) > 100
    assert foreign(sent) == set()


def test_in_an_event_loop(url: URL, sent: list[str]) -> None:
    """The same applies to a worker in an event loop."""
    migrate.upgrade(url)
    plain = create_engine(url)
    put(plain, "job")
    handlers = Handlers()

    @handlers("job")
    async def job(payload: Any) -> None: ...

    async def drain() -> int:
        engine = create_async_engine(url.set(drivername="postgresql+asyncpg"))
        try:
            return await AsyncQueueWorker(engine, handlers).drain()
        finally:
            await engine.dispose()

    assert asyncio.run(drain()) == 1
    plain.dispose()
    assert foreign(sent) == set()


def test_a_claim_reads_no_more_than_it_takes(url: URL) -> None:
    """The claim finds the lanes with one probe each, however many jobs wait in them."""
    migrate.upgrade(url)
    engine = create_engine(url)
    with Session(engine) as session, session.begin():
        enqueue_many(session, [("job", n) for n in range(20_000)], process_in=timedelta(hours=1))
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("VACUUM ANALYZE proletarian.job"))
    claims: list[tuple[str, Any]] = []

    @event.listens_for(engine, "before_cursor_execute")
    def note(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if "priorities" in statement:
            claims.append((statement, parameters))

    assert QueueWorker(engine, lambda *_: None, queues=["default", "other"]).drain() == 0
    statement, parameters = claims[0]
    with engine.connect() as connection:
        plan = connection.exec_driver_sql(
            f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement}", parameters
        ).scalar_one()
    engine.dispose()
    top = plan[0]["Plan"]
    assert top["Shared Hit Blocks"] + top["Shared Read Blocks"] < 150


def test_the_plugin_is_for_postgresql_only() -> None:
    with pytest.raises(ValueError, match="is for databases compatible with PostgreSQL, not for"):
        create_engine("sqlite://", plugins=["proletarian_portable"])
