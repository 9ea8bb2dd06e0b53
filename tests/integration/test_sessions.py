"""Enqueueing with every kind of session: atomic, and with notifications to workers.

Each way to enqueue runs with each kind of session; see :data:`KINDS` and :data:`WAYS`.
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
class OpenSession:
    """A session of the user, its underlying Session, and functions to end its transaction."""

    session: Any
    sync_session: Session
    commit: Callable[[], object]
    rollback: Callable[[], object]
    notifies: bool = True
    """Whether a commit of the session can send notifications."""


Run = Callable[[Callable[[OpenSession], None]], None]
"""A function that opens a session and passes it to a callable."""


def plain(engine: Engine, **options: Any) -> Iterator[OpenSession]:
    with Session(engine, **options) as session:
        yield OpenSession(session, session, session.commit, session.rollback)


def bound_by_model(engine: Engine) -> Iterator[OpenSession]:
    other_engine = create_engine(engine.url)
    with Session(binds={Base: engine, Shop: other_engine}) as session:
        yield OpenSession(session, session, session.commit, session.rollback)
    other_engine.dispose()


def scoped(engine: Engine) -> Iterator[OpenSession]:
    session = scoped_session(sessionmaker(engine))
    yield OpenSession(session, session(), session.commit, session.rollback)
    session.remove()


def flask_session(engine: Engine) -> Iterator[OpenSession]:
    db = SQLAlchemy()
    app = Flask(__name__)
    app.config["SQLALCHEMY_DATABASE_URI"] = engine.url
    db.init_app(app)
    with app.app_context():
        yield OpenSession(db.session, db.session(), db.session.commit, db.session.rollback)
        db.session.remove()
        db.engine.dispose()


def joined(engine: Engine) -> Iterator[OpenSession]:
    """Yield a session that joins an outer transaction, as in a test suite."""
    with engine.connect() as connection:
        outer = connection.begin()

        def end(end_session: Callable[[], object], how: str) -> None:
            nonlocal outer
            end_session()
            getattr(outer, how)()
            outer = connection.begin()

        with Session(connection, join_transaction_mode="create_savepoint") as session:
            commit = partial(end, session.commit, "commit")
            yield OpenSession(session, session, commit, partial(end, session.rollback, "rollback"))


def two_phases(engine: Engine) -> Iterator[OpenSession]:
    with Session(engine, twophase=True) as session:
        yield OpenSession(session, session, session.commit, session.rollback, notifies=False)


KINDS: dict[str, Callable[[Engine], Iterator[OpenSession]]] = {
    "Session": plain,
    "autoflush=False": partial(plain, autoflush=False),
    "expire_on_commit=False": partial(plain, expire_on_commit=False),
    "binds": bound_by_model,
    "scoped_session": scoped,
    "Flask-SQLAlchemy": flask_session,
    "joined": joined,
    "twophase": two_phases,
}
LOOPS = ["AsyncSession", "async_scoped_session"]


@pytest.fixture(scope="module")
def two_phase_engine() -> Iterator[Engine]:
    """Yield an engine on a server with prepared transactions, which are off by default."""
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
    """Yield a function that opens one kind of session, and an engine on its database."""
    kind = request.param
    if kind in LOOPS:
        yield (
            partial(_run_with_async_session, shop.url, scoped=kind == "async_scoped_session"),
            shop,
        )
        return
    engine = request.getfixturevalue("two_phase_engine") if kind == "twophase" else shop

    def run_with(work: Callable[[OpenSession], None]) -> None:
        with contextmanager(KINDS[kind])(engine) as opened:
            work(opened)

    yield run_with, engine
    with Session(engine) as session, session.begin():
        session.execute(Job.__table__.delete())
        session.execute(Note.__table__.delete())


def _run_with_async_session(url: URL, work: Callable[[OpenSession], None], *, scoped: bool) -> None:
    """Call ``work`` in ``run_sync`` with an async session."""

    async def main() -> None:
        engine = create_async_engine(url.set(drivername="postgresql+asyncpg"))
        make: Any = async_sessionmaker(engine)
        session: Any = async_scoped_session(make, asyncio.current_task) if scoped else make()
        async_session: AsyncSession = session() if scoped else session
        try:
            await async_session.run_sync(
                lambda sync_session: work(
                    OpenSession(session, sync_session, sync_session.commit, sync_session.rollback)
                )
            )
        finally:
            await session.close()
            await engine.dispose()

    asyncio.run(main())


def by_enqueue(opened: OpenSession, name: str) -> None:
    enqueue(opened.session, name, queue=name)


def by_adding(opened: OpenSession, name: str) -> None:
    opened.session.add(Job(job_type=name, queue=name))


def by_enqueue_many(opened: OpenSession, name: str) -> None:
    enqueue_many(opened.sync_session, [(name, None)], queue=name)


def by_enqueue_unique(opened: OpenSession, name: str) -> None:
    assert enqueue_unique(opened.sync_session, name, unique_key="one", queue=name).created


def by_insert(opened: OpenSession, name: str) -> None:
    opened.sync_session.execute(insert(Job), [{"job_type": name, "queue": name}])


def by_bulk_save(opened: OpenSession, name: str) -> None:
    opened.sync_session.bulk_save_objects([Job(job_type=name, queue=name)])


WAYS = [by_enqueue, by_adding, by_enqueue_many, by_enqueue_unique]
WAYS_WITHOUT_NOTIFICATION = [by_insert, by_bulk_save]
"""Ways that send no notification: SQLAlchemy has no events for inserts past the unit of work."""


@pytest.mark.parametrize("way", [*WAYS, *WAYS_WITHOUT_NOTIFICATION], ids=lambda way: way.__name__)
def test_jobs_are_atomic_and_notified(
    run: tuple[Run, Engine], way: Callable[[OpenSession, str], None]
) -> None:
    """Jobs are enqueued and notified only if their transaction commits."""
    run_with, engine = run

    def work(opened: OpenSession) -> None:
        sync_session = opened.sync_session
        sync_session.add(Note(text="rolled back"))
        way(opened, "rolled back")
        sync_session.flush()
        opened.rollback()
        with sync_session.begin_nested() as savepoint:
            way(opened, "undone")
            sync_session.flush()
            savepoint.rollback()
        with sync_session.begin_nested():
            way(opened, "released")
        sync_session.add(Note(text="kept"))
        way(opened, "kept")
        assert announced() == []
        assert queued(engine) == []
        opened.commit()
        notifies = opened.notifies and way not in WAYS_WITHOUT_NOTIFICATION
        assert announced() == (["kept", "released"] if notifies else [])
        way(opened, "never committed")

    with listening(engine.url) as announced:
        run_with(work)
        assert announced() == []
    jobs = queued(engine)
    assert sorted(job.job_type for job in jobs) == ["kept", "released"]
    assert {(job.payload, job.attempts, job.priority) for job in jobs} == {("null", 0, 5)}
    assert notes(engine) == ["kept"]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_a_prepared_transaction_wakes_workers_of_its_process(
    two_phase_engine: Engine, way: Callable[[OpenSession, str], None]
) -> None:
    """A prepared transaction cannot notify, but it wakes workers in the same process."""
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
    """Job models can be models of Flask-SQLAlchemy, which generates their table names."""

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
