"""What a handler does to its connection or transaction is seen by no other job."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from sqlalchemy_proletarian import Handlers, RunningJob, enqueue, process_next_job, uuid7
from sqlalchemy_proletarian.execution.connection_state import Change, change_of

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


def tenants(
    change: Callable[[Session], object], seen: list[Any], look: str = f"SELECT {SETTING}"
) -> Handlers:
    """Return handlers: "sets" makes a change, "looks" notes what there is of it."""
    handlers = Handlers()

    @handlers("sets")
    def sets(payload: Any, session: Session) -> None:
        session.add(Note(text=f"{payload}"))
        change(session)
        session.flush()

    @handlers("looks")
    def looks(payload: Any, session: Session) -> None:
        seen.append(session.scalar(text(look)))

    @handlers("write")
    def write(payload: dict[str, Any], session: Session) -> None:
        session.add(Note(text=payload["text"]))

    return handlers


def run_alternating(shop: Engine, kind: Kind, handlers: Handlers, pairs: int = 5) -> None:
    """Run jobs that change something in turn with jobs that look, in shared transactions."""
    enqueue_batch(shop, [])  # so that jobs are known to be fast, and share transactions
    for n in range(pairs):
        put(shop, "sets", n)
        put(shop, "looks", n)
    kind.run_batch(shop, handlers)
    assert {job.status for job in archived(shop)} == {"success"}
    assert len(archived(shop)) == FAST + 2 * pairs
    assert not queued(shop) and not rows(shop, RunningJob)
    assert sorted(text for text in notes(shop) if text != "warm") == [str(n) for n in range(pairs)]


@pytest.fixture
def shop(shop: Engine) -> Iterator[Engine]:
    """The shop; what the tests here make in its database goes with each of them."""
    yield shop
    with shop.begin() as connection:
        for statement in (
            "ALTER TABLE proletarian.archived_job DROP CONSTRAINT IF EXISTS strict",
            "DROP SCHEMA IF EXISTS per_tenant, acme CASCADE",
            "DROP FUNCTION IF EXISTS give_up",
            "DROP TABLE IF EXISTS secret",
        ):
            connection.execute(text(statement))


def by(statement: str, **parameters: Any) -> Callable[[Session], object]:
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
def test_settings(shop: Engine, kind: Kind, statement: str) -> None:
    """A setting that a handler makes, local or not, is not seen by the next job."""
    if "SELECT 1;" in statement and kind.driver == "asyncpg":
        pytest.skip("asyncpg executes one statement at a time")
    seen: list[Any] = []
    run_alternating(shop, kind, tenants(by(statement), seen))
    assert len(seen) == 5
    assert set(seen) <= {None, ""}


@pytest.mark.parametrize("local", [True, False])
def test_settings_in_parameters(shop: Engine, kind: Kind, local: bool) -> None:
    """It is the same where the name of the setting is a parameter."""
    statement = "SELECT set_config(:name, :value, :local)"
    seen: list[Any] = []
    change = by(statement, name="app.tenant", value="acme", local=local)
    run_alternating(shop, kind, tenants(change, seen))
    assert set(seen) <= {None, ""}


@pytest.mark.parametrize(
    ("statement", "look", "before"),
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
def test_other_state(shop: Engine, kind: Kind, statement: str, look: str, before: Any) -> None:
    """Neither the role nor anything else that lasts beyond the handler reaches the next job."""
    with shop.connect() as connection:
        before = connection.scalar(text(look)) if before is None else before
    seen: list[Any] = []
    handlers = tenants(lambda session: (session.flush(), by(statement)(session)), seen, look)
    run_alternating(shop, kind, handlers)
    assert set(seen) == {before}


def test_what_fails_leaves_nothing(shop: Engine, kind: Kind) -> None:
    """A job that fails after it has changed settings leaves them to nobody."""
    seen: list[Any] = []

    def change(session: Session) -> None:
        session.execute(text("SET LOCAL ROLE pg_monitor"))
        session.execute(text("SET app.tenant = 'acme'"))
        raise ValueError

    enqueue_batch(shop, [])
    for n in range(5):
        put(shop, "sets", n)
        put(shop, "looks", n)
    kind.run_batch(shop, tenants(change, seen))
    assert set(seen) <= {None, ""}
    assert [job.status for job in archived(shop)].count("failure") == 5
    assert len(archived(shop)) == FAST + 10


def test_a_role_that_may_nothing(shop: Engine, kind: Kind) -> None:
    """A job whose handler takes away the worker's rights, unseen, has failed; others run."""
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
        put(shop, "looks", n)
        put(shop, "sets", n)
    put(shop, "looks", 3)
    change = by("DO $$ BEGIN PERFORM give_up(); END $$")
    handlers = tenants(lambda session: (session.flush(), change(session)), seen)
    kind.run_batch(shop, handlers, log=log)
    ended = [(job.job_type, job.status) for job in archived(shop) if job.job_type != "write"]
    assert sorted(ended) == [("looks", "success")] * 4 + [("sets", "failure")] * 3
    assert not [text for text in notes(shop) if text != "warm"]
    assert "polling-error" not in log.events()


