"""What the library executes on large tables: each statement uses an index, whatever it is.

The statements are recorded while workers run and operators look, so a new one is among them. Each
is then explained with the parameters that it had.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from time import sleep
from typing import Any, NamedTuple
from unittest import mock

import pytest
from sqlalchemy import URL, Connection, Engine, create_engine, event, text
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import (
    ArchivedJob,
    Handlers,
    Job,
    JobNotFinishedError,
    QueueWorker,
    RetryStrategy,
    Snooze,
    enqueue,
    enqueue_many,
    enqueue_unique,
    manage,
    utcnow,
)
from sqlalchemy_proletarian.dashboard.options import JobTables
from sqlalchemy_proletarian.dashboard.overview import SPANS, read_overview
from sqlalchemy_proletarian.database.prepared import PreparedStatement
from sqlalchemy_proletarian.migrate import upgrade

from .support import MINUTE, SECOND, fail, succeed

ROWS = 50_000
"""Of each kind: jobs that are scheduled, jobs that are due in another queue, and archived jobs."""

FILL = f"""
    INSERT INTO proletarian.job
        (job_id, queue, job_type, payload, attempts, enqueued_at, process_at, unique_key)
    SELECT uuidv7(), CASE WHEN n % 2 = 0 THEN 'default' ELSE 'backlog' END, 'ok', 'null', 0, now(),
           now() + CASE WHEN n % 2 = 0 THEN 1 ELSE -1 END * n * interval '1 second',
           CASE WHEN n % 10 = 0 THEN 'key ' || n END
    FROM generate_series(1, {2 * ROWS}) n;
    INSERT INTO proletarian.archived_job
        (job_id, queue, job_type, payload, attempts, enqueued_at, process_at, status, finished_at)
    SELECT uuidv7(), 'default', 'ok', 'null', 1, now(), now(),
           CASE WHEN n % 100 = 0 THEN 'failure' ELSE 'success' END, now() - n * interval '1 second'
    FROM generate_series(1, {ROWS}) n;
