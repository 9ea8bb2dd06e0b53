"""Every kind of session, and every way to enqueue: atomic in each, and workers hear of it.

Each way to enqueue runs in each kind of session; see :data:`KINDS` and :data:`WAYS`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import URL, Engine, ForeignKey, create_engine, insert, select
from sqlalchemy.ext.asyncio import (
    AsyncSession,
    async_scoped_session,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    mapped_column,
    relationship,
    scoped_session,
    sessionmaker,
)

from sqlalchemy_proletarian import (
    ArchivedJobMixin,
    Base,
    Handlers,
    Job,
    JobMixin,
    QueueWorker,
    enqueue,
    enqueue_many,
    enqueue_unique,
)
from tests.faults.server import own_server

from .support import Log, Note, Shop, eventually, listening, notes, queued


@dataclass
class Opened:
    """A session as the user has it, what is behind it, and how the user ends a transaction."""

    session: Any
    unit: Session
    commit: Callable[[], object]
    rollback: Callable[[], object]
    says_so: bool = True
    """Whether its commit can notify."""


Run = Callable[[Callable[[Opened], None]], None]
"""Opens a session and calls what is to be done with it."""


def plain(engine: Engine, **options: Any) -> Iterator[Opened]:
    with Session(engine, **options) as session:
        yield Opened(session, session, session.commit, session.rollback)


def bound_by_model(engine: Engine) -> Iterator[Opened]:
    elsewhere = create_engine(engine.url)
    with Session(binds={Base: engine, Shop: elsewhere}) as session:
        yield Opened(session, session, session.commit, session.rollback)
    elsewhere.dispose()


def scoped(engine: Engine) -> Iterator[Opened]:
    session = scoped_session(sessionmaker(engine))
    yield Opened(session, session(), session.commit, session.rollback)
    session.remove()


def of_flask(engine: Engine) -> Iterator[Opened]:
    db = SQLAlchemy()
    app = Flask(__name__)
    app.config["SQLALCHEMY_DATABASE_URI"] = engine.url
    db.init_app(app)
    with app.app_context():
        yield Opened(db.session, db.session(), db.session.commit, db.session.rollback)
        db.session.remove()
        db.engine.dispose()


def joined(engine: Engine) -> Iterator[Opened]:
    """As in a test-suite: the session's commits take effect with those of the connection."""
    with engine.connect() as connection:
        outer = connection.begin()

        def end(of_session: Callable[[], object], how: str) -> None:
            nonlocal outer
            of_session()
            getattr(outer, how)()
            outer = connection.begin()

        with Session(connection, join_transaction_mode="create_savepoint") as session:
            commit = partial(end, session.commit, "commit")
            yield Opened(session, session, commit, partial(end, session.rollback, "rollback"))


def two_phases(engine: Engine) -> Iterator[Opened]:
    with Session(engine, twophase=True) as session:
        yield Opened(session, session, session.commit, session.rollback, says_so=False)


KINDS: dict[str, Callable[[Engine], Iterator[Opened]]] = {
    "Session": plain,
    "autoflush=False": partial(plain, autoflush=False),
    "expire_on_commit=False": partial(plain, expire_on_commit=False),
    "binds": bound_by_model,
    "scoped_session": scoped,
    "Flask-SQLAlchemy": of_flask,
    "joined": joined,
    "twophase": two_phases,
}
LOOPS = ["AsyncSession", "async_scoped_session"]


@pytest.fixture(scope="module")
def two_phase_engine() -> Iterator[Engine]:
    """An engine on a server that prepares transactions, which by default none does."""
    with own_server(max_prepared_transactions="5") as server:
        engine = create_engine(server.url())
        with engine.begin() as connection:
            connection.exec_driver_sql("CREATE SCHEMA proletarian")
            Base.metadata.create_all(connection)
            Shop.metadata.create_all(connection)
        yield engine
        engine.dispose()


@pytest.fixture(params=[*KINDS, *LOOPS])
def run(request: pytest.FixtureRequest, shop: Engine) -> Iterator[tuple[Run, Engine]]:
    """What opens one kind of session, and the engine on its database."""
    kind = request.param
    if kind in LOOPS:
        yield partial(_in_a_loop, shop.url, scoped=kind == "async_scoped_session"), shop
        return
    engine = request.getfixturevalue("two_phase_engine") if kind == "twophase" else shop

    def run_with(work: Callable[[Opened], None]) -> None:
        with contextmanager(KINDS[kind])(engine) as opened:
            work(opened)

    yield run_with, engine
    with Session(engine) as session, session.begin():
        session.execute(Job.__table__.delete())
        session.execute(Note.__table__.delete())


def _in_a_loop(url: URL, work: Callable[[Opened], None], *, scoped: bool) -> None:
    """Do what is to be done inside of ``run_sync``; the session given is the one to be awaited."""

    async def main() -> None:
        engine = create_async_engine(url.set(drivername="postgresql+asyncpg"))
        make: Any = async_sessionmaker(engine)
        session: Any = async_scoped_session(make, asyncio.current_task) if scoped else make()
        one: AsyncSession = session() if scoped else session
        try:
            await one.run_sync(lambda unit: work(Opened(session, unit, unit.commit, unit.rollback)))
        finally:
            await session.close()
            await engine.dispose()

    asyncio.run(main())


