"""Pausing and resuming queues."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from threading import Event, Thread
from time import monotonic, sleep
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, delete, insert, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqlalchemy_proletarian import (
    Base,
    Handlers,
    ModelError,
    PausedQueue,
    PausedQueueMixin,
    PrivilegeError,
    QueueWorker,
    TablesMissingError,
    enqueue,
    enqueue_many,
    manage,
    migrate,
    utcnow,
)
from sqlalchemy_proletarian.asyncio import pause as async_pause
from sqlalchemy_proletarian.asyncio import resume as async_resume

from .kinds import Kind
from .loops import in_a_loop
from .support import (
    MINUTE,
    ArchivedEmailJob,
    EmailJob,
    Log,
    ManualClock,
    Shop,
    archived,
    eventually,
    put,
    queued,
    rows,
    run_all,
    succeed,
)

SEEN = 1.0
"""Seconds in which every worker must have seen a change."""


def pause(engine: Engine, queue: str = "default", **options: Any) -> bool:
    with Session(engine) as session, session.begin():
        return manage.pause(session, queue, **options)


def resume(engine: Engine, queue: str = "default", **options: Any) -> bool:
    with Session(engine) as session, session.begin():
        return manage.resume(session, queue, **options)


def test_no_member_of_a_new_worker_claims_before_it_is_known_what_is_paused(
    engine: Engine, kind: Kind
) -> None:
    """Also those that start while another one reads the table."""
    pause(engine)
    for _ in range(20):
        put(engine, "job")
    for _ in range(3):
        assert kind.run_all(engine, succeed, threads=8) == 0
    assert len(queued(engine)) == 20


def test_a_row_says_who_paused_a_queue_and_why(engine: Engine, clock: ManualClock) -> None:
    """A second call changes nothing, and a queue that is not paused cannot be resumed."""
    assert pause(engine, "mail", reason="the server is down", paused_by="Ada", clock=clock)
    assert not pause(engine, "mail", reason="again")
    (row,) = rows(engine, PausedQueue)
    assert (row.queue, row.reason, row.paused_by) == ("mail", "the server is down", "Ada")
    assert row.paused_at == clock.now
    assert not resume(engine, "default")
    assert resume(engine, "mail")
    assert not resume(engine, "mail")
    assert rows(engine, PausedQueue) == []


def test_two_sessions_pause_a_queue_at_once(engine: Engine) -> None:
    """The second one waits for the commit of the first one and reports that nothing changed."""
    answers: list[bool] = []
    with Session(engine) as session:
        assert manage.pause(session, "mail", reason="first")
        other = Thread(target=lambda: answers.append(pause(engine, "mail", reason="second")))
        other.start()
        sleep(0.2)
        assert answers == []
        session.commit()
        other.join()
    assert answers == [False]
    assert [row.reason for row in rows(engine, PausedQueue)] == ["first"]


@pytest.mark.parametrize("name", [None, "", "x" * 256, "a\0b"])
def test_the_name_of_a_queue_is_checked(session: Session, name: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="queue must"):
        manage.pause(session, name)
    with pytest.raises((TypeError, ValueError), match="queue must"):
        manage.resume(session, name)


# What workers do.


class Held:
    """Handlers whose jobs wait until they are released."""

    def __init__(self) -> None:
        self.begun: list[Any] = []
        self.release = Event()
        self.handlers = Handlers()

        @self.handlers("job")
        def job(payload: Any) -> None:
            self.begun.append(payload)
            assert self.release.wait(20)


def test_running_jobs_finish_and_nothing_new_is_claimed(engine: Engine, kind: Kind) -> None:
    """Other queues go on, jobs are still enqueued, and run when the queue is resumed."""
    held = Held()
    put(engine, "job", 1)
    options: Any = {"queues": ["default", "other"], "polling_interval": MINUTE, "threads": 2}
    with kind.worker(engine, held.handlers, **options):
        eventually(lambda: held.begun == [1])
        pause(engine)
        sleep(SEEN)
        put(engine, "job", 2)
        put(engine, "job", 3, queue="other")
        eventually(lambda: held.begun == [1, 3])
        held.release.set()
        eventually(lambda: len(archived(engine)) == 2)
        sleep(SEEN / 2)
        assert held.begun == [1, 3]
        assert [job.attempts for job in queued(engine)] == [0]
        resumed = monotonic()
        resume(engine)
        eventually(lambda: len(archived(engine)) == 3)
        assert monotonic() - resumed < 15  # the polling interval is a minute
    assert held.begun == [1, 3, 2]


def test_a_busy_worker_sees_the_pause(engine: Engine, kind: Kind) -> None:
    """A worker that never waits claims nothing that is enqueued a second after the commit."""
    ran: list[int] = []
    handlers = Handlers()

    @handlers("busy")
    def busy(payload: int) -> None:
        ran.append(payload)
        sleep(0.002)

    with Session(engine) as session, session.begin():
        enqueue_many(session, [("busy", n) for n in range(4000)])
    with kind.worker(engine, handlers, notify=False):
        eventually(lambda: len(ran) > 10)
        pause(engine)
        sleep(SEEN)
        # Jobs that were claimed before end: in transaction mode, those of one batch window.
        sleep(0.2)
        before = len(ran)
        sleep(0.5)
        assert len(ran) == before < 4000
    assert len(archived(engine)) == len(ran)


def test_a_long_batch_window_delays_no_pause(engine: Engine) -> None:
    """The batches of a long window are committed and claimed in one message, one after another."""
    ran: list[int] = []
    handlers = Handlers()

    @handlers("busy")
    def busy(payload: int) -> None:
        ran.append(payload)
        sleep(0.002)

    with Session(engine) as session, session.begin():
        enqueue_many(session, [("busy", n) for n in range(4000)])
    window = timedelta(seconds=20)
    worker = QueueWorker(engine, handlers, notify=False, batch_size=10, batch_window=window)
    with worker:
        eventually(lambda: len(ran) > 10)
        pause(engine)
        sleep(SEEN)
        sleep(0.2)  # the jobs that were claimed before end
        before = len(ran)
        sleep(0.5)
        assert len(ran) == before < 4000
    assert len(archived(engine)) == len(ran)


@pytest.mark.parametrize("notify", [True, False])
def test_a_worker_that_starts_later_honours_the_pause(
    engine: Engine, kind: Kind, notify: bool
) -> None:
    """Also one that was started, and stopped, immediately before."""
    put(engine, "job")
    put(engine, "job", queue="other")
    worker = kind.worker(engine, succeed, polling_interval=MINUTE, notify=notify)
    with Session(engine) as session:
        manage.pause(session, "default")
        session.commit()
    assert run_all(engine, succeed) == 0
    with worker:
        sleep(0.3)
        assert archived(engine) == []
        resume(engine)
        eventually(lambda: len(archived(engine)) == 1)
    assert kind.run_all(engine, succeed, queues="other") == 1


def test_a_drain_after_a_drain(engine: Engine, kind: Kind) -> None:
    """What a worker knew at its last start does not count."""
    options = {"queues": ["default", "other"]}
    if kind.driver is not None:  # its engine is disposed of with the first loop
        pytest.skip("one worker cannot drain twice in the tests' loops")
    worker = kind.worker(engine, succeed, **options)
    put(engine, "job")
    assert worker.drain() == 1
    pause(engine)
    put(engine, "job")
    put(engine, "job", queue="other")
    assert worker.drain() == 1
    resume(engine)
    assert worker.drain() == 1


def test_a_rollback_pauses_nothing(engine: Engine, kind: Kind) -> None:
    """A pause takes effect with the commit, and a rollback or a SAVEPOINT undoes it."""
    log = Log()
    with kind.worker(engine, succeed, log=log, polling_interval=MINUTE):
        with Session(engine) as session:
            assert manage.pause(session, "default")
            sleep(0.7)
            put(engine, "job")
            eventually(lambda: len(archived(engine)) == 1)
            session.rollback()
        with Session(engine) as session, session.begin():
            nested = session.begin_nested()
            assert manage.pause(session, "default")
            nested.rollback()
        put(engine, "job")
        eventually(lambda: len(archived(engine)) == 2)
    assert "queue-paused" not in log.events()


def test_the_worker_reports_what_it_sees(engine: Engine, kind: Kind) -> None:
    log = Log()
    with kind.worker(engine, succeed, log=log, polling_interval=MINUTE):
        eventually(lambda: "polling-for-jobs" in log.events())
        pause(engine)
        pause(engine, "of no worker")
        eventually(lambda: log.data("queue-paused"))
        resume(engine)
        eventually(lambda: log.data("queue-resumed"))
    assert [data["queue"] for data in log.data("queue-paused")] == ["default"]
    assert [data["queue"] for data in log.data("queue-resumed")] == ["default"]


def test_rows_that_are_written_by_hand_count(engine: Engine, kind: Kind) -> None:
    """The table decides, no matter who changes it, and without any notification."""
    with engine.begin() as connection:
        values = {"queue": "default", "paused_at": utcnow()}
        connection.execute(insert(PausedQueue.__table__).values(values))
    put(engine, "job")
    with kind.worker(engine, succeed, polling_interval=MINUTE):
        sleep(0.3)
        assert archived(engine) == []
        with engine.begin() as connection:
            connection.execute(delete(PausedQueue.__table__))
        eventually(lambda: len(archived(engine)) == 1)


# Tables.


class PausedShopQueue(PausedQueueMixin, Shop):
    """A table of the shop, with a column of its own."""

    __tablename__ = "paused_shop_queue"

    ticket: Mapped[str | None] = mapped_column(default=None)


@contextmanager
def two_tables(shop: Engine) -> Iterator[dict[str, Any]]:
    """Yield the options of a worker for a second job table."""
    with Session(shop) as session, session.begin():
        enqueue(session, "job")
        enqueue(session, "job", job_model=EmailJob)
    yield {"job_model": EmailJob, "archived_job_model": ArchivedEmailJob}


def test_job_tables_that_share_a_table_are_paused_together(shop: Engine, kind: Kind) -> None:
    with two_tables(shop) as options:
        pause(shop)
        options["paused_queue_model"] = PausedQueue
        assert kind.run_all(shop, succeed) == kind.run_all(shop, succeed, **options) == 0
        resume(shop)
        assert kind.run_all(shop, succeed) == kind.run_all(shop, succeed, **options) == 1


def test_job_tables_with_separate_tables_are_paused_separately(shop: Engine, kind: Kind) -> None:
    with two_tables(shop) as options:
        pause(shop, paused_queue_model=PausedShopQueue)
        options["paused_queue_model"] = PausedShopQueue
        assert kind.run_all(shop, succeed, **options) == 0
        assert kind.run_all(shop, succeed) == 1
        assert resume(shop, paused_queue_model=PausedShopQueue)
        assert kind.run_all(shop, succeed, **options) == 1


def test_a_worker_of_another_job_table_reads_none_by_default(shop: Engine) -> None:
    with two_tables(shop) as options:
        pause(shop)
        assert run_all(shop, succeed, **options) == 1
        assert run_all(shop, succeed, paused_queue_model=None) == 1


def test_a_missing_table_is_reported(empty_database: Any) -> None:
    """By ``pause`` and by a worker that starts; so is a missing privilege."""
    migrate.upgrade(empty_database)
    engine = create_engine(empty_database)
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE proletarian.paused_queue"))
    with pytest.raises(TablesMissingError, match="paused_queue"):
        pause(engine)
    with pytest.raises(TablesMissingError, match="paused_queue does not exist"):
        run_all(engine, succeed)
    assert run_all(engine, succeed, paused_queue_model=None) == 0
    Base.metadata.create_all(engine)
    assert pause(engine)
    with engine.begin() as connection:
        connection.execute(text("CREATE ROLE pauses_nothing"))
        connection.execute(text("GRANT USAGE ON SCHEMA proletarian TO pauses_nothing"))
    try:
        with Session(engine) as session:
            session.execute(text("SET LOCAL ROLE pauses_nothing"))
            with pytest.raises(PrivilegeError, match="GRANT SELECT, DELETE ON proletarian"):
                manage.resume(session, "default")
    finally:
        with engine.begin() as connection:
            connection.execute(text("DROP OWNED BY pauses_nothing"))
            connection.execute(text("DROP ROLE pauses_nothing"))
        engine.dispose()


def test_the_primary_key_is_the_queue() -> None:
    """A model with another primary key is rejected when it is mapped."""

    class Base(DeclarativeBase):
        pass

    with pytest.raises(
        ModelError, match=r"primary key of .*Numbered must be queue, not \(queue, id\)"
    ):

        class Numbered(PausedQueueMixin, Base):
            __tablename__ = "numbered_paused_queue"
            id: Mapped[int] = mapped_column(primary_key=True)


@in_a_loop
async def test_in_asyncio(engine: Engine, loop_engine: AsyncEngine) -> None:
    """The awaitable variants do the same; the plain ones reject an AsyncSession."""
    async with AsyncSession(loop_engine) as session, session.begin():
        assert await async_pause(session, "mail", reason="in a loop")
        assert not await async_pause(session, "mail")
        with pytest.raises(TypeError, match=r"asyncio\.pause\(session, queue\)"):
            manage.pause(session, "mail")  # type: ignore[arg-type]
    async with AsyncSession(loop_engine) as session, session.begin():
        assert [row.reason for row in rows(engine, PausedQueue)] == ["in a loop"]
        assert await async_resume(session, "mail")
    assert rows(engine, PausedQueue) == []
