"""Sessions that choose a database by mapper, statement, shard or bind key."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import Delete, Engine, Insert, Update, create_engine, select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.ext.horizontal_shard import ShardedSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Mapper, Session, mapped_column, sessionmaker

from sqlalchemy_proletarian import (
    ArchivedJob,
    ArchivedJobMixin,
    Handlers,
    Job,
    JobMixin,
    QueueWorker,
    enqueue,
    enqueue_many,
    enqueue_unique,
    manage,
    process_next_job,
)
from sqlalchemy_proletarian.asyncio import AsyncQueueWorker
from sqlalchemy_proletarian.asyncio import enqueue_many as async_enqueue_many
from sqlalchemy_proletarian.models import RunningJob

from .support import archived, queued, succeed

JOB_MODELS = (Job, ArchivedJob, RunningJob)


@pytest.fixture
def other_engine() -> Iterator[Engine]:
    """Yield an engine on a database without the job tables, where every statement fails."""
    engine = create_engine("sqlite://")
    yield engine
    engine.dispose()


@pytest.fixture
def vertical(engine: Engine, other_engine: Engine) -> type[Session]:
    """Return a session class as in SQLAlchemy's manual, which routes writes and reads by model."""

    class RoutingSession(Session):
        def get_bind(self, mapper: Any = None, clause: Any = None) -> Engine:  # type: ignore[override]
            if mapper and issubclass(mapper.class_, JOB_MODELS):
                if self._flushing or isinstance(clause, Insert | Update | Delete):
                    return engine
                return other_engine
            # Statements without ORM entities have no mapper.
            return other_engine

    return RoutingSession


@pytest.fixture
def by_class(engine: Engine, other_engine: Engine) -> type[Session]:
    """Return a session class that routes only by the mapper's class."""

    class ByClass(Session):
        def get_bind(self, mapper: Any = None, **_: Any) -> Engine:  # type: ignore[override]
            assert mapper is None or isinstance(mapper, Mapper)
            return engine if mapper and issubclass(mapper.class_, JOB_MODELS) else other_engine

    return ByClass


@pytest.fixture(params=["vertical", "by_class"])
def session(request: pytest.FixtureRequest) -> Iterator[Session]:
    """Yield a session of each class."""
    with request.getfixturevalue(request.param)() as session:
        yield session


def enqueue_jobs(session: Session) -> Any:
    """Enqueue jobs with every function; return the id of one job."""
    first = enqueue(session, "one")
    session.flush()
    assert enqueue_many(session, [("two", None)]) == 1
    assert enqueue_many(session, [{"job_type": "three", "unique_key": "a"}]) == 1
    assert enqueue_unique(session, "four", unique_key="b").created
    assert not enqueue_unique(session, "five", unique_key="b").created
    return first.job_id


def test_jobs_are_enqueued_and_cancelled_in_their_database(
    session: Session, engine: Engine
) -> None:
    """Jobs are enqueued and cancelled in the database to which the model is routed."""
    job_id = enqueue_jobs(session)
    session.commit()
    assert len(queued(engine)) == 4
    assert manage.cancel(session, job_id) == "cancelled"
    session.commit()
    assert len(queued(engine)) == 3
    assert [job.job_id for job in archived(engine)] == [job_id]


def test_process_next_job_uses_the_database_of_the_jobs(session: Session, engine: Engine) -> None:
    """``process_next_job`` uses the database of the jobs."""
    enqueue_jobs(session)
    session.commit()
    assert process_next_job(session, succeed) is True
    assert len(archived(engine)) == 1


@pytest.mark.parametrize("name", ["vertical", "by_class"])
def test_a_worker_uses_the_engine_of_the_jobs(
    name: str, request: pytest.FixtureRequest, engine: Engine
) -> None:
    """A worker gets the engine of the jobs from a sessionmaker with such a class."""
    maker = sessionmaker(class_=request.getfixturevalue(name))
    assert QueueWorker(maker, succeed)._core.settings.engine is engine