"""
LARGE = {"job", "archived_job"}


class Sent(NamedTuple):
    """A statement that was executed, and what it was prepared as if its text is an EXECUTE."""

    statement: str
    parameters: Any
    prepared: str | None = None

    def plan(self, connection: Connection) -> Any:
        """Return the plan."""
        explain = "EXPLAIN (FORMAT JSON) " + self.statement
        if self.prepared is None:
            (row,) = connection.exec_driver_sql(explain, self.parameters)
        else:
            name = self.statement.split()[1]
            connection.exec_driver_sql(f"PREPARE {name} AS {self.prepared}".replace("%", "%%"))
            (row,) = connection.exec_driver_sql(explain.replace("%", "%%"))
            connection.exec_driver_sql(f"DEALLOCATE {name}")
        plan = row[0] if isinstance(row[0], list) else json.loads(row[0])
        return plan[0]["Plan"]


@pytest.fixture(scope="module", params=["analyzed", "statistics of empty tables"])
def large(request: pytest.FixtureRequest, server_url: URL) -> Iterator[Engine]:
    """Yield an engine on large tables, with statistics and with those of empty tables."""
    admin = create_engine(server_url, isolation_level="AUTOCOMMIT")
    name = "proletarian_plans_" + request.param.split()[0]
    with admin.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    url = server_url.set(database=name)
    upgrade(url)
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        for table in LARGE:
            connection.execute(
                text(f"ALTER TABLE proletarian.{table} SET (autovacuum_enabled = false)")
            )
        connection.execute(text("ANALYZE"))
        connection.execute(text(FILL.replace(":", r"\:")))
        if request.param == "analyzed":
            connection.execute(text("ANALYZE"))
    engine.dispose()
    engine = create_engine(url)
    yield engine
    engine.dispose()
    with admin.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    admin.dispose()


@contextmanager
def recorded(engine: Engine) -> Iterator[list[Sent]]:
    """Yield a list of the statements on the large tables that are executed in the block."""
    sent: dict[str, Sent] = {}

    def keep(_c: Any, _cursor: Any, statement: str, parameters: Any, _x: Any, many: bool) -> None:
        first = parameters[0] if many else parameters
        if re.match(r"\s*(SELECT|WITH|INSERT|UPDATE|DELETE)", statement):
            sent[statement] = Sent(statement, first)

    call, prepare = PreparedStatement.call, PreparedStatement.__init__

    def prepared(self: Any, connection: Any, compiled: Any) -> None:
        prepare(self, connection, compiled)
        self.text = str(compiled)

    def called(self: Any, values: Any) -> str:
        execute = call(self, values)
        sent[self.text] = Sent(execute, None, self.text)
        return execute

    found: list[Sent] = []
    event.listen(engine, "before_cursor_execute", keep)
    with (
        mock.patch.object(PreparedStatement, "__init__", prepared),
        mock.patch.object(PreparedStatement, "call", called),
    ):
        yield found
    event.remove(engine, "before_cursor_execute", keep)
    found += sent.values()


def nodes(plan: Any, *, limited: bool = False) -> Iterator[tuple[Any, bool]]:
    """Yield the nodes of a plan, and whether a LIMIT stops them."""
    limited = limited or plan["Node Type"] == "Limit"
    yield plan, limited
    for child in plan.get("Plans", ()):
        is_stopped = limited and plan["Node Type"] not in {"Sort", "Aggregate"}
        yield from nodes(child, limited=is_stopped)


def check(engine: Engine, sent: Sequence[Sent]) -> dict[str, set[str]]:
    """Fail if a statement reads a whole large table; return the statements by index."""
    uses: dict[str, set[str]] = {}
    wrong: list[str] = []
    with engine.connect() as connection:
        for each in sent:
            try:
                plan = each.plan(connection)
            finally:
                connection.rollback()
            for node, limited in nodes(plan):
                index = node.get("Index Name")
                statement = " ".join((each.prepared or each.statement).split())
                if index is not None:
                    uses.setdefault(index, set()).add(statement)
                is_whole = node["Node Type"] == "Seq Scan" and node["Relation Name"] in LARGE
                if (
                    index in INDEXES - {"ix_archived_job_failed"}
                    and "Index Cond" not in node
                    and not limited
                ):
                    is_whole = True
                if is_whole:
                    wrong.append(f"{node['Node Type']} {index or ''}: {statement}")
    assert not wrong, "\n\n".join(wrong)
    return uses


INDEXES = {
    "job_pkey",
    "ix_job_claim",
    "ux_job_unique_key",
    "ix_job_waits_for",
    "archived_job_pkey",
    "ix_archived_job_finished_at",
    "ix_archived_job_failed",
}


def handlers_of_all_ends() -> Handlers:
    """Return handlers that end in every way."""
    handlers = Handlers(retry=RetryStrategy(retries=1, delays=[timedelta(hours=1)]))
    handlers("ok")(lambda _payload: None)
    handlers("kept", keep_result=True)(lambda _payload: 1)
    handlers("bad")(lambda payload: fail("bad", payload))
    handlers("worse", retry=RetryStrategy(retries=0))(lambda payload: fail("worse", payload))

    @handlers("later")
    def later(_payload: Any) -> None:
        raise Snooze(timedelta(hours=1))

    @handlers("writes")
    def writes(_payload: Any, session: Session, job: Job) -> None:
        session.flush()

    return handlers


def put_all(engine: Engine) -> None:
    """Enqueue jobs of all types."""
    with Session(engine) as session, session.begin():
        for job_type in ("ok", "kept", "bad", "worse", "later", "writes"):
            enqueue(session, job_type)
        enqueue_many(session, [("ok", n) for n in range(3)])
        enqueue_unique(session, "ok", unique_key="new")
        enqueue_unique(session, "ok", unique_key="key 10", queue="default")
        enqueue_unique(session, "ok", unique_key="key 20", on_conflict="replace")


@pytest.mark.parametrize(
    ("handlers", "options"),
    [
        (handlers_of_all_ends, {}),
        (handlers_of_all_ends, {"batch_size": 1}),
        (handlers_of_all_ends, {"lease": MINUTE}),
        (lambda: succeed, {}),
        (lambda: succeed, {"lease": MINUTE, "queues": {"default": 2, "other": 1}}),
    ],
    ids=["transaction", "one by one", "lease", "callable", "weights"],
)
def test_workers(large: Engine, handlers: Callable[[], Any], options: dict[str, Any]) -> None:
    """Claims, what follows them, and what an idle worker does."""
    with recorded(large) as sent:
        put_all(large)
        worker = QueueWorker(large, handlers(), polling_interval=SECOND / 10, **options)
        assert worker.drain() >= 10
        put_all(large)
        worker.drain()
    uses = check(large, sent)
    claims = {each.statement for each in sent if each.statement.startswith("SELECT due.")}
    assert claims
    assert {" ".join(claim.split()) for claim in claims} <= uses["ix_job_claim"]
    assert len(uses["job_pkey"]) >= 2
    assert any("count(due.process_at)" in statement for statement in uses["ix_job_claim"])


def test_leases_are_extended(large: Engine) -> None:
    """While a job runs longer than half of its lease."""
    handlers = Handlers()
    handlers("slow")(lambda _payload: sleep(0.5))
    with recorded(large) as sent:
        with Session(large) as session, session.begin():
            enqueue(session, "slow")
        QueueWorker(large, handlers, lease=SECOND, polling_interval=SECOND / 10).drain()
    uses = check(large, sent)
    assert any("unnest" in statement for statement in uses["job_pkey"])


def test_limits(large: Engine) -> None:
    """Jobs that wait for a limit are found by their index."""
    handlers = Handlers()
    handlers("limited", concurrency=1)(lambda _payload: None)
    with recorded(large) as sent:
        with Session(large) as session, session.begin():
            enqueue_many(session, [("limited", n) for n in range(5)])
        QueueWorker(large, handlers, threads=2).drain()
    uses = check(large, sent)
    assert uses["ix_job_waits_for"]


def test_operators(large: Engine) -> None:
    """Statistics, lists, single jobs, changes, results and the dashboard."""
    with Session(large) as session:
        some = session.query(Job.job_id).limit(3).all()
        ended = session.query(ArchivedJob.job_id).limit(3).all()
    tables = JobTables()
    hour = timedelta(hours=1)
    with recorded(large) as sent, Session(large) as session:
        manage.stats(session, max_rows=1000)
        manage.history(session)
        manage.failures(session)
        manage.running(session)
        for status in ("queued", "due", "running", "archived", "failure"):
            page = manage.list_jobs(session, status=status, limit=20, max_rows=1000)
            if page.after is not None:
                manage.list_jobs(session, status=status, limit=20, max_rows=1000, after=page.after)
        manage.list_jobs(session, queue="default", job_type="none", limit=20, max_rows=1000)
        manage.list_jobs(
            session, status="success", queue="none", newer_than=hour, limit=20, max_rows=1000
        )
        manage.get_job(session, some[0][0])
        manage.get_job(session, ended[0][0])
        session.get(ArchivedJob, ended[1][0])
        with suppress(JobNotFinishedError):
            manage.result(session, some[1][0])
        manage.cancel(session, some[1][0])
        manage.reschedule(session, some[2][0], process_at=utcnow())
        manage.discard(session, some[0][0])
        archived = session.get_one(ArchivedJob, ended[0][0])
        manage.retry(session, archived)
        manage.prune(session, older_than=27 * hour, batch_size=100)
        manage.prune(session, older_than=27 * hour, status="failure", batch_size=100)
        if "analyzed" in str(large.url):  # else a plain scan seems cheaper for so few rows
            for chart in SPANS:
                read_overview(session, tables, chart)
        session.rollback()
    uses = check(large, sent)
    assert set(uses) >= INDEXES - {"ux_job_unique_key", "ix_job_waits_for"}


def test_unique_jobs(large: Engine) -> None:
    """The row that has a key is found by its index."""
    with recorded(large) as sent, Session(large) as session:
        enqueue_unique(session, "ok", unique_key="key 10", queue="default")
        enqueue_unique(session, "ok", unique_key="key 20", queue="default", on_conflict="replace")
        session.rollback()
    assert check(large, sent)["ux_job_unique_key"]
