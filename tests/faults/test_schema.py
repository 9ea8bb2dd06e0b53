"""Tables, privileges and servers that do not meet the library's needs, at the start and later."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from time import sleep
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import URL, Engine, NullPool, create_engine, text
from sqlalchemy.exc import DBAPIError, IntegrityError, ProgrammingError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqlalchemy_proletarian import (
    ArchivedJobMixin,
    Handlers,
    Job,
    JobMixin,
    PrivilegeError,
    ProletarianError,
    ReadOnlyDatabaseError,
    SchemaMismatchError,
    TablesMissingError,
    enqueue_many,
    enqueue_unique,
    manage,
    process_next_job,
)
from sqlalchemy_proletarian import asyncio as awaitable
from sqlalchemy_proletarian.models import SCHEMA
from tests.integration.kinds import KINDS, Kind
from tests.integration.support import SECOND, Log, archived, eventually, put, queued, succeed

from .server import Server, standby_of

ROLE = "app"


class Base(DeclarativeBase):
    """The declarative base of the application."""


class Errand(JobMixin, Base):
    """A job with a column of the application."""

    __tablename__ = "errand"
    __table_args__ = ({"schema": SCHEMA},)

    customer: Mapped[str | None]


class ArchivedErrand(ArchivedJobMixin, Base):
    """The archive of :class:`Errand`."""

    __tablename__ = "archived_errand"
    __table_args__ = ({"schema": SCHEMA},)

    customer: Mapped[str | None]


class Thing(Base):
    """Business data whose table is missing or differs from the model."""

    __tablename__ = "thing"

    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str | None]


def engine_of(url: URL) -> Engine:
    """Return an engine that does not pool connections."""
    return create_engine(url, poolclass=NullPool)


def execute(url: URL, *statements: str) -> None:
    """Execute statements as the owner of the tables, and commit each one."""
    settings = {"options": "-c default_transaction_read_only=off"}
    engine = create_engine(
        url, poolclass=NullPool, isolation_level="AUTOCOMMIT", connect_args=settings
    )
    with engine.connect() as connection:
        for statement in statements:
            connection.execute(text(statement))


@pytest.fixture(scope="module")
def server_of_the_module(_breakable: Server) -> Server:
    """Return the running server that the tests may break."""
    if not _breakable.running():
        _breakable.start()
    return _breakable


@pytest.fixture(scope="session")
def _template(_breakable: Server) -> str:
    """Return the name of a database with all tables and the documented privileges."""
    if not _breakable.running():
        _breakable.start()
    name = "proletarian_template"
    execute(_breakable.url(), f"CREATE DATABASE {name}", f"CREATE ROLE {ROLE} LOGIN")
    url = _breakable.url(database=name)
    execute(url, f"CREATE SCHEMA {SCHEMA}")
    engine = engine_of(url)
    Job.metadata.create_all(engine)
    Base.metadata.create_all(engine, tables=[Errand.__table__, ArchivedErrand.__table__])
    execute(
        url,
        f"GRANT USAGE ON SCHEMA {SCHEMA} TO {ROLE}",
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {SCHEMA} TO {ROLE}",
    )
    return name


@contextmanager
def fresh_database(server: Server, template: str) -> Iterator[URL]:
    """Yield the URL of a new database with all tables, for the owner of the tables."""
    name = f"proletarian_test_{uuid4().hex}"
    execute(server.url(), f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy")
    yield server.url(database=name)
    execute(server.url(), f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def owner(server_of_the_module: Server, _template: str) -> Iterator[URL]:
    """Yield the URL of a database for this test only, for the owner of the tables."""
    with fresh_database(server_of_the_module, _template) as url:
        yield url


@pytest.fixture
def url(owner: URL) -> URL:
    """Return the URL of the same database for the role that the library uses."""
    return owner.set(username=ROLE)


@pytest.fixture(scope="module")
def shared_database(server_of_the_module: Server, _template: str) -> Iterator[URL]:
    """Yield the URL of a shared database, for the owner; tests repair what they break."""
    with fresh_database(server_of_the_module, _template) as url:
        yield url


@dataclass(frozen=True)
class Drift:
    """A difference from the schema that the library needs, and the expected error.

    :param breaks: the statements that make the difference.
    :param repairs: the statements that revert it.
    :param says: parts of the error message.
    """

    name: str
    breaks: Sequence[str]
    repairs: Sequence[str]
    error: type[ProletarianError]
    says: Sequence[str]
    options: Any = None

    def __str__(self) -> str:
        return self.name


UPGRADE = "proletarian migrate upgrade --url"
CHECK = "proletarian migrate check --url"


def missing_tables(*tables: str) -> Drift:
    """Return the drift of missing tables."""
    return Drift(
        f"no {' nor '.join(tables)}",
        [f"ALTER TABLE {SCHEMA}.{table} RENAME TO gone_{table}" for table in tables],
        [f"ALTER TABLE {SCHEMA}.gone_{table} RENAME TO {table}" for table in tables],
        TablesMissingError,
        [*(f"{SCHEMA}.{table} does not exist" for table in tables), UPGRADE],
    )


def missing_columns(table: str, *columns: str, options: Any = None) -> Drift:
    """Return the drift of missing columns, as in tables of an older version."""
    return Drift(
        f"{table} without {' and '.join(columns)}",
        [f"ALTER TABLE {SCHEMA}.{table} RENAME {column} TO no_{column}" for column in columns],
        [f"ALTER TABLE {SCHEMA}.{table} RENAME no_{column} TO {column}" for column in columns],
        SchemaMismatchError,
        [*(f"column {name} of {SCHEMA}.{table} is missing" for name in columns), UPGRADE, CHECK],
        options,
    )


def retyped(table: str, column: str, type_: str, was: str, should: str) -> Drift:
    """Return the drift of a column with another type."""
    change = f"ALTER TABLE {SCHEMA}.{table} ALTER {column}"
    return Drift(
        f"{table}.{column} {type_}",
        [
            f"{change} DROP DEFAULT",
            f"{change} TYPE {type_} USING {column}::{type_}",
        ],
        [f"{change} TYPE {was} USING {column}::{was}"],
        SchemaMismatchError,
        [f"column {column} of {SCHEMA}.{table} is {type_}, should be {should}"],
    )


def revoked(table: str, privilege: str) -> Drift:
    """Return the drift of a role that lacks a privilege."""
    return Drift(
        f"no {privilege} on {table}",
        [f"REVOKE {privilege} ON {SCHEMA}.{table} FROM {ROLE}"],
        [f"GRANT {privilege} ON {SCHEMA}.{table} TO {ROLE}"],
        PrivilegeError,
        [
            f"the role {ROLE} lacks {privilege} on {SCHEMA}.{table}",
            f"GRANT {privilege} ON {SCHEMA}.{table} TO {ROLE}",
        ],
    )


ERRANDS = {"job_model": Errand, "archived_job_model": ArchivedErrand}
UNKNOWN_COLUMN = Drift(
    "a column that needs a value",
    [
        f"ALTER TABLE {SCHEMA}.archived_job ADD tenant integer DEFAULT 1 NOT NULL",
        f"ALTER TABLE {SCHEMA}.archived_job ALTER tenant DROP DEFAULT",
    ],
    [f"ALTER TABLE {SCHEMA}.archived_job DROP tenant"],
    SchemaMismatchError,
    ["column tenant of proletarian.archived_job takes no NULL, and gets no value"],
)
NO_USAGE = Drift(
    "no USAGE",
    [f"REVOKE USAGE ON SCHEMA {SCHEMA} FROM {ROLE}"],
    [f"GRANT USAGE ON SCHEMA {SCHEMA} TO {ROLE}"],
    PrivilegeError,
    [f"lacks USAGE on the schema {SCHEMA}", f"GRANT USAGE ON SCHEMA {SCHEMA} TO {ROLE}"],
)
READ_ONLY = Drift(
    "read-only",
    [
        "ALTER SYSTEM SET default_transaction_read_only = on",
        "SELECT pg_reload_conf(), pg_sleep(0.2)",
    ],
    ["ALTER SYSTEM RESET default_transaction_read_only", "SELECT pg_reload_conf()"],
    ReadOnlyDatabaseError,
    ["transactions are read-only", "connect to the primary", "target_session_attrs=read-write"],
)

AT_THE_START = [
    missing_tables("job"),
    missing_tables("archived_job"),
    missing_tables("running"),
    missing_tables("paused_queue"),
    missing_tables("job", "archived_job", "running"),
    missing_columns("job", "priority", "unique_key", "error"),
    missing_columns("archived_job", "error"),
    missing_columns("running", "batch_size"),
    missing_columns("errand", "customer", options=ERRANDS),
    retyped("job", "priority", "text", "smallint", "SMALLINT"),
    retyped("job", "job_id", "text", "uuid", "UUID"),
    retyped("job", "payload", "jsonb", "text", "TEXT"),
    retyped("archived_job", "finished_at", "text", "timestamptz", "TIMESTAMP WITH TIME ZONE"),
    UNKNOWN_COLUMN,
    NO_USAGE,
    *(revoked("job", privilege) for privilege in ("SELECT", "UPDATE", "DELETE")),
    revoked("archived_job", "INSERT"),
    *(revoked("running", privilege) for privilege in ("SELECT", "INSERT", "UPDATE", "DELETE")),
    revoked("paused_queue", "SELECT"),
]

ONE_OF_EACH_DRIVER = [kind for kind in KINDS if not kind.leased and kind.driver != "psycopg"]


@pytest.mark.parametrize("kind", ONE_OF_EACH_DRIVER, ids=str)
@pytest.mark.parametrize("drift", AT_THE_START, ids=str)
def test_drift_at_the_start(shared_database: URL, kind: Kind, drift: Drift) -> None:
    """A worker refuses to start on tables that it cannot use; the error names cause and remedy."""
    engine = engine_of(shared_database.set(username=ROLE))
    options = drift.options or {}
    execute(shared_database, *drift.breaks)
    try:
        with pytest.raises(drift.error) as raised:
            kind.worker(engine, succeed, **options).start()
        for part in drift.says:
            assert part in str(raised.value)
    finally:
        execute(shared_database, *drift.repairs)
    kind.worker(engine, succeed, **options).drain()


FUNCTION = (
    "CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN {body}; RETURN NEW; END'"
)
TRIGGER = (
    "CREATE TRIGGER {name} BEFORE INSERT ON proletarian.{table} "
    "FOR EACH ROW EXECUTE FUNCTION {name}()"
)

HARMLESS = {
    "other sorts of the same type": [
        "ALTER TABLE proletarian.job ALTER queue TYPE varchar(255), ALTER attempts TYPE bigint",
        "ALTER TABLE proletarian.archived_job ALTER finished_at TYPE timestamp",
    ],
    "domain": [
        "CREATE DOMAIN id AS uuid",
        "ALTER TABLE proletarian.job ALTER job_id TYPE id",
    ],
    "further columns": [
        "ALTER TABLE proletarian.job ADD tenant integer NOT NULL DEFAULT 1",
        "ALTER TABLE proletarian.archived_job ADD note text",
        "ALTER TABLE proletarian.archived_job ADD number integer GENERATED ALWAYS AS IDENTITY",
        "ALTER TABLE proletarian.archived_job ADD size int NOT NULL GENERATED ALWAYS AS (1) STORED",
        "ALTER TABLE proletarian.archived_job ADD tenant integer DEFAULT 1 NOT NULL",
    ],
    "trigger that fills a column": [
        "ALTER TABLE proletarian.archived_job ADD tenant integer NOT NULL",
        FUNCTION.format(name="fill", body="NEW.tenant = 1"),
        TRIGGER.format(name="fill", table="archived_job"),
    ],
    "view": [
        "ALTER TABLE proletarian.archived_job RENAME TO wide",
        "CREATE VIEW proletarian.archived_job AS SELECT * FROM proletarian.wide",
        "GRANT SELECT, INSERT ON proletarian.archived_job TO app",
    ],
    "privileges on columns": [
        "REVOKE UPDATE ON proletarian.job FROM app",
        "GRANT UPDATE (process_at, attempts, error) ON proletarian.job TO app",
    ],
}


@pytest.mark.parametrize("kind", ONE_OF_EACH_DRIVER, ids=str)
@pytest.mark.parametrize("changes", HARMLESS.values(), ids=HARMLESS.keys())
def test_harmless_drift(owner: URL, url: URL, kind: Kind, changes: Sequence[str]) -> None:
    """A worker runs on tables that differ from the models but still work."""
    execute(owner, *changes)
    engine = engine_of(url)
    put(engine, "job")
    assert kind.worker(engine, succeed).drain() == 1
    (job,) = archived(engine)
    assert job.status == "success"


# While workers run.

WHILE_RUNNING = [
    missing_tables("job"),
    missing_tables("archived_job"),
    missing_tables("running"),
    missing_tables("paused_queue"),
    missing_columns("job", "error"),
    UNKNOWN_COLUMN,
    revoked("archived_job", "INSERT"),
    READ_ONLY,
]

PATIENCE = 1.5
"""Seconds to watch workers that cannot work."""

MOST_ERRORS = 6
"""Errors that a worker may log meanwhile; its pauses start at a tenth of a second."""


class Workers:
    """A worker of each kind, each with its own queue, with its log and the jobs that it ran."""

    def __init__(self, url: URL) -> None:
        self.engine = engine_of(url)
        self.runs: Counter[tuple[str, str]] = Counter()
        self.logs = {str(kind): Log() for kind in KINDS}
        self.workers = [
            kind.worker(
                self.engine,
                self._handlers(),
                queues=str(kind),
                log=self.logs[str(kind)],
                polling_interval=SECOND / 20,
            )
            for kind in KINDS
        ]

    def _handlers(self) -> Handlers:
        handlers = Handlers(retry={"retries": 1})

        @handlers("alone")
        def alone(payload: str) -> None:
            self.runs["alone", payload] += 1

        @handlers("session")
        def with_session(payload: str, session: Session) -> None:
            session.execute(text("SELECT 1"))
            self.runs["session", payload] += 1

        return handlers

    def put(self) -> None:
        """Enqueue a job of each type for each worker."""
        for name in self.logs:
            for job_type in ("alone", "session"):
                put(self.engine, job_type, name, queue=name)

    def errors(self, name: str) -> list[BaseException]:
        """Return the errors that a worker logged outside of jobs."""
        return [data["error"] for data in self.logs[name].data("polling-error")]


@contextmanager
def running_workers(url: URL) -> Iterator[Workers]:
    """Start a worker of each kind."""
    workers = Workers(url)
    with ExitStack() as stack:
        for worker in workers.workers:
            stack.enter_context(worker)
        yield workers


@pytest.mark.parametrize("drift", WHILE_RUNNING, ids=str)
def test_drift_under_running_workers(owner: URL, url: URL, drift: Drift) -> None:
    """Running workers log the problem, retry with pauses, and continue after the repair."""
    with running_workers(url) as workers:
        workers.put()
        eventually(lambda: len(archived(workers.engine)) == 2 * len(KINDS))
        workers.runs.clear()
        with_lock = f"LOCK TABLE {SCHEMA}.job IN ACCESS EXCLUSIVE MODE; "
        enqueued = [
            f"INSERT INTO {SCHEMA}.job (job_id, queue, job_type, payload, attempts, enqueued_at, "
            f"process_at) VALUES (gen_random_uuid(), '{name}', '{job_type}', '\"{name}\"', 0, "
            f"now(), now())"
            for name in workers.logs
            for job_type in ("alone", "session")
        ]
        try:
            # Workers must not see the jobs before the drift. ALTER SYSTEM cannot run in a
            # transaction.
            if drift is READ_ONLY:
                execute(owner, *drift.breaks)
                execute(owner, *enqueued)
            else:
                execute(owner, with_lock + "; ".join([*enqueued, *drift.breaks]))
            sleep(PATIENCE)
            for name in workers.logs:
                errors = workers.errors(name)
                assert errors, name
                assert len(errors) <= MOST_ERRORS, name
                assert {type(error) for error in errors} == {drift.error}, name
                for part in drift.says:
                    assert part in str(errors[-1]), name
            assert all(runs == 1 for runs in workers.runs.values())
        finally:
            execute(owner, *drift.repairs)
        eventually(lambda: not queued(workers.engine))
    jobs = archived(workers.engine)
    assert len(jobs) == 4 * len(KINDS)
    assert {(job.status, job.attempts, job.error) for job in jobs} == {("success", 1, None)}
    assert all(runs <= 2 for runs in workers.runs.values())
    with workers.engine.connect() as connection:
        assert connection.scalar(text(f"SELECT count(*) FROM {SCHEMA}.running")) == 0


def test_started_on_a_standby(server_of_the_module: Server, owner: URL) -> None:
    """A worker that starts on a standby logs the remedy, and works after the promotion."""
    Workers(owner).put()
    with standby_of(server_of_the_module) as standby:
        url = standby.url(database=str(owner.database))
        eventually(lambda: len(queued(engine_of(url))) == 2 * len(KINDS))
        with running_workers(url) as workers:
            sleep(PATIENCE)
            for name in workers.logs:
                errors = workers.errors(name)
                assert 0 < len(errors) <= MOST_ERRORS
                assert {type(error) for error in errors} == {ReadOnlyDatabaseError}
                assert "the server is a standby: connect to the primary" in str(errors[0])
            standby.promote()
            eventually(lambda: not queued(workers.engine))
        jobs = archived(workers.engine)
        assert len(jobs) == 2 * len(KINDS)
        assert {(job.status, job.attempts) for job in jobs} == {("success", 1)}


# Producers and operators.


def call_enqueue_many(session: Session) -> Any:
    return enqueue_many(session, [("job", 1)])


def call_enqueue_unique(session: Session) -> Any:
    return enqueue_unique(session, "job", unique_key="key")


def call_cancel(session: Session) -> Any:
    return manage.cancel(session, JOB)


def call_process_next_job(session: Session) -> Any:
    return process_next_job(session, succeed)


JOB = uuid4()
ASYNC_VARIANTS: dict[Callable[[Session], Any], Callable[[AsyncSession], Any]] = {
    call_enqueue_many: lambda session: awaitable.enqueue_many(session, [("job", 1)]),
    call_enqueue_unique: lambda session: awaitable.enqueue_unique(session, "job", unique_key="key"),
    call_cancel: lambda session: awaitable.cancel(session, JOB),
    call_process_next_job: lambda session: awaitable.process_next_job(session, succeed),
}
ALL = list(ASYNC_VARIANTS)
INSERTS = [call_enqueue_many, call_enqueue_unique]
ENDS = [call_cancel, call_process_next_job]


@dataclass(frozen=True)
class Problem:
    """A problem that makes calls fail, and the expected error."""

    name: str
    changes: Sequence[str]
    calls: Sequence[Callable[[Session], Any]]
    error: type[ProletarianError]
    says: Sequence[str]

    def __str__(self) -> str:
        return self.name


PROBLEMS = [
    Problem(
        "job is missing",
        ["DROP TABLE proletarian.job"],
        ALL,
        TablesMissingError,
        ["proletarian.job", UPGRADE],
    ),
    Problem(
        "archived_job is missing",
        ["DROP TABLE proletarian.archived_job"],
        ENDS,
        TablesMissingError,
        ["proletarian.archived_job", UPGRADE],
    ),
    Problem(
        "column is missing",
        ["ALTER TABLE proletarian.job DROP priority"],
        [*INSERTS, call_process_next_job],
        SchemaMismatchError,
        ["priority", UPGRADE, CHECK],
    ),
    Problem(
        "column has another type",
        ["ALTER TABLE proletarian.job ALTER attempts TYPE boolean USING false"],
        [*INSERTS, call_process_next_job],
        SchemaMismatchError,
        ["boolean", UPGRADE, CHECK],
    ),
    Problem(
        "column of the archive has another type",
        [
            "DROP INDEX proletarian.ix_archived_job_failed",
            "ALTER TABLE proletarian.archived_job ALTER status TYPE boolean USING true",
        ],
        ENDS,
        SchemaMismatchError,
        ["status", UPGRADE, CHECK],
    ),
    Problem(
        "column needs a value",
        [
            "ALTER TABLE proletarian.job ADD tenant integer DEFAULT 1 NOT NULL",
            "ALTER TABLE proletarian.job ALTER tenant DROP DEFAULT",
        ],
        INSERTS,
        SchemaMismatchError,
        ["tenant", UPGRADE, CHECK],
    ),
    Problem(
        "index is missing",
        ["DROP INDEX proletarian.ux_job_unique_key"],
        [call_enqueue_unique],
        SchemaMismatchError,
        ["ON CONFLICT", UPGRADE, CHECK],
    ),
    Problem(
        "no INSERT",
        ["REVOKE INSERT ON proletarian.job FROM app"],
        INSERTS,
        PrivilegeError,
        ["permission denied for table job", "INSERT ON proletarian.job TO app"],
    ),
    Problem(
        "no DELETE",
        ["REVOKE DELETE ON proletarian.job FROM app"],
        ENDS,
        PrivilegeError,
        ["permission denied for table job", "GRANT SELECT, UPDATE, DELETE ON proletarian.job"],
    ),
    Problem(
        "no USAGE",
        ["REVOKE USAGE ON SCHEMA proletarian FROM app"],
        ALL,
        PrivilegeError,
        ["permission denied for schema", "GRANT USAGE ON SCHEMA proletarian TO app"],
    ),
    Problem(
        "read-only",
        ["ALTER ROLE app SET default_transaction_read_only = on"],
        ALL,
        ReadOnlyDatabaseError,
        ["read-only transaction", "connect to the primary"],
    ),
]


@pytest.fixture
def _writable(owner: URL) -> Iterator[None]:
    yield
    execute(owner, f"ALTER ROLE {ROLE} RESET default_transaction_read_only")


@pytest.mark.usefixtures("_writable")
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_calls_that_fail_name_the_remedy(owner: URL, url: URL, problem: Problem) -> None:
    """A function of the library that fails names the cause and the remedy."""
    columns = "job_id, queue, job_type, payload, attempts, enqueued_at, process_at"
    waiting = f"'{JOB}', 'default', 'job', 'null', 0, now(), now()"
    execute(owner, f"INSERT INTO proletarian.job ({columns}) VALUES ({waiting})", *problem.changes)
    messages = []
    engine = engine_of(url)
    for call in problem.calls:
        with Session(engine) as session, pytest.raises(problem.error) as raised:
            call(session)
        messages.append(str(raised.value))

    async def call_async_variants() -> None:
        engine = create_async_engine(url.set(drivername="postgresql+asyncpg"), poolclass=NullPool)
        for call in problem.calls:
            async with AsyncSession(engine) as session:
                with pytest.raises(problem.error) as raised:
                    await ASYNC_VARIANTS[call](session)
            messages.append(str(raised.value))

    asyncio.run(call_async_variants())
    assert len(messages) == 2 * len(problem.calls)
    for message in messages:
        for part in problem.says:
            assert part in message


# Errors that the library does not cause.


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_an_sql_error_of_a_handler_fails_its_attempt_only(owner: URL, url: URL, kind: Kind) -> None:
    """An error of a handler's own SQL fails its attempt; other jobs run."""
    execute(owner, "CREATE TABLE thing (id integer)")
    handlers = Handlers()

    @handlers("select")
    def select_it(payload: Any, session: Session) -> None:
        session.execute(text("SELECT * FROM no_such_table"))

    @handlers("add")
    def add_it(payload: Any, session: Session) -> None:
        session.add(Thing(text="no such column"))

    @handlers("flush")
    def flush_it(payload: Any, session: Session) -> None:
        session.add(Thing(text="no such column"))
        session.flush()

    @handlers("write")
    def write_it(payload: Any, session: Session) -> None:
        session.execute(text("INSERT INTO thing VALUES (1)"))

    @handlers("enqueue")
    def enqueue_it(payload: Any, session: Session) -> None:
        execute(owner, "DROP TABLE IF EXISTS proletarian.errand")
        enqueue_many(session, ["errand"], job_model=Errand)

    @handlers("fine")
    def fine(payload: Any, session: Session) -> None:
        session.execute(text("SELECT 1"))

    engine = engine_of(url)
    for handler in handlers:
        put(engine, handler.job_type)
    log = Log()
    kind.worker(engine, handlers, log=log).drain()
    ended = {job.job_type: job for job in archived(engine)}
    assert ended.pop("fine").status == "success"
    assert {(job.status, job.attempts) for job in ended.values()} == {("failure", 1)}
    assert "no_such_table" in ended["select"].error
    assert "polling-error" not in log.events()
    for job in ended.values():
        assert "DatabaseNotReadyError" not in job.error


