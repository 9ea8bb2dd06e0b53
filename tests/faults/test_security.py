"""Least-privilege roles, text that is never executed as SQL, and payloads that are only data.

The roles are created with the GRANT statements from the documentation.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL, Engine, NullPool, create_engine, event, func, select, text
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.orm import Session

import sqlalchemy_proletarian
from sqlalchemy_proletarian import (
    ArchivedJob,
    Handlers,
    Job,
    LimitPlace,
    PausedQueue,
    PrivilegeError,
    RecurringJob,
    RunningJob,
    enqueue,
    enqueue_many,
    enqueue_unique,
    manage,
    process_next_job,
)
from tests.integration.kinds import KINDS, Kind, inner
from tests.integration.support import (
    Log,
    archived,
    only_archived,
    only_queued,
    put,
    queued,
    succeed,
)

from .server import Server

ROOT = Path(__file__).parents[2]
TABLES = {
    "job": Job,
    "archived_job": ArchivedJob,
    "running": RunningJob,
    "paused_queue": PausedQueue,
    "recurring": RecurringJob,
    "limit_place": LimitPlace,
}
NAMES = ("producer", "worker", "operator", "reader")


def documented_grants() -> list[str]:
    """Return the GRANT statements from the documentation."""
    page = (ROOT / "docs" / "howto" / "privileges.md").read_text()
    (block,) = re.findall(r"```sql\n(.*?)```", page, re.DOTALL)
    return [statement.strip() for statement in block.split(";") if statement.strip()]


def engine_of(url: URL, role: str) -> Engine:
    """Return an engine that connects as ``role``."""
    return create_engine(url.set(username=role), poolclass=NullPool)


@pytest.fixture(scope="module")
def _roles(_breakable: Server) -> Iterator[None]:
    if not _breakable.running():
        _breakable.start()
    owner = create_engine(_breakable.url(), poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with owner.connect() as connection:
        for role in NAMES:
            connection.execute(text(f"CREATE ROLE {role} LOGIN"))
        for statement in documented_grants():
            connection.execute(text(statement))
    yield
    with owner.connect() as connection:
        for role in NAMES:
            connection.execute(text(f"DROP OWNED BY {role}"))
            connection.execute(text(f"DROP ROLE {role}"))


@pytest.fixture
def role(server: Server, engine: Engine, _roles: None) -> Callable[[str], Engine]:
    """Return a function that returns an engine connecting as a given role."""
    return lambda name: engine_of(server.url(), name)


# Roles.


@pytest.mark.usefixtures("_roles")
def test_the_documentation_grants_no_more_than_is_needed(engine: Engine) -> None:
    """The documentation grants each role only the privileges that its text names."""
    expected = {
        "producer": {"job": {"INSERT"}},
        "worker": {
            "job": {"SELECT", "UPDATE", "DELETE"},
            "archived_job": {"SELECT", "INSERT"},
            "running": {"SELECT", "INSERT", "UPDATE", "DELETE"},
            "paused_queue": {"SELECT"},
            "recurring": {"SELECT", "INSERT", "UPDATE", "DELETE"},
            "limit_place": {"SELECT", "INSERT", "UPDATE", "DELETE"},
        },
        "operator": {
            "job": {"SELECT", "INSERT", "UPDATE", "DELETE"},
            "archived_job": {"SELECT", "INSERT", "UPDATE", "DELETE"},
            "running": {"SELECT"},
            "paused_queue": {"SELECT", "INSERT", "DELETE"},
            "recurring": {"SELECT", "INSERT", "UPDATE", "DELETE"},
        },
        "reader": {table: {"SELECT"} for table in TABLES},
    }
    with engine.connect() as connection:
        granted: dict[str, dict[str, set[str]]] = {}
        for grantee, table, privilege in connection.execute(
            text(
                "SELECT grantee, table_name, privilege_type "
                "FROM information_schema.role_table_grants WHERE grantee = ANY(:roles)"
            ),
            {"roles": list(NAMES)},
        ):
            granted.setdefault(grantee, {}).setdefault(table, set()).add(privilege)
    assert granted == expected


def test_producer(engine: Engine, role: Callable[[str], Engine]) -> None:
    """A role with only INSERT can enqueue; errors name the privileges that other calls need."""
    producer = role("producer")
    with Session(producer) as session, session.begin():
        enqueue(session, "one", {"month": "May"}, priority=1)
        enqueue(session, "another")
        enqueue_many(session, [("many", n) for n in range(3)])
    assert len(queued(engine)) == 5
    denied = pytest.raises(ProgrammingError, match="permission denied for table job")
    with Session(producer) as session, denied:
        session.scalars(select(Job)).all()
    job_id = queued(engine)[0].job_id
    calls: list[tuple[str, Callable[[Session], Any]]] = [
        ("SELECT", lambda session: enqueue_unique(session, "one", unique_key="a")),
        ("SELECT, UPDATE, DELETE", lambda session: manage.cancel(session, job_id)),
        ("SELECT, UPDATE, DELETE", lambda session: process_next_job(session, succeed)),
    ]
    for privileges, call in calls:
        with Session(producer) as session, pytest.raises(PrivilegeError) as raised:
            call(session)
        assert re.search(
            rf"GRANT .*{privileges}.* ON proletarian.job TO producer", str(raised.value)
        )
    assert len(queued(engine)) == 5


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_worker(engine: Engine, role: Callable[[str], Engine], kind: Kind) -> None:
    """The worker role of the documentation can run, retry, fail and postpone jobs.

    It may not enqueue: a handler that does so fails.
    """
    handlers = Handlers(retry={"retries": 1})

    @handlers("fine")
    def fine(payload: Any, session: Session, job: Job) -> None:
        session.execute(select(1))

    @handlers("fails")
    def fails(payload: Any) -> None:
        raise ValueError

    @handlers("enqueues")
    def enqueues(payload: Any, session: Session) -> None:
        enqueue(session, "more")

    for job_type in ("fine", "fails", "enqueues", "unknown"):
        put(engine, job_type)
    log = Log()
    worker = kind.worker(role("worker"), handlers, log=log)
    worker.drain()
    assert inner(worker, role("worker")).url.username == "worker"
    assert {job.job_type: (job.status, job.attempts) for job in archived(engine)} == {
        "fine": ("success", 1),
        "fails": ("failure", 2),
        "enqueues": ("failure", 2),
    }
    assert only_queued(engine).job_type == "unknown"
    assert "polling-error" not in log.events()


@pytest.mark.parametrize("name", ["producer", "reader", "operator"])
def test_no_worker(engine: Engine, role: Callable[[str], Engine], name: str) -> None:
    """A worker with another role does not start; the error names the missing GRANTs."""
    put(engine, "job")
    with pytest.raises(PrivilegeError, match=rf"GRANT .* TO {name}"):
        KINDS[0].worker(role(name), succeed).start()
    assert only_queued(engine).attempts == 0


def test_operator(engine: Engine, role: Callable[[str], Engine]) -> None:
    """The operator role can call every function of ``manage``."""
    job_id = put(engine, "job")
    operator = role("operator")
    with Session(operator) as session, session.begin():
        assert manage.cancel(session, job_id, reason="ordered twice") == "cancelled"
    assert only_archived(engine).error == "ordered twice"
    with Session(operator) as session, session.begin():
        assert manage.pause(session, "default") and manage.resume(session, "default")
        new_id = manage.retry(session, job_id)
        assert manage.reschedule(session, new_id, process_in=timedelta(0)) == "rescheduled"
        assert manage.stats(session).queues["default"].due == 1
        assert manage.running(session) == []
        assert manage.discard(session, new_id) == "discarded"
    assert manage.prune(operator, older_than=timedelta(0)) == 2
    assert archived(engine) == []


def test_a_worker_that_prunes(engine: Engine, role: Callable[[str], Engine]) -> None:
    """The worker role needs two more privileges, which the error names."""
    worker = KINDS[0].worker(role("worker"), succeed, archive_retention=timedelta(days=1))
    with pytest.raises(PrivilegeError, match=r"GRANT UPDATE, DELETE ON .*archived_job TO worker"):
        worker.start()


def test_reader(engine: Engine, role: Callable[[str], Engine]) -> None:
    """The reader role can read every table and change none."""
    job_id = put(engine, "job")
    reader = role("reader")
    with Session(reader) as session:
        for model in TABLES.values():
            session.scalar(select(func.count()).select_from(model))
        assert session.scalars(select(Job.job_id)).all() == [job_id]
    for call in (
        lambda session: enqueue_many(session, [("job", 1)]),
        lambda session: enqueue_unique(session, "job", unique_key="a"),
        lambda session: manage.cancel(session, job_id),
        lambda session: process_next_job(session, succeed),
    ):
        with Session(reader) as session, pytest.raises(PrivilegeError, match="TO reader"):
            call(session)
    assert only_queued(engine).job_id == job_id


# Injection.

MARK = "Ḿark"
HOSTILE = f"{MARK}'; DROP TABLE proletarian.job; -- \" %s %(x)s :x {{x}} $1 \\ \n\t"


@contextmanager
def statements_of(engines: set[Engine]) -> Iterator[list[str]]:
    """Yield a list that collects the statements executed during the block."""
    statements: list[str] = []

    def record(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        statements.append(statement)

    for engine in engines:
        event.listen(engine, "before_cursor_execute", record)
    yield statements
    for engine in engines:
        event.remove(engine, "before_cursor_execute", record)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_no_text_of_a_job_is_sql(engine: Engine, kind: Kind) -> None:
    """Names, payloads, keys, reasons and errors are always bound parameters."""
    handlers = Handlers(retry={"retries": 1})
    name = HOSTILE
    seen: list[Any] = []

    @handlers(name)
    def hostile(payload: Any, session: Session, job: Job) -> None:
        seen.append((payload, job.queue))
        if payload == [HOSTILE]:
            raise ValueError(HOSTILE)

    worker = kind.worker(engine, handlers, queues=[name], name=HOSTILE)
    with statements_of({engine, inner(worker, engine)}) as statements:
        with Session(engine) as session, session.begin():
            enqueue(session, name, HOSTILE, queue=name)
            enqueue_many(session, [(name, [HOSTILE])], queue=name)
            assert enqueue_unique(
                session, name, {HOSTILE: 1}, queue=name, unique_key=HOSTILE
            ).created
            cancelled_id = enqueue(session, name, queue=name).job_id
        with Session(engine) as session, session.begin():
            manage.cancel(session, cancelled_id, reason=HOSTILE)
        worker.drain()
    assert len(statements) > 8
    assert [statement for statement in statements if MARK in statement] == []
    jobs = archived(engine)
    assert sorted(job.status for job in jobs) == ["cancelled", "failure", "success", "success"]
    assert {(job.queue, job.job_type) for job in jobs} == {(name, name)}
    assert (HOSTILE, name) in seen
    assert ({HOSTILE: 1}, name) in seen
    (cancelled,) = [job for job in jobs if job.status == "cancelled"]
    assert cancelled.error == HOSTILE
    (failed,) = [job for job in jobs if job.status == "failure"]
    assert failed.error.endswith(f"ValueError: {HOSTILE}".rstrip())


# Payloads.

CODE = [
    '{"py/reduce": [{"py/function": "os.system"}, {"py/tuple": ["false"]}]}',
    '{"__class__": "os.system", "__reduce__": ["false"]}',
    "!!python/object/apply:os.system ['false']",
    "cos\nsystem\n(S'false'\ntR.",
    "__import__('os').system('false')",
]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_payloads_are_data(engine: Engine, kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    """Payload text that other libraries would execute is a value or is rejected, never called."""
    called: list[Any] = []
    monkeypatch.setattr("os.system", called.append)
    handlers = Handlers()
    seen: list[Any] = []

    @handlers("job")
    def job(payload: Any) -> None:
        seen.append(payload)

    with Session(engine) as session, session.begin():
        session.add_all(Job(job_type="job", payload=payload) for payload in CODE)
    kind.run_all(engine, handlers)
    ended = {job.payload: job for job in archived(engine)}
    assert ended.keys() == set(CODE)
    for payload, job in ended.items():
        assert job.status == ("success" if payload.startswith("{") else "failure")
    assert len(seen) == 2
    assert called == []


def test_no_code_in_payloads() -> None:
    """The library imports and calls nothing that turns data into code."""
    package = Path(sqlalchemy_proletarian.__file__).parent
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names: set[str] = set()
            if isinstance(node, ast.Import):
                names = {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names = {(node.module or "").partition(".")[0]}
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                names = {node.func.id}
            wrong = names & {"pickle", "marshal", "shelve", "dill", "yaml", "eval", "exec"}
            assert not wrong, f"{path.name} uses {wrong}"


# Stored error texts.

PRIVATE = "card 4711"


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize(
    ("format_error", "stored"),
    [
        (lambda error: None, None),
        (lambda error: "", None),
        (lambda error: type(error).__name__, "LookupError"),
        (lambda error: str(error).replace(PRIVATE, "card …"), "no card …"),
        (lambda error: 1 / 0, "LookupError"),
        (lambda error: 4711, "LookupError"),
    ],
    ids=["nothing", "empty", "type", "redacted", "raises", "no text"],
)
def test_redacted_errors(engine: Engine, kind: Kind, format_error: Any, stored: str | None) -> None:
    """Only the text that ``format_error`` returns is stored, also before a retry."""
    handlers = Handlers()
    retried = {"retries": 1, "delays": [3_600_000]}

    @handlers("once")
    def once(payload: Any, session: Session) -> None:
        raise LookupError(f"no {PRIVATE}")

    handlers("again", retry=retried)(once.function)
    put(engine, "once")
    put(engine, "again")
    kind.run_all(engine, handlers, format_error=format_error)
    assert (only_archived(engine).status, only_archived(engine).error) == ("failure", stored)
    assert (only_queued(engine).attempts, only_queued(engine).error or None) == (1, stored)
