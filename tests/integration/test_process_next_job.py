"""Running one job at a time in the caller's session, for tests and the REPL."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import pytest
from sqlalchemy import URL, Engine, create_engine, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import (
    ArchivedJob,
    Handlers,
    Job,
    Snooze,
    TablesMissingError,
    enqueue,
    process_next_job,
)
from sqlalchemy_proletarian.asyncio import process_next_job as async_process_next_job

from .loops import in_a_loop
from .support import (
    MINUTE,
    ArchivedEmailJob,
    EmailJob,
    Log,
    ManualClock,
    Note,
    archived,
    notes,
    only_archived,
    only_queued,
    put,
    queued,
    succeed,
)

RunNext: TypeAlias = Callable[..., bool | None]


def run_in_a_loop(driver: str) -> RunNext:
    """Return a function that runs the next job in an event loop, in a new AsyncSession.

    It commits the caller's session first, and uses the same database.
    """

    def run_next(session: Session, handlers: Any, **options: Any) -> bool | None:
        session.commit()
        url = session.get_bind(options.get("job_model", Job)).engine.url

        async def run() -> bool | None:
            engine = create_async_engine(url.set(drivername=f"postgresql+{driver}"))
            try:
                async with AsyncSession(engine) as own_session:
                    return await async_process_next_job(own_session, handlers, **options)
            finally:
                await engine.dispose()

        return asyncio.run(run())

    return run_next


@pytest.fixture(params=["sync", "psycopg", "asyncpg"])
def run_next(request: pytest.FixtureRequest) -> RunNext:
    """Each way to run the next job."""
    return process_next_job if request.param == "sync" else run_in_a_loop(request.param)


def fail(job_type: str, payload: Any) -> None:
    """Fail every job."""
    raise ValueError("no")


def test_no_due_job_returns_none(session: Session, run_next: RunNext) -> None:
    """The result is None if no job is due."""
    assert run_next(session, succeed) is None
    enqueue(session, "later", process_in=MINUTE)
    enqueue(session, "elsewhere", queue="other")
    assert run_next(session, succeed) is None


def test_each_call_runs_one_job(session: Session, run_next: RunNext) -> None:
    """Each call runs the job with the highest priority and commits it."""
    seen: list[Any] = []
    enqueue(session, "job", "second")
    enqueue(session, "job", "first", priority=0)
    for expected in (["first"], ["first", "second"]):
        assert run_next(session, lambda _, payload: seen.append(payload)) is True
        assert seen == expected
        session.rollback()
        assert len(session.scalars(select(ArchivedJob)).all()) == len(expected)
    assert run_next(session, succeed) is None


def test_a_failed_job_counts_as_run(session: Session, engine: Engine, run_next: RunNext) -> None:
    """A failed job counts as run: it is archived, retried and logged as by a worker."""
    log, failures = Log(), []
    enqueue(session, "job", 1)
    options: Any = {
        "retry_strategy": {"retries": 1},
        "on_failed": lambda job, error: failures.append((job.attempts, str(error))),
        "log": log,
    }
    assert run_next(session, fail, **options) is True
    assert only_queued(engine).attempts == 1
    assert run_next(session, fail, **options) is True
    assert only_archived(engine).status == "failure"
    assert failures == [(2, "no")]
    assert log.events().count("retrying") == log.events().count("not-retrying") == 1


def test_the_clock_can_be_controlled(
    session: Session, clock: ManualClock, run_next: RunNext
) -> None:
    """The option ``clock`` lets a test control the time."""
    handlers = Handlers()

    @handlers("job")
    def job(payload: Any) -> None:
        if clock.now < due:
            raise Snooze(due - clock.now)

    due = clock.now + MINUTE
    enqueue(session, "job", clock=clock)
    assert run_next(session, handlers, clock=clock) is True
    assert run_next(session, handlers, clock=clock) is None
    clock.advance(MINUTE)
    assert run_next(session, handlers, clock=clock) is True
    assert run_next(session, handlers, clock=clock) is None


def test_writes_commit_with_the_job(shop: Engine, run_next: RunNext) -> None:
    """The handler's writes are committed with its job; those of a failed job are rolled back."""
    handlers = Handlers()

    @handlers("write")
    def write(payload: Any, session: Session, job: Job) -> None:
        session.add(Note(text=f"{payload} {job.attempts}"))
        session.flush()
        if payload == "bad":
            raise ValueError

    with Session(shop) as session:
        for payload in ("good", "bad", "better"):
            enqueue(session, "write", payload)
        while run_next(session, handlers):
            pass
    assert notes(shop) == ["good 1", "better 1"]
    assert sorted(job.status for job in archived(shop)) == ["failure", "success", "success"]


