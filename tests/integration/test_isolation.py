"""What a handler does to its connection or transaction does not affect other jobs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from sqlalchemy_proletarian import Handlers, RunningJob, enqueue, process_next_job, uuid7
from sqlalchemy_proletarian.execution.state_changes import Change, change_of

from .kinds import Kind, either_sort_of_handler
from .support import (
    FAST,
    Log,
    Note,
    archived,
    enqueue_batch,
    notes,
    put,
    queued,
    rows,
)

SETTING = "current_setting('app.tenant', true)"


def setting_handlers(
    change: Callable[[Session], object], seen: list[Any], query: str = f"SELECT {SETTING}"
) -> Handlers:
    """Return handlers: "sets" makes a change, "reads" records its effect."""
    handlers = Handlers()

    @handlers("sets")
    def sets(payload: Any, session: Session) -> None:
        session.add(Note(text=f"{payload}"))
        change(session)
        session.flush()

    @handlers("reads")
    def reads(payload: Any, session: Session) -> None:
        seen.append(session.scalar(text(query)))

    @handlers("write")
    def write(payload: dict[str, Any], session: Session) -> None:
        session.add(Note(text=payload["text"]))

    return handlers


def run_alternating_jobs(shop: Engine, kind: Kind, handlers: Handlers, pairs: int = 5) -> None:
    """Alternate jobs that change something with jobs that read it, in shared transactions."""
    enqueue_batch(shop, [])  # makes the worker treat jobs as fast, so that they share transactions
    for n in range(pairs):
        put(shop, "sets", n)
        put(shop, "reads", n)
    kind.run_batch(shop, handlers)
    assert {job.status for job in archived(shop)} == {"success"}
    assert len(archived(shop)) == FAST + 2 * pairs
    assert not queued(shop) and not rows(shop, RunningJob)
    assert sorted(text for text in notes(shop) if text != "warm") == [str(n) for n in range(pairs)]


@pytest.fixture
def shop(shop: Engine) -> Iterator[Engine]:
    """Return the shop, and drop what a test created in its database."""
    yield shop
    with shop.begin() as connection:
        for statement in (
            "ALTER TABLE proletarian.archived_job DROP CONSTRAINT IF EXISTS strict",
            "DROP SCHEMA IF EXISTS per_tenant, acme CASCADE",
            "DROP FUNCTION IF EXISTS give_up",
            "DROP TABLE IF EXISTS secret",
        ):
            connection.execute(text(statement))


def executing(statement: str, **parameters: Any) -> Callable[[Session], object]:
    """Return a function that executes the statement in a session."""
    return lambda session: session.execute(text(statement), parameters)


@either_sort_of_handler
@pytest.mark.parametrize(
    "statement",
    [
        "SET LOCAL app.tenant = 'acme'",
        "/* of a tenant */ set local app.tenant to 'acme'",
        "SELECT set_config('app.tenant', 'acme', true)",
        "SELECT 1; SET LOCAL app.tenant = 'acme'",
        "SET app.tenant = 'acme'",
        "SET SESSION app.tenant = 'acme'",
        "SELECT set_config('app.tenant', 'acme', false)",
        "DO $$ BEGIN PERFORM set_config('app.tenant', 'acme', false); END $$",
        "DO $$ BEGIN PERFORM set_config('app.tenant', 'acme', true); END $$",
    ],
)
def test_settings_do_not_reach_the_next_job(shop: Engine, kind: Kind, statement: str) -> None:
    """A setting of a handler, local or not, is reset before the next job."""
    if "SELECT 1;" in statement and kind.driver == "asyncpg":
        pytest.skip("asyncpg executes one statement at a time")
    seen: list[Any] = []
    run_alternating_jobs(shop, kind, setting_handlers(executing(statement), seen))
    assert len(seen) == 5
    assert set(seen) <= {None, ""}


@pytest.mark.parametrize("local", [True, False])
def test_settings_named_by_parameters_do_not_reach_the_next_job(
    shop: Engine, kind: Kind, local: bool
) -> None:
    """The name of the setting is a bound parameter."""
    statement = "SELECT set_config(:name, :value, :local)"
    seen: list[Any] = []
    change = executing(statement, name="app.tenant", value="acme", local=local)
    run_alternating_jobs(shop, kind, setting_handlers(change, seen))
    assert set(seen) <= {None, ""}


@pytest.mark.parametrize(
    ("statement", "query", "expected"),
    [
        ("SET LOCAL search_path = pg_catalog", "SHOW search_path", '"$user", public'),
        ("SET search_path = pg_catalog", "SHOW search_path", '"$user", public'),
        ("SET LOCAL TIME ZONE 'Asia/Tokyo'", "SHOW timezone", None),
        ("SET LOCAL ROLE pg_monitor", "SELECT current_user", None),
        ("SET ROLE pg_monitor", "SELECT current_user", None),
        ("SET LOCAL statement_timeout = '1h'", "SHOW statement_timeout", "0"),
        ("CREATE TEMP TABLE mine (a int)", "SELECT to_regclass('mine')", None),
        ("SELECT pg_advisory_lock(7)", "SELECT count(*) FROM pg_locks WHERE objid = 7", 0),
        ("LISTEN mine", "SELECT count(*) FROM pg_listening_channels() c WHERE c = 'mine'", 0),
        (
            "PREPARE mine AS SELECT 1",
            "SELECT count(*) FROM pg_prepared_statements WHERE name = 'mine'",
            0,
        ),
    ],
)
def test_other_session_state_does_not_reach_the_next_job(
    shop: Engine, kind: Kind, statement: str, query: str, expected: Any
) -> None:
    """Roles, temporary tables, advisory locks and other session state are reset."""
    with shop.connect() as connection:
        expected = connection.scalar(text(query)) if expected is None else expected
    seen: list[Any] = []
    handlers = setting_handlers(
        lambda session: (session.flush(), executing(statement)(session)), seen, query
    )
    run_alternating_jobs(shop, kind, handlers)
    assert set(seen) == {expected}


def test_settings_of_a_failed_job_do_not_reach_the_next_job(shop: Engine, kind: Kind) -> None:
    seen: list[Any] = []

    def change(session: Session) -> None:
        session.execute(text("SET LOCAL ROLE pg_monitor"))
        session.execute(text("SET app.tenant = 'acme'"))
        raise ValueError

    enqueue_batch(shop, [])
    for n in range(5):
        put(shop, "sets", n)
        put(shop, "reads", n)
    kind.run_batch(shop, setting_handlers(change, seen))
    assert set(seen) <= {None, ""}
    assert [job.status for job in archived(shop)].count("failure") == 5
    assert len(archived(shop)) == FAST + 10


def test_a_job_that_drops_the_privileges_of_the_worker_fails(shop: Engine, kind: Kind) -> None:
    """A database function hides the role change from the worker; other jobs still run."""
    with shop.begin() as connection:
        connection.execute(
            text(
                "CREATE FUNCTION give_up() RETURNS void LANGUAGE plpgsql AS"
                " $$ BEGIN SET LOCAL ROLE pg_monitor; END $$"
            )
        )
    seen: list[Any] = []
    log = Log()
    enqueue_batch(shop, [])
    for n in range(3):
        put(shop, "reads", n)
        put(shop, "sets", n)
    put(shop, "reads", 3)
    change = executing("DO $$ BEGIN PERFORM give_up(); END $$")
    handlers = setting_handlers(lambda session: (session.flush(), change(session)), seen)
    kind.run_batch(shop, handlers, log=log)
    ended = [(job.job_type, job.status) for job in archived(shop) if job.job_type != "write"]
    assert sorted(ended) == [("reads", "success")] * 4 + [("sets", "failure")] * 3
    assert not [text for text in notes(shop) if text != "warm"]
    assert "polling-error" not in log.events()


class TenantBase(DeclarativeBase):
    """A base for the tables of tenants."""


class TenantNote(TenantBase):
    """A row in the schema of a tenant."""

    __tablename__ = "tenant_note"
    __table_args__ = ({"schema": "per_tenant"},)
    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str]


@either_sort_of_handler
def test_a_schema_translate_map_does_not_reach_the_next_job(shop: Engine, kind: Kind) -> None:
    """The next job writes to the schema of its model."""
    if kind.leased and kind.driver is not None and not kind.coroutines:
        pytest.skip("a plain function in an event loop gets a session that has its connection")
    with shop.begin() as connection:
        for schema in ("per_tenant", "acme"):
            connection.execute(text(f"CREATE SCHEMA {schema}"))
            connection.execute(
                text(f"CREATE TABLE {schema}.tenant_note (id serial PRIMARY KEY, text text)")
            )
    handlers = Handlers()

    @handlers("acme")
    def acme(payload: Any, session: Session) -> None:
        options = {"schema_translate_map": {"per_tenant": "acme", "proletarian": "nowhere"}}
        session.connection(execution_options=options)
        session.add(TenantNote(text=f"{payload}"))

    @handlers("plain")
    def plain(payload: Any, session: Session) -> None:
        session.add(TenantNote(text=f"{payload}"))

    @handlers("write")
    def write(payload: dict[str, Any], session: Session) -> None:
        session.add(Note(text=payload["text"]))

    enqueue_batch(shop, [])
    for n in range(5):
        put(shop, "plain", n)
        put(shop, "acme", n)
    kind.run_batch(shop, handlers)
    assert {job.status for job in archived(shop)} == {"success"}
    with shop.connect() as connection:
        for schema in ("per_tenant", "acme"):
            found = connection.scalars(text(f"SELECT text FROM {schema}.tenant_note ORDER BY 1"))
            assert found.all() == [f"{n}" for n in range(5)], schema


@either_sort_of_handler
@pytest.mark.parametrize("local", ["true", "false"])
def test_row_level_security_applies_to_each_job(shop: Engine, kind: Kind, local: str) -> None:
    """With a policy per tenant, a job reads and writes only the rows of its own tenant."""
    role = f"app_{uuid7().hex}"  # roles belong to the server, and tests run in parallel
    with shop.begin() as connection:
        for statement in (
            f"CREATE ROLE {role} NOLOGIN",
            "CREATE TABLE secret (tenant text, text text)",
            "ALTER TABLE secret ENABLE ROW LEVEL SECURITY",
            f"CREATE POLICY own ON secret USING (tenant = {SETTING})",
            f"GRANT ALL ON secret TO {role}",
            "INSERT INTO secret VALUES ('acme', 'first'), ('umbrella', 'first')",
        ):
            connection.execute(text(statement))
    handlers = Handlers()
    seen: dict[str, set[str]] = {"acme": set(), "umbrella": set(), "": set()}

    @handlers("with-tenant")
    def with_tenant(tenant: str, session: Session) -> None:
        session.execute(text(f"SET LOCAL ROLE {role}"))
        session.execute(
            text(f"SELECT set_config('app.tenant', :tenant, {local})"), {"tenant": tenant}
        )
        seen[tenant] |= set(session.scalars(text("SELECT tenant FROM secret")))
        session.execute(text(f"INSERT INTO secret VALUES ({SETTING}, 'more')"), {"tenant": tenant})

    @handlers("without-tenant")
    def without_tenant(payload: Any, session: Session) -> None:
        session.execute(text(f"SET LOCAL ROLE {role}"))
        seen[""] |= set(session.scalars(text("SELECT tenant FROM secret")))

    @handlers("write")
    def write(payload: dict[str, Any], session: Session) -> None:
        session.add(Note(text=payload["text"]))

    try:
        enqueue_batch(shop, [])
        for _ in range(5):
            put(shop, "with-tenant", "acme")
            put(shop, "without-tenant")
            put(shop, "with-tenant", "umbrella")
        kind.run_batch(shop, handlers)
        assert {job.status for job in archived(shop)} == {"success"}
        assert seen == {"acme": {"acme"}, "umbrella": {"umbrella"}, "": set()}
        with shop.connect() as connection:
            count = text("SELECT tenant, count(*) FROM secret GROUP BY 1 ORDER BY 1")
            assert connection.execute(count).all() == [("acme", 6), ("umbrella", 6)]
    finally:
        with shop.begin() as connection:
            connection.execute(text(f"DROP OWNED BY {role}"))
            connection.execute(text(f"DROP ROLE {role}"))


# Sessions that override get_bind.


@pytest.mark.parametrize("rejected", [False, True])
def test_writes_of_a_routing_session_are_committed_with_the_job(
    shop: Engine, kind: Kind, rejected: bool
) -> None:
    """A Session class with its own ``get_bind`` writes in the job's transaction."""

    class Routing(Session):
        def get_bind(self, *_: Any, **__: Any) -> Any:
            return self.bind

    handlers = Handlers()

    @handlers("write")
    def write(payload: Any, session: Session) -> None:
        assert isinstance(session, Routing)
        session.add(Note(text="routed"))
        session.flush()

    put(shop, "write")
    constraint = "ALTER TABLE proletarian.archived_job {} CONSTRAINT strict {}"
    with shop.begin() as connection:
        if rejected:
            check = "CHECK (status <> 'success')"
            connection.execute(text(constraint.format("ADD", check)))
    kind.run_all(sessionmaker(shop, class_=Routing), handlers)
    assert [job.status for job in archived(shop)] == ["failure" if rejected else "success"]
    assert notes(shop) == ([] if rejected else ["routed"])


