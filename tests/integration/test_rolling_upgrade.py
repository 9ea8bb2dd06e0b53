"""Upgrades without downtime: two releases that work on the tables of the later one.

docs/howto/upgrades.md lists what a later version of the tables may add. These tests make such
changes to the tables of this release while its workers run.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import (
    Handlers,
    RetryStrategy,
    Status,
    enqueue,
    enqueue_many,
    enqueue_unique,
    manage,
    migrations,
    utcnow,
    uuid7,
)

from .kinds import KINDS, Kind, only
from .support import MINUTE, archived, eventually, only_queued, queued

EXPANSION = """\
CREATE TABLE proletarian.later_table (id int PRIMARY KEY);
ALTER TABLE proletarian.job ADD COLUMN later_note text;
ALTER TABLE proletarian.archived_job ADD COLUMN later_note text;
ALTER TABLE proletarian.running ADD COLUMN later_note text;
ALTER TABLE proletarian.job ADD COLUMN later_weight int NOT NULL DEFAULT 7;
ALTER TABLE proletarian.archived_job ADD COLUMN later_weight int NOT NULL DEFAULT 7;
ALTER TABLE proletarian.running ADD COLUMN later_weight int NOT NULL DEFAULT 7;
CREATE INDEX later_index ON proletarian.job (later_note, queue);
CREATE INDEX later_archive_index ON proletarian.archived_job (job_type, finished_at);
"""
"""All changes that a later version may make."""

CONTRACTION = """\
DROP TABLE IF EXISTS proletarian.later_table;
ALTER TABLE proletarian.job DROP COLUMN IF EXISTS later_note;
ALTER TABLE proletarian.archived_job DROP COLUMN IF EXISTS later_note;
ALTER TABLE proletarian.running DROP COLUMN IF EXISTS later_note;
ALTER TABLE proletarian.job DROP COLUMN IF EXISTS later_weight;
ALTER TABLE proletarian.archived_job DROP COLUMN IF EXISTS later_weight;
ALTER TABLE proletarian.running DROP COLUMN IF EXISTS later_weight;
DROP INDEX IF EXISTS proletarian.later_archive_index;
"""

LATER_PRODUCER = text(
    "INSERT INTO proletarian.job (job_id, queue, job_type, payload, attempts, enqueued_at, "
    "process_at, later_note, later_weight) "
    "VALUES (:job_id, 'default', 'note', '\"later\"', 0, now(), now(), 'filled', 9)"
)

MANY = 12
"""Enough executions of a statement that psycopg prepares it and asyncpg caches its plan."""

EXERCISED: dict[int, str] = {}
"""The earlier versions of the tables, with the test that runs their release on the current ones."""


@pytest.fixture
def expandable(engine: Engine) -> Iterator[Engine]:
    """Yield an engine, and restore the tables of this release afterwards."""
    yield engine
    with engine.begin() as connection:
        connection.exec_driver_sql(CONTRACTION)


def expand(engine: Engine) -> None:
    """Make the changes that a later version may make."""
    with engine.begin() as connection:
        connection.exec_driver_sql(EXPANSION)


def put(engine: Engine, job_type: str, count: int) -> None:
    for _ in range(count):
        with Session(engine) as session, session.begin():
            enqueue(session, job_type, "now")


@only(*KINDS)
def test_tables_are_extended_while_a_worker_runs(expandable: Engine, kind: Kind) -> None:
    """A running worker continues while tables are extended, and runs jobs of later producers."""
    handlers = Handlers()
    payloads = []

    @handlers("note")
    def note(payload: str) -> None:
        payloads.append(payload)

    @handlers("broken", retry=RetryStrategy(retries=1, delays=[0]))
    def broken(payload: str) -> None:
        raise ValueError(payload)

    with kind.worker(expandable, handlers, batch_size=1):
        put(expandable, "note", MANY)
        eventually(lambda: len(archived(expandable)) == MANY)
        expand(expandable)
        put(expandable, "note", MANY)
        put(expandable, "broken", 1)
        with expandable.begin() as connection:
            for _ in range(MANY):
                connection.execute(LATER_PRODUCER, {"job_id": uuid7()})
        eventually(lambda: len(archived(expandable)) == 3 * MANY + 1)
    jobs = archived(expandable)
    assert sorted(payloads) == ["later"] * MANY + ["now"] * 2 * MANY
    assert [job.attempts for job in jobs if job.status == Status.FAILURE] == [2]
    assert {job.error for job in jobs if job.status == Status.SUCCESS} == {None}


@only(Kind(), Kind(leased=True), Kind("asyncpg"))
def test_workers_and_producers_work_on_later_tables(expandable: Engine, kind: Kind) -> None:
    """Workers and producers of this release work on the tables of a later version."""
    expand(expandable)
    with Session(expandable) as session, session.begin():
        enqueue(session, "note", 1)
        enqueue_many(session, [("note", 2), ("note", 3)])
        assert enqueue_unique(session, "note", 4, unique_key="k").created
        assert not enqueue_unique(session, "note", 5, unique_key="k").created
        waiting = enqueue(session, "note", 6, process_in=MINUTE).job_id
        kept = enqueue(session, "note", 7, process_at=utcnow() + MINUTE)
        session.flush()
        kept_id = kept.job_id
    with Session(expandable) as session, session.begin():
        assert manage.cancel(session, waiting) == "cancelled"
    ran = []
    assert kind.run_all(expandable, lambda job_type, payload: ran.append(payload)) == 4
    assert sorted(ran) == [1, 2, 3, 4]
    assert only_queued(expandable).job_id == kept_id
    assert {job.status for job in archived(expandable)} == {Status.SUCCESS, Status.CANCELLED}


def test_later_columns_survive_a_retry(expandable: Engine) -> None:
    """Values of later columns survive a retry by an earlier worker, but are not archived."""
    expand(expandable)
    handlers = Handlers()

    @handlers("note", retry=RetryStrategy(retries=1, delays=[MINUTE]))
    def note(payload: str) -> None:
        raise ValueError(payload)

    with expandable.begin() as connection:
        connection.execute(LATER_PRODUCER, {"job_id": uuid7()})
    Kind().run_all(expandable, handlers)
    assert [job.attempts for job in queued(expandable)] == [1]
    with expandable.connect() as connection:
        row = connection.exec_driver_sql("SELECT later_note, later_weight FROM proletarian.job")
        assert row.all() == [("filled", 9)]
    Kind().run_all(expandable, handlers, clock=lambda: utcnow() + 2 * MINUTE)
    with expandable.connect() as connection:
        row = connection.exec_driver_sql(
            "SELECT attempts, later_note, later_weight FROM proletarian.archived_job"
        )
        assert row.all() == [(2, None, 7)]


def test_every_earlier_version_is_tested() -> None:
    """Each earlier version of the tables has a test with its release.

    If this test fails, a version was added. Write a test that installs the last release of each
    earlier version (with pip in a separate environment, like tests/migrations/test_packaging.py),
    migrates with this code, and runs ``proletarian migrate upgrade`` and a worker of that release
    next to a worker of this code. Then add the name of the test to EXERCISED. The policy is
    described in docs/howto/upgrades.md.
    """
    assert set(EXERCISED) == set(range(1, migrations.LATEST_VERSION))
