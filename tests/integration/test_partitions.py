"""Archives that are partitioned by month: making partitions, dropping them, and running jobs."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from threading import Thread
from time import sleep
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import (
    URL,
    Engine,
    MetaData,
    NullPool,
    create_engine,
    func,
    insert,
    inspect,
    select,
    text,
)
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Session

from sqlalchemy_proletarian import (
    ArchivedJob,
    ArchivedJobMixin,
    Handlers,
    JobMixin,
    QueueWorker,
    manage,
    utcnow,
    uuid7,
)
from sqlalchemy_proletarian import asyncio as proletarian_asyncio
from sqlalchemy_proletarian.database.partitions import default_name, month_name, months
from sqlalchemy_proletarian.errors import PrivilegeError
from sqlalchemy_proletarian.migrate import check, upgrade
from sqlalchemy_proletarian.store import partitions
from sqlalchemy_proletarian.worker import archive_pruning

from .kinds import Kind
from .loops import in_a_loop
from .support import MINUTE, Log, eventually, fail, put, run_all, succeed

DAY = timedelta(days=1)
NOW = datetime(2026, 5, 17, 12, tzinfo=UTC)
ARCHIVE = "proletarian.archived_job"


def clock() -> datetime:
    """Return the time of most tests."""
    return NOW


@pytest.fixture
def parted(empty_database: URL) -> Iterator[Engine]:
    """Yield an engine on tables whose archive the migration has partitioned."""
    upgrade(empty_database, partition_archive="month")
    engine = create_engine(empty_database, poolclass=NullPool)
    yield engine
    engine.dispose()


@pytest.fixture
def months_of_2026(parted: Engine) -> Engine:
    """Return an engine on an archive with the partitions of January to May, and jobs in them."""
    with parted.begin() as connection:
        for name in names(parted) - {"archived_job_default"}:
            connection.execute(text(f"DROP TABLE proletarian.{name}"))
    for month in range(1, 6):
        manage.make_partitions(
            parted, months=1, clock=lambda n=month: datetime(2026, n, 1, tzinfo=UTC)
        )
        fill(parted, datetime(2026, month, 10, tzinfo=UTC), 10 * month)
    return parted


def names(engine: Engine, table: str = "archived_job", schema: str = "proletarian") -> set[str]:
    """Return the partitions of an archive."""
    found = inspect(engine).get_table_names(schema)
    return {name for name in found if name.startswith(f"{table}_")}


def fill(engine: Engine, at: datetime, jobs: int, status: str = "success") -> None:
    """Add archived jobs that finished at a time."""
    values = {
        "queue": "default",
        "job_type": "old",
        "payload": "null",
        "attempts": 1,
        "enqueued_at": at,
        "process_at": at,
        "status": status,
        "finished_at": at,
    }
    with engine.begin() as connection:
        rows = [{**values, "job_id": uuid7()} for _ in range(jobs)]
        connection.execute(insert(ArchivedJob.__table__), rows)


def count(engine: Engine, table: str = ARCHIVE) -> int:
    """Return the number of rows of a table."""
    with engine.connect() as connection:
        return connection.execute(text(f"SELECT count(*) FROM {table}")).scalar_one()


# The tables.


def test_the_migration_makes_the_first_partitions(parted: Engine) -> None:
    """Those of this month and the next three, and one for all other times; the rest is equal."""
    wanted = {month_name("archived_job", begin) for begin, _ in months(utcnow())}
    assert len(wanted) == 4
    assert names(parted) == wanted | {"archived_job_default"}
    assert check(parted.url).differences == ()


def test_the_names_and_bounds_of_months() -> None:
    """A month begins at midnight UTC; the year changes."""
    at = datetime(2026, 12, 31, 23, 30, tzinfo=UTC).astimezone()
    (begin, end), (_, last) = months(at, 1)
    assert (begin, end) == (datetime(2026, 12, 1, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC))
    assert last == datetime(2027, 2, 1, tzinfo=UTC)
    assert month_name("a", begin) == "a_2026_12"
    long, other = "ü" * 30 + "a", "ü" * 30 + "b"
    made = {month_name(long, begin), month_name(other, begin), default_name(long)}
    assert len(made) == 3
    assert all(len(name.encode()) <= 63 for name in made)


def test_jobs_of_every_kind_of_worker(parted: Engine, kind: Kind) -> None:
    """They are archived in the partition of the month, found, and retried from there."""
    handlers = Handlers()
    handlers("ok")(lambda _payload: None)
    handlers("bad")(lambda payload: fail("bad", payload))
    jobs = put(parted, "ok"), put(parted, "bad")
    kind.run_all(parted, handlers)
    month = month_name("archived_job", next(months(utcnow()))[0])
    assert count(parted, f"proletarian.{month}") == count(parted) == 2
    with Session(parted) as session, session.begin():
        assert session.get_one(ArchivedJob, jobs[0]).status == "success"
        details = manage.get_job(session, jobs[1])
        assert details is not None
        assert details.job.status == "failure"
        assert len(manage.list_jobs(session, status="archived").jobs) == 2
        assert len(manage.failures(session).groups) == 1
        assert manage.stats(session).queues["default"].failed == 1
        assert manage.retry_where(session, ArchivedJob.status == "failure") == 1
    with Session(parted) as session:
        assert session.get_one(ArchivedJob, jobs[1]).retried_at is not None
    assert kind.run_all(parted, handlers) == 1


def mapped(table: str) -> tuple[MetaData, dict[str, Any]]:
    """Map a pair of tables whose archive is partitioned."""

    class Base(DeclarativeBase):
        metadata = MetaData()

    by_month = {"__table_args__": {"postgresql_partition_by": "RANGE (finished_at)"}}
    job = type("OwnJob", (JobMixin, Base), {"__tablename__": table})
    archive: dict[str, Any] = {"__tablename__": f"archived_{table}", **by_month}
    archived = type("OwnArchivedJob", (ArchivedJobMixin, Base), archive)
    return Base.metadata, {"job_model": job, "archived_job_model": archived}


@pytest.mark.parametrize("table", ["mail", 'Od"d % :Mail', "m" * 54])
def test_mapped_archives(empty_database: URL, table: str) -> None:
    """``create_all()`` makes partitions; the key of the objects is the id, as of other archives."""
    metadata, models = mapped(table)
    engine = create_engine(empty_database)
    metadata.create_all(engine)
    with Session(engine) as session, session.begin():
        session.add(models["job_model"](job_type="mail"))
    run_all(engine, succeed, **models, running_job_model=None)
    archive = models["archived_job_model"]
    with Session(engine) as session:
        (job,) = session.scalars(select(archive))
        assert session.get(archive, job.job_id) is job
        partition = session.scalar(
            text("SELECT relname FROM pg_class WHERE oid = :n"),
            {"n": session.scalar(select(text("tableoid")).select_from(archive.__table__))},
        )
    assert partition == month_name(f"archived_{table}", next(months(utcnow()))[0])
    made = manage.make_partitions(engine, months=5, archived_job_model=archive)
    assert len(made) == 2
    assert manage.prune(engine, older_than=timedelta(0), archived_job_model=archive) == 1
    metadata.drop_all(engine)
    assert inspect(engine).get_table_names() == []
    engine.dispose()


def test_on_other_databases_a_mapped_archive_is_one_table() -> None:
    """As with all options of PostgreSQL."""
    metadata, models = mapped("mail")
    engine = create_engine("sqlite://")
    metadata.create_all(engine)
    assert set(inspect(engine).get_table_names()) == {"mail", "archived_mail"}
    with pytest.raises(NotImplementedError, match="only PostgreSQL partitions"):
        manage.make_partitions(engine, archived_job_model=models["archived_job_model"])
    engine.dispose()


def test_an_ordinary_archive_is_not_changed(engine: Engine) -> None:
    with pytest.raises(ValueError, match=r"archived_job does not exist, or is not partitioned"):
        manage.make_partitions(engine)
    assert manage.prune(engine, older_than=DAY) == 0
    assert names(engine) == set()
    key = inspect(engine).get_pk_constraint("archived_job", "proletarian")
    assert key["constrained_columns"] == ["job_id"]


# Making partitions.


def test_partitions_are_made_once(parted: Engine) -> None:
    """Also by several threads at once."""
    made: list[list[str]] = []

    def one() -> None:
        made.append(manage.make_partitions(parted, months=9))

    threads = [Thread(target=one) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 4
    assert sorted(name for each in made for name in each) == sorted(names(parted))[-7:-1]


def test_an_engine_with_autocommit(parted: Engine) -> None:
    engine = create_engine(parted.url, isolation_level="AUTOCOMMIT")
    assert len(manage.make_partitions(engine, months=4)) == 1
    assert manage.prune(engine, older_than=DAY) == 0
    engine.dispose()


def test_prune_makes_the_next_partitions(months_of_2026: Engine) -> None:
    manage.prune(months_of_2026, older_than=1000 * DAY, clock=clock)
    assert {"archived_job_2026_07", "archived_job_2026_08"} <= names(months_of_2026)


@in_a_loop
async def test_in_asyncio(parted: Engine) -> None:
    engine: AsyncEngine = create_async_engine(parted.url)
    assert len(await proletarian_asyncio.make_partitions(engine, months=4)) == 1
    old = utcnow() - 100 * DAY
    (name, *_) = manage.make_partitions(parted, months=1, clock=lambda: old)
    fill(parted, old, 3)
    assert await proletarian_asyncio.prune(engine, older_than=DAY) == 3
    assert name not in names(parted)
    await engine.dispose()


def test_jobs_that_finish_do_not_wait_for_new_partitions(parted: Engine) -> None:
    """Nor do new partitions wait for them."""
    with parted.connect() as other:
        other.execute(
            text(
                "INSERT INTO proletarian.archived_job (job_id, queue, job_type, payload, attempts,"
                " enqueued_at, process_at, status, finished_at)"
                " VALUES (gen_random_uuid(), '', '', '', 1, now(), now(), '', now())"
            )
        )
        assert len(manage.make_partitions(parted, months=4)) == 1
        other.commit()


def test_a_month_without_a_partition(months_of_2026: Engine) -> None:
    """Its jobs are in the default partition, and stay there; they are pruned there."""
    engine = months_of_2026
    late = datetime(2026, 8, 2, tzinfo=UTC)
    fill(engine, late, 7)
    assert count(engine, "proletarian.archived_job_default") == 7
    made = manage.make_partitions(engine, clock=lambda: late)
    assert made == ["archived_job_2026_09", "archived_job_2026_10", "archived_job_2026_11"]
    manage.prune(engine, older_than=DAY, clock=lambda: datetime(2026, 10, 1, tzinfo=UTC))
    assert count(engine) == 0
    assert "archived_job_default" in names(engine)


def test_a_worker_that_cannot_make_the_next_partition(parted: Engine) -> None:
    """It says so, once, and prunes."""
    _, (begin, _) = months(utcnow(), 1)
    with parted.begin() as connection:
        name = month_name("archived_job", begin)
        connection.execute(text(f"DROP TABLE proletarian.{name}"))
    fill(parted, begin, 1)
    fill(parted, utcnow() - 2 * DAY, 5)
    log = Log()
    with QueueWorker(parted, succeed, archive_retention=DAY, log=log):
        eventually(lambda: "archive-pruned" in log.events())
    (warning,) = log.data("partition-missing")
    assert "has jobs of that month" in warning["remedy"]
    assert count(parted) == 1


def test_an_archive_without_a_default_partition(parted: Engine) -> None:
    with parted.begin() as connection:
        connection.execute(text("DROP TABLE proletarian.archived_job_default"))
    assert len(manage.make_partitions(parted, months=4)) == 1


def test_locks_that_are_not_free(parted: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """No partition is made, and no error is raised; the next call makes it."""
    monkeypatch.setattr(partitions, "LOCK_TIMEOUT", 50)
    with parted.connect() as other:
        other.execute(text("SELECT count(*) FROM proletarian.archived_job_default"))
        assert manage.make_partitions(parted, months=4) == []
    assert len(manage.make_partitions(parted, months=4)) == 1


# Dropping partitions.


def test_prune_drops_whole_months(months_of_2026: Engine) -> None:
    """The month in which the limit is loses only its old rows."""
    engine = months_of_2026
    fill(engine, NOW - 40 * DAY, 5)  # April 7
    seen: list[int] = []
    deleted = manage.prune(engine, older_than=40 * DAY - MINUTE, clock=clock, progress=seen.append)
    assert deleted == seen[-1] == 10 + 20 + 30 + 5
    assert names(engine) >= {"archived_job_2026_04", "archived_job_2026_05"}
    assert not names(engine) & {f"archived_job_2026_0{n}" for n in (1, 2, 3)}
    assert count(engine) == 40 + 50
    assert manage.prune(engine, older_than=40 * DAY - MINUTE, clock=clock) == 0


@pytest.mark.parametrize("status", [None, "success"])
def test_what_cannot_be_dropped_is_deleted(months_of_2026: Engine, status: Any) -> None:
    """In a session's transaction, and if jobs of other statuses stay."""
    engine = months_of_2026
    before = names(engine)
    fill(engine, datetime(2026, 2, 5, tzinfo=UTC), 3, status="failure")
    if status is None:
        with Session(engine) as session, session.begin():
            deleted = manage.prune(session, older_than=20 * DAY, clock=clock)
        assert names(engine) == before
    else:
        deleted = manage.prune(engine, older_than=20 * DAY, status=status, clock=clock)
        assert names(engine) >= before
    assert deleted == 10 + 20 + 30 + 40 + 3 * (status is None)