def test_a_model_bound_to_another_database_is_written_there(shop: Engine, kind: Kind) -> None:
    if kind.driver is not None:
        pytest.skip("the kind of worker creates the engine of an event loop")
    with shop.begin() as connection:
        connection.execute(text("CREATE SCHEMA per_tenant"))
    other = create_engine(shop.url)
    TenantBase.metadata.create_all(other)
    handlers = Handlers()

    @handlers("write")
    def write(payload: Any, session: Session) -> None:
        assert session.get_bind(TenantNote) is other
        session.add_all([TenantNote(text="elsewhere"), Note(text="here")])
        session.flush()
        if payload == "fails":
            raise ValueError("both are undone")

    put(shop, "write")
    put(shop, "write", "fails")
    kind.run_all(sessionmaker(binds={TenantNote: other, Note: shop}, bind=shop), handlers)
    assert sorted(job.status for job in archived(shop)) == ["failure", "success"]
    assert notes(shop) == ["here"]
    with other.connect() as connection:
        assert connection.scalars(text("SELECT text FROM per_tenant.tenant_note")).all() == [
            "elsewhere"
        ]
    other.dispose()


def test_get_bind_must_not_return_another_engine_of_the_database(shop: Engine, kind: Kind) -> None:
    """The job fails, and its error says how to set the execution options instead."""
    if kind.driver is not None:
        pytest.skip("the kind of worker creates the engine of an event loop")
    translated = shop.execution_options(schema_translate_map={"per_tenant": "acme"})

    class Routing(Session):
        def get_bind(self, mapper: Any = None, **_: Any) -> Any:
            mapped = getattr(mapper, "class_", mapper)
            return translated if mapped is Note else shop

    handlers = Handlers()

    @handlers("write")
    def write(payload: Any, session: Session) -> None:
        session.add(Note(text="apart"))
        session.flush()

    put(shop, "write")
    kind.run_all(sessionmaker(class_=Routing), handlers)
    (job,) = archived(shop)
    assert job.status == "failure"
    assert "session.connection(execution_options=" in job.error
    assert notes(shop) == []