def test_custom_models_and_queues(shop: Engine, run_next: RunNext) -> None:
    """Models and queues are options, as for a worker."""
    seen: list[str] = []
    put(shop, "a", job_model=EmailJob, queue="low")
    put(shop, "b", job_model=EmailJob, queue="high", campaign="spring")
    with Session(shop) as session:
        for _ in range(2):
            assert run_next(
                session,
                lambda job_type, _: seen.append(job_type),
                job_model=EmailJob,
                archived_job_model=ArchivedEmailJob,
                queues=["high", "low"],
            )
    assert seen == ["b", "a"]
    assert {job.campaign for job in archived(shop, ArchivedEmailJob)} == {"spring", None}


def test_a_locked_job_is_skipped(engine: Engine, session: Session, run_next: RunNext) -> None:
    """A job that a worker has locked is skipped."""
    put(engine, "job")
    with Session(engine) as other:
        other.scalars(select(Job).with_for_update()).one()
        assert run_next(session, succeed) is None
    assert run_next(session, succeed) is True


@pytest.fixture
def isolated(shop: Engine) -> Iterator[Session]:
    """Yield a session in an outer transaction that is rolled back, as in SQLAlchemy's manual."""
    with shop.connect() as connection:
        transaction = connection.begin()
        with Session(bind=connection, join_transaction_mode="create_savepoint") as session:
            yield session
        transaction.rollback()
    assert queued(shop) == archived(shop) == []
    assert notes(shop) == []


def test_jobs_run_in_an_outer_transaction(isolated: Session) -> None:
    """In an outer transaction that is rolled back, jobs run as if they were committed."""
    handlers = Handlers(retry={"retries": 1})

    @handlers("write")
    def write(payload: str, session: Session, job: Job) -> None:
        session.add(Note(text=payload))
        session.flush()
        if payload == "bad":
            raise ValueError(payload)
        if payload == "parent":
            enqueue(session, "write", "child")

    for payload in ("good", "bad", "parent"):
        enqueue(isolated, "write", payload)
    isolated.commit()
    runs = 0
    while process_next_job(isolated, handlers):
        runs += 1
    assert runs == 5
    texts = isolated.scalars(select(Note.text).order_by(Note.id)).all()
    assert sorted(texts) == ["child", "good", "parent"]
    found = {job.payload: job.status for job in isolated.scalars(select(ArchivedJob))}
    assert found == {
        '"good"': "success",
        '"bad"': "failure",
        '"parent"': "success",
        '"child"': "success",
    }
    assert isolated.scalars(select(Job)).all() == []


@in_a_loop
async def test_jobs_run_in_an_outer_transaction_of_an_async_session(
    shop: Engine, loop_engine: AsyncEngine
) -> None:
    """The async variant runs coroutines and plain functions in the caller's session."""
    handlers = Handlers(retry={"retries": 1})

    @handlers("parent")
    async def parent(payload: str, session: AsyncSession, job: Job) -> None:
        assert job in session
        session.add(Note(text=payload))
        await session.flush()
        if payload == "bad":
            raise ValueError(payload)
        enqueue(session, "child", payload)

    @handlers("child")
    def child(payload: str, session: Session) -> None:
        session.add(Note(text=f"child of {payload}"))
        session.flush()

    async with loop_engine.connect() as connection:
        transaction = await connection.begin()
        async with AsyncSession(connection, join_transaction_mode="create_savepoint") as session:
            session.add(Note(text="pending"))
            enqueue(session, "parent", "good")
            enqueue(session, "parent", "bad")
            runs = 0
            while await async_process_next_job(session, handlers):
                runs += 1
            assert runs == 4
            texts = (await session.scalars(select(Note.text).order_by(Note.id))).all()
            assert texts == ["pending", "good", "child of good"]
            ended = await session.scalars(select(ArchivedJob).order_by(ArchivedJob.enqueued_at))
            assert [(job.payload, job.status) for job in ended] == [
                ('"good"', "success"),
                ('"bad"', "failure"),
                ('"good"', "success"),
            ]
            assert (await session.scalars(select(Job))).all() == []
        await transaction.rollback()
    assert queued(shop) == archived(shop) == []
    assert notes(shop) == []