def by_enqueue(opened: Opened, name: str) -> None:
    enqueue(opened.session, name, queue=name)


def by_adding(opened: Opened, name: str) -> None:
    opened.session.add(Job(job_type=name, queue=name))


def by_enqueue_many(opened: Opened, name: str) -> None:
    enqueue_many(opened.unit, [(name, None)], queue=name)


def by_enqueue_unique(opened: Opened, name: str) -> None:
    assert enqueue_unique(opened.unit, name, unique_key="one", queue=name) is not None


def by_insert(opened: Opened, name: str) -> None:
    opened.unit.execute(insert(Job), [{"job_type": name, "queue": name}])


def by_bulk_save(opened: Opened, name: str) -> None:
    opened.unit.bulk_save_objects([Job(job_type=name, queue=name)])


WAYS = [by_enqueue, by_adding, by_enqueue_many, by_enqueue_unique]
SILENT_WAYS = [by_insert, by_bulk_save]
"""SQLAlchemy tells nobody what is inserted past the unit of work."""


@pytest.mark.parametrize("way", [*WAYS, *SILENT_WAYS], ids=lambda way: way.__name__)
def test_atomic_and_heard(run: tuple[Run, Engine], way: Callable[[Opened, str], None]) -> None:
    """What is committed is there, with the business data, and told; the rest never was."""
    run_with, engine = run

    def work(opened: Opened) -> None:
        unit = opened.unit
        unit.add(Note(text="rolled back"))
        way(opened, "rolled back")
        unit.flush()
        opened.rollback()
        with unit.begin_nested() as savepoint:
            way(opened, "undone")
            unit.flush()
            savepoint.rollback()
        with unit.begin_nested():
            way(opened, "released")
        unit.add(Note(text="kept"))
        way(opened, "kept")
        assert heard() == []
        assert queued(engine) == []
        opened.commit()
        says_so = opened.says_so and way not in SILENT_WAYS
        assert heard() == (["kept", "released"] if says_so else [])
        way(opened, "never committed")

    with listening(engine.url) as heard:
        run_with(work)
        assert heard() == []
    jobs = queued(engine)
    assert sorted(job.job_type for job in jobs) == ["kept", "released"]
    assert {(job.payload, job.attempts, job.priority) for job in jobs} == {("null", 0, 5)}
    assert notes(engine) == ["kept"]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_a_prepared_transaction_wakes_the_workers_of_its_process(
    two_phase_engine: Engine, way: Callable[[Opened, str], None]
) -> None:
    """It cannot notify, but a worker in the same process hears of it all the same."""
    done: list[str] = []
    log = Log()
    with QueueWorker(
        two_phase_engine,
        lambda job_type, payload: done.append(job_type),
        queues="job",
        polling_interval=timedelta(hours=1),
        log=log,
    ):
        eventually(lambda: log.events().count("polling-for-jobs") >= 2)
        with contextmanager(two_phases)(two_phase_engine) as opened:
            way(opened, "job")
            opened.commit()
        eventually(lambda: done == ["job"])


def test_flask_models(shop: Engine) -> None:
    """Job tables may be models of Flask-SQLAlchemy, which names them by itself."""

    class Models(DeclarativeBase):
        pass

    db = SQLAlchemy(model_class=Models)

    class FlaskUser(db.Model):  # type: ignore[name-defined,misc]
        id: Mapped[int] = mapped_column(primary_key=True)

    class FlaskJob(JobMixin, db.Model):  # type: ignore[name-defined,misc]
        user_id: Mapped[int] = mapped_column(ForeignKey("flask_user.id"))
        user: Mapped[FlaskUser] = relationship()

    class FlaskArchive(ArchivedJobMixin, db.Model):  # type: ignore[name-defined,misc]
        user_id: Mapped[int]

    handlers = Handlers()
    seen: list[Any] = []

    @handlers("greet")
    def greet(payload: Any, job: FlaskJob, session: Session) -> None:
        seen.append(job.user.id)

    app = Flask(__name__)
    app.config["SQLALCHEMY_DATABASE_URI"] = shop.url
    db.init_app(app)
    with app.app_context(), ExitStack() as ends:
        db.create_all()
        ends.callback(db.engine.dispose)
        ends.callback(db.drop_all)
        ends.callback(db.session.remove)
        user = FlaskUser()
        enqueue(db.session, "greet", job_model=FlaskJob, user=user)
        db.session.commit()
        worker = QueueWorker(
            db.engine, handlers, job_model=FlaskJob, archived_job_model=FlaskArchive
        )
        assert worker.drain() == 1
        assert seen == [user.id]
        assert db.session.scalars(select(FlaskArchive.user_id)).all() == [user.id]