def test_a_month_that_is_read(months_of_2026: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its rows are deleted; it is dropped when nobody reads it."""
    monkeypatch.setattr(partitions, "LOCK_TIMEOUT", 50)
    monkeypatch.setattr(sys.modules["sqlalchemy_proletarian.manage.prune"], "_PAUSE", 0.01)
    engine = months_of_2026
    with engine.connect() as other:
        other.execute(text("SELECT count(*) FROM proletarian.archived_job"))
        assert manage.prune(engine, older_than=20 * DAY, clock=clock) == 100
        assert count(engine) == 50
        assert "archived_job_2026_01" in names(engine)
    assert manage.prune(engine, older_than=20 * DAY, clock=clock) == 0
    assert "archived_job_2026_01" not in names(engine)


def test_several_prune_at_once(months_of_2026: Engine) -> None:
    """Each row is counted once."""
    counts: list[int] = []

    def one() -> None:
        counts.append(manage.prune(months_of_2026, older_than=20 * DAY, clock=clock))

    threads = [Thread(target=one) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(counts) == 100
    assert count(months_of_2026) == 50


def test_partitions_of_other_bounds(parted: Engine) -> None:
    """A partition that was attached by hand is dropped by its upper bound, in any time zone."""
    with parted.begin() as connection:
        connection.execute(
            text(
                "CREATE TABLE proletarian.before PARTITION OF proletarian.archived_job"
                " FOR VALUES FROM (MINVALUE) TO ('2026-05-01 02:00+02')"
            )
        )
        connection.execute(
            text(
                "CREATE TABLE proletarian.after PARTITION OF"
                " proletarian.archived_job FOR VALUES FROM ('2030-01-01 00:00+00') TO (MAXVALUE)"
            )
        )
        database = connection.engine.url.database
        connection.execute(text(f"ALTER DATABASE {database} SET timezone = 'Pacific/Chatham'"))
    fill(parted, datetime(2001, 1, 1, tzinfo=UTC), 4)
    limit = NOW - datetime(2026, 5, 1, tzinfo=UTC)
    assert manage.prune(parted, older_than=limit + MINUTE, clock=clock) == 4
    assert "before" in inspect(parted).get_table_names("proletarian")
    manage.prune(parted, older_than=limit, clock=clock)
    assert "before" not in inspect(parted).get_table_names("proletarian")
    assert "after" in inspect(parted).get_table_names("proletarian")


# By workers.


@pytest.mark.parametrize(
    ("retention", "dropped"),
    [
        (40 * DAY, True),
        ({"success": DAY, "failure": 40 * DAY, "cancelled": 3 * DAY}, True),
        ({"success": 40 * DAY, "failure": 400 * DAY}, False),
    ],
)
def test_a_worker_drops_months(parted: Engine, retention: Any, dropped: bool) -> None:
    """If jobs of every status are pruned; and it makes the partitions of the next months."""
    old = (utcnow() - 100 * DAY).replace(day=15)
    with parted.begin() as connection:
        last = sorted(names(parted))[-2]
        connection.execute(text(f"DROP TABLE proletarian.{last}"))
    made = manage.make_partitions(parted, months=1, clock=lambda: old)
    assert made
    fill(parted, old, 10)
    log = Log()
    with QueueWorker(parted, succeed, archive_retention=retention, log=log):
        eventually(lambda: "archive-pruned" in log.events())
    assert count(parted) == 0
    assert (made[0] in names(parted)) is not dropped
    assert last in names(parted)
    assert not {"partition-missing", "pruning-error"} & set(log.events())


def test_a_worker_waits_for_readers(parted: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """It deletes no rows of a month that is read, and drops it the next time."""
    monkeypatch.setattr(partitions, "LOCK_TIMEOUT", 50)
    monkeypatch.setattr(archive_pruning, "INTERVAL", 0.1)
    old = utcnow() - 100 * DAY
    manage.make_partitions(parted, months=1, clock=lambda: old)
    fill(parted, old, 10)
    worker = QueueWorker(parted, succeed, archive_retention=DAY)
    with parted.connect() as other:
        other.execute(text("SELECT count(*) FROM proletarian.archived_job"))
        with worker:
            job = put(parted, "job")
            eventually(lambda: count(parted) == 11)
            sleep(0.5)
            assert count(parted) == 11
            other.rollback()
            eventually(lambda: count(parted) == 1)
    with Session(parted) as session:
        assert session.get(ArchivedJob, job) is not None


@pytest.fixture
def user(parted: Engine) -> Iterator[Engine]:
    """Yield an engine of a role that may use the tables, but does not own them."""
    role = f"user_{uuid4().hex[:8]}"
    with parted.begin() as connection:
        connection.execute(text(f"CREATE ROLE {role} LOGIN"))
        connection.execute(text(f"GRANT USAGE ON SCHEMA proletarian TO {role}"))
        for table in ("job", "archived_job", "running", "paused_queue"):
            grant = f"GRANT SELECT, INSERT, UPDATE, DELETE ON proletarian.{table} TO {role}"
            connection.execute(text(grant))
    engine = create_engine(parted.url.set(username=role), poolclass=NullPool)
    yield engine
    engine.dispose()
    with parted.begin() as connection:
        connection.execute(text(f"DROP OWNED BY {role}"))
        connection.execute(text(f"DROP ROLE {role}"))


def test_a_role_that_does_not_own_the_archive(
    parted: Engine, user: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers run jobs, delete old rows one by one, and say once what is missing."""
    monkeypatch.setattr(archive_pruning, "INTERVAL", 0.05)
    with parted.begin() as connection:
        for name in sorted(names(parted))[1:-1]:
            connection.execute(text(f"DROP TABLE proletarian.{name}"))
    fill(parted, utcnow() - 100 * DAY, 10)
    log = Log()
    with QueueWorker(user, succeed, archive_retention=DAY, log=log):
        put(parted, "job")
        eventually(lambda: count(parted) == 1)
        sleep(0.3)
    (warning,) = log.data("partition-missing")
    assert warning["table"] == ARCHIVE
    assert "run 'proletarian partitions' as" in warning["remedy"]
    fill(parted, utcnow() - 100 * DAY, 10)
    assert manage.prune(user, older_than=DAY) == 10
    with pytest.raises(PrivilegeError, match=r"GRANT CREATE ON SCHEMA proletarian TO user_"):
        manage.make_partitions(user)
    assert len(manage.make_partitions(parted)) == 3


def test_a_history_reads_only_the_months_it_needs(months_of_2026: Engine) -> None:
    """Statements with a time leave out the other partitions."""
    at = ArchivedJob.finished_at
    statement = select(func.count()).where(at >= datetime(2026, 4, 1, tzinfo=UTC))
    with months_of_2026.connect() as connection:
        sql = str(statement.compile(connection, compile_kwargs={"literal_binds": True}))
        plan = "\n".join(connection.execute(text(f"EXPLAIN {sql}")).scalars())
    assert "archived_job_2026_05" in plan
    assert "archived_job_2026_03" not in plan