def test_errors_of_an_autoflush(owner: URL, url: URL) -> None:
    """An error in flushing the caller's own objects does not blame the job table."""
    with Session(engine_of(url)) as session:
        session.add(Thing(text="no such table"))
        with pytest.raises(ProgrammingError, match="thing"):
            enqueue_unique(session, "job", unique_key="key")


@pytest.mark.parametrize(
    ("raises", "error"),
    [
        ("PERFORM 1 FROM no_such_table", ProgrammingError),
        ("RAISE insufficient_privilege", ProgrammingError),
        ("RAISE not_null_violation", IntegrityError),
        ("RAISE read_only_sql_transaction", DBAPIError),
    ],
)
def test_errors_of_triggers(owner: URL, url: URL, raises: str, error: type[Exception]) -> None:
    """An error in a trigger of the application does not blame the job table."""
    execute(
        owner,
        FUNCTION.format(name="audit", body=raises),
        TRIGGER.format(name="audit", table="job"),
    )
    with Session(engine_of(url)) as session, pytest.raises(error):
        enqueue_many(session, [("job", 1)])

    async def awaited() -> None:
        engine = create_async_engine(url.set(drivername="postgresql+asyncpg"), poolclass=NullPool)
        async with AsyncSession(engine) as session:
            with pytest.raises(error):
                await awaitable.enqueue_many(session, [("job", 1)])

    asyncio.run(awaited())