class Base(DeclarativeBase):
    """Tables of tenants."""


class TenantNote(Base):
    """A row in the schema of a tenant."""

    __tablename__ = "tenant_note"
    __table_args__ = ({"schema": "per_tenant"},)
    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str]


@either_sort_of_handler
def test_schemas_of_tenants(shop: Engine, kind: Kind) -> None:
    """A translation of schemas is that of one job: the next one writes where it belongs."""
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
def test_row_level_security(shop: Engine, kind: Kind, local: str) -> None:
    """With a policy by tenant a job reads and writes rows of its own tenant only."""
    role = f"app_{uuid7().hex}"  # of the whole server, where tests run side by side
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

    @handlers("of-a-tenant")
    def of_a_tenant(tenant: str, session: Session) -> None:
        session.execute(text(f"SET LOCAL ROLE {role}"))
        session.execute(
            text(f"SELECT set_config('app.tenant', :tenant, {local})"), {"tenant": tenant}
        )
        seen[tenant] |= set(session.scalars(text("SELECT tenant FROM secret")))
        session.execute(text(f"INSERT INTO secret VALUES ({SETTING}, 'more')"), {"tenant": tenant})

    @handlers("of-nobody")
    def of_nobody(payload: Any, session: Session) -> None:
        session.execute(text(f"SET LOCAL ROLE {role}"))
        seen[""] |= set(session.scalars(text("SELECT tenant FROM secret")))

    @handlers("write")
    def write(payload: dict[str, Any], session: Session) -> None:
        session.add(Note(text=payload["text"]))

    try:
        enqueue_batch(shop, [])
        for _ in range(5):
            put(shop, "of-a-tenant", "acme")
            put(shop, "of-nobody")
            put(shop, "of-a-tenant", "umbrella")
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


# Sessions that route.


@pytest.mark.parametrize("refused", [False, True])
def test_a_session_that_routes(shop: Engine, kind: Kind, refused: bool) -> None:
    """What a Session with a ``get_bind`` of its own writes commits with the job, or not at all."""

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
        if refused:
            check = "CHECK (status <> 'success')"
            connection.execute(text(constraint.format("ADD", check)))
    kind.run_all(sessionmaker(shop, class_=Routing), handlers)
    assert [job.status for job in archived(shop)] == ["failure" if refused else "success"]
    assert notes(shop) == ([] if refused else ["routed"])


def test_binds_of_a_sessionmaker(shop: Engine, kind: Kind) -> None:
    """A model that is bound to another database stays there."""
    if kind.driver is not None:
        pytest.skip("the engines of an event loop are made by the test's kind of worker")
    with shop.begin() as connection:
        connection.execute(text("CREATE SCHEMA per_tenant"))
    other = create_engine(shop.url)
    Base.metadata.create_all(other)
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


def test_an_engine_with_options_of_its_own(shop: Engine, kind: Kind) -> None:
    """A ``get_bind`` that returns another engine on that database fails the job, and says why."""
    if kind.driver is not None:
        pytest.skip("the engines of an event loop are made by the test's kind of worker")
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


def test_process_next_job_leaves_the_session_as_it_was(shop: Engine) -> None:
    """What a handler sets is not seen by the caller of ``process_next_job`` either."""
    handlers = tenants(by("SET LOCAL app.tenant = 'acme'"), [])
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
def test_what_a_statement_changes(
    statement: str, parameters: Any, names: set[str], lasting: bool
) -> None:
    """What changes a setting is told by its text, whatever the driver's parameters look like."""
    assert change_of(statement, parameters, settings=True) == Change(frozenset(names), lasting)