def test_process_next_job_restores_the_session(shop: Engine) -> None:
    """The caller of ``process_next_job`` does not see the settings of a handler."""
    handlers = setting_handlers(executing("SET LOCAL app.tenant = 'acme'"), [])
    with shop.connect() as connection:
        transaction = connection.begin()
        with Session(connection, join_transaction_mode="create_savepoint") as session:
            enqueue(session, "sets", 1)
            assert process_next_job(session, handlers) is True
            assert session.scalar(text(f"SELECT {SETTING}")) in (None, "")
            assert session.scalars(select(Note.text)).all() == ["1"]
        assert not connection.dispatch.before_cursor_execute
        transaction.rollback()


@pytest.mark.parametrize(
    ("statement", "parameters", "names", "lasting"),
    [
        ("UPDATE job SET a = 1", {}, set(), False),
        ("INSERT INTO settings VALUES ('SET LOCAL x = 1')", {}, set(), False),
        ("SELECT * FROM t WHERE tags @> '{a}'", {}, set(), False),
        ("SET LOCAL a.b = 1", {}, {"a.b"}, False),
        ("-- why\nSET\n  LOCAL ROLE x", {}, {"role"}, False),
        ("SET ROLE x", {}, {"role"}, True),
        ("RESET ROLE", {}, set(), True),
        ("SET CONSTRAINTS ALL DEFERRED", {}, set(), True),
        ("SELECT set_config(%(n)s, %(v)s, %(l)s)", {"n": "x", "v": "y", "l": True}, {"x"}, False),
        ("SELECT set_config($1, $2, $3)", ("x", "y", False), {"x"}, True),
        ("SELECT set_config(name, v, true) FROM t", {}, set(), True),
        ("BEGIN; DISCARD ALL", {}, set(), True),
        ("DECLARE c CURSOR WITH HOLD FOR SELECT 1", {}, set(), True),
    ],
)
def test_settings_are_found_in_the_text_of_a_statement(
    statement: str, parameters: Any, names: set[str], lasting: bool
) -> None:
    """Parameters may have the format of any driver."""
    assert change_of(statement, parameters, settings=True) == Change(frozenset(names), lasting)