async def _enqueue_with_async_session(engine: Engine, other_engine: Engine) -> None:
    jobs = create_async_engine(engine.url.set(drivername="postgresql+asyncpg"))

    class ByClass(Session):
        def get_bind(self, mapper: Any = None, **_: Any) -> Any:  # type: ignore[override]
            is_job_model = mapper and issubclass(mapper.class_, JOB_MODELS)
            return jobs.sync_engine if is_job_model else other_engine

    async with AsyncSession(sync_session_class=ByClass) as session, session.begin():
        enqueue(session, "one")
        await async_enqueue_many(session, [("two", None)])
    maker = async_sessionmaker(sync_session_class=ByClass)
    assert AsyncQueueWorker(maker, succeed)._core.settings.engine is jobs.sync_engine
    await jobs.dispose()


def test_async_sessions_use_the_database_of_the_jobs(engine: Engine, other_engine: Engine) -> None:
    """The same applies to the sync session of an AsyncSession."""
    asyncio.run(_enqueue_with_async_session(engine, other_engine))
    assert len(queued(engine)) == 2


def test_sharded_sessions(engine: Engine, other_engine: Engine) -> None:
    """The shard chooser receives the mapper, and the instance if there is one."""

    def choose(mapper: Any, instance: Any, clause: Any = None) -> str:
        assert isinstance(mapper, Mapper)
        if clause is None:
            assert instance.queue == "default"  # SQLAlchemy's example needs an instance
        return "jobs" if issubclass(mapper.class_, JOB_MODELS) else "other"

    session = ShardedSession(
        shards={"jobs": engine, "other": other_engine},
        shard_chooser=choose,
        identity_chooser=lambda *_, **__: ["jobs"],
        execute_chooser=lambda _: ["jobs"],
    )
    with session:
        job_id = enqueue_jobs(session)
        session.commit()
        assert len(queued(engine)) == 4
        assert manage.cancel(session, job_id) == "cancelled"
        session.commit()
        assert process_next_job(session, succeed) is True
        assert len(archived(engine)) == 2


def test_bind_keys_of_flask_sqlalchemy(engine: Engine) -> None:
    """Job models, including job classes, can have a bind key of Flask-SQLAlchemy."""

    class Models(DeclarativeBase):
        pass

    db = SQLAlchemy(model_class=Models)

    class KeyedJob(JobMixin, db.Model):  # type: ignore[name-defined,misc]
        __bind_key__ = "jobs"
        __mapper_args__ = {"polymorphic_on": "job_type"}  # noqa: RUF012

    class Greet(KeyedJob):
        __mapper_args__ = {"polymorphic_identity": "greet"}  # noqa: RUF012
        name: Mapped[str | None]

    class KeyedArchive(ArchivedJobMixin, db.Model):  # type: ignore[name-defined,misc]
        __bind_key__ = "jobs"
        name: Mapped[str | None] = mapped_column()

    handlers = Handlers()
    seen: list[str | None] = []

    @handlers(Greet)
    def greet(job: Greet) -> None:
        seen.append(job.name)

    models: Any = {"job_model": KeyedJob, "archived_job_model": KeyedArchive}
    app = Flask(__name__)
    app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite://"
    app.config["SQLALCHEMY_BINDS"] = {"jobs": engine.url}
    db.init_app(app)
    with app.app_context(), ExitStack() as ends:
        db.create_all()
        ends.callback(db.engines["jobs"].dispose)
        ends.callback(db.engine.dispose)
        ends.callback(db.drop_all)
        ends.callback(db.session.remove)
        first = enqueue(db.session, Greet(name="one"))
        job_id = first.job_id
        db.session.flush()
        enqueue_many(db.session, [{"name": "two"}], job_model=Greet)
        unique: Any = {"job_model": Greet, "unique_key": "a", "notify": False}
        assert enqueue_unique(db.session, "greet", name="three", **unique).created
        db.session.commit()
        assert manage.cancel(db.session, job_id, **models) == "cancelled"
        db.session.commit()
        assert process_next_job(db.session(), handlers, **models) is True
        assert QueueWorker(db.engines["jobs"], handlers, **models).drain() == 1
        assert sorted(map(str, seen)) == ["three", "two"]
        names = db.session.scalars(select(KeyedArchive.name)).all()
        assert sorted(names) == ["one", "three", "two"]