@in_a_loop
async def test_a_coroutine_must_not_commit(engine: Engine, loop_engine: AsyncEngine) -> None:
    """A coroutine must not end the transaction."""
    handlers = Handlers()

    @handlers("job")
    async def job(payload: Any, session: AsyncSession) -> None:
        await session.commit()

    async with AsyncSession(loop_engine) as session:
        enqueue(session, "job")
        assert await async_process_next_job(session, handlers) is True
    error = only_archived(engine).error
    assert "the handler ended the transaction" in error


def test_pending_objects_are_flushed_first(isolated: Session) -> None:
    """Pending objects of the session are flushed first, so uncommitted jobs can run."""
    isolated.add(Note(text="pending"))
    enqueue(isolated, "job")
    handlers = Handlers()
    seen: list[str] = []

    @handlers("job")
    def job(payload: Any, session: Session) -> None:
        seen.extend(session.scalars(select(Note.text)))

    assert process_next_job(isolated, handlers) is True
    assert seen == ["pending"]


def test_a_handler_must_not_commit(isolated: Session) -> None:
    """A handler must not end the transaction."""
    handlers = Handlers()

    @handlers("job")
    def job(payload: Any, session: Session) -> None:
        session.add(Note(text="lost"))
        session.commit()

    enqueue(isolated, "job")
    assert process_next_job(isolated, handlers) is True
    assert isolated.scalars(select(Note)).all() == []
    error = isolated.scalars(select(ArchivedJob.error)).one()
    assert "the handler ended the transaction" in str(error)


def test_the_callers_job_object_keeps_its_id(session: Session) -> None:
    """The caller's job object has the id of the job that ran."""
    handlers = Handlers()
    seen: list[Any] = []

    @handlers("job")
    def run(payload: Any, session: Session, job: Job) -> None:
        seen.append(job.job_id)

    job = enqueue(session, "job")
    job_id = job.job_id
    assert process_next_job(session, handlers) is True
    assert seen == [job_id]
    assert session.get(ArchivedJob, job_id) is not None
    assert session.get(Job, job_id) is None


def test_a_session_with_binds_by_model(shop: Engine) -> None:
    """A session with one bind for each model works, also for handlers with a session."""
    handlers = Handlers()

    @handlers("job")
    def job(payload: Any, session: Session) -> None:
        session.add(Note(text="kept"))

    with Session(binds={Job: shop, ArchivedJob: shop, Note: shop}) as session:
        enqueue(session, "job")
        assert process_next_job(session, handlers) is True
    assert notes(shop) == ["kept"]


def test_an_error_at_commit_is_raised(shop: Engine, run_next: RunNext) -> None:
    """An error at commit is raised to the caller, and the job does not change."""
    with Session(shop) as session, session.begin():
        session.add(Note(text="first", code=1))
    handlers = Handlers()

    @handlers("job")
    def job(payload: Any, session: Session) -> None:
        session.add(Note(text="second", code=1))

    put(shop, "job")
    with Session(shop) as session, pytest.raises(IntegrityError):
        run_next(session, handlers)
    assert notes(shop) == ["first"]
    assert only_queued(shop).attempts == 0


def test_keyboard_interrupt_is_raised(engine: Engine, session: Session) -> None:
    """KeyboardInterrupt is raised to the caller, and the job does not change."""

    def interrupted(job_type: str, payload: Any) -> None:
        raise KeyboardInterrupt

    put(engine, "job")
    with pytest.raises(KeyboardInterrupt):
        process_next_job(session, interrupted)
    session.rollback()
    assert only_queued(engine).attempts == 0


def test_missing_tables_are_reported(empty_database: URL, run_next: RunNext) -> None:
    """Without the tables the error names the command to create them."""
    engine = create_engine(empty_database)
    with (
        Session(engine) as session,
        pytest.raises(TablesMissingError, match="proletarian migrate upgrade --url"),
    ):
        run_next(session, succeed)
    engine.dispose()


def test_invalid_options_are_rejected(session: Session) -> None:
    """Invalid options are rejected, as by a worker."""
    with pytest.raises(ValueError, match="at least one queue"):
        process_next_job(session, succeed, queues=[])
    with pytest.raises(ValueError, match="retries must not be negative"):
        process_next_job(session, succeed, retry_strategy={"retries": -1})
    with pytest.raises(TypeError, match="must be Handlers or a callable"):
        process_next_job(session, None)  # type: ignore[arg-type]
    handlers = Handlers()

    @handlers("mail")
    async def mail(payload: Any) -> None: ...

    with pytest.raises(TypeError, match="is async"):
        process_next_job(session, handlers)
