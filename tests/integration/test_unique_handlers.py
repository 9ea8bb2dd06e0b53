"""Handlers that are registered with a unique key, and workers that end while they run its job."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from time import sleep
from typing import Any

import pytest
from sqlalchemy import URL, Connection, Engine, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import (
    Handlers,
    Job,
    JobExistsError,
    PrivilegeError,
    QueueWorker,
    enqueue_unique,
    process_next_job,
)
from sqlalchemy_proletarian.errors import HandlerError

from .loops import in_a_loop
from .support import (
    MINUTE,
    EmailJob,
    Log,
    archived,
    eventually,
    listening,
    only_queued,
    queued,
    run_all,
    succeed,
)

WORKER = """
import sys
from datetime import timedelta
from time import sleep
from sqlalchemy import create_engine
from sqlalchemy_proletarian import Handlers, QueueWorker

handlers = Handlers()

@handlers("index")
def index(page: int) -> None:
    print("started", flush=True)
    sleep(3600)

url, lease = sys.argv[1:]
options = {"lease": timedelta(seconds=1)} if lease else {}
QueueWorker(create_engine(url), handlers, **options).run()
"""


def indexers(**options: Any) -> Any:
    """Return a handler of a new registry, whose key is the page."""
    handlers = Handlers()

    @handlers("index", unique_key=lambda page: f"page {page}", queue="slow", **options)
    def index(page: int) -> None: ...

    return index


def test_the_key_is_computed_from_the_payload(engine: Engine) -> None:
    """``enqueue`` returns the job that has the key; ``enqueue_unique`` says if it is new."""
    index = indexers()
    with Session(engine) as session, session.begin():
        one = index.enqueue(session, 1, priority=2)
        assert (one.unique_key, one.queue, one.priority) == ("page 1", "slow", 2)
        assert one.unique_while is None
        assert index.enqueue(session, 1) is one
        two = index.enqueue_unique(session, 2)
        assert (two.created, two.job.unique_key) == (True, "page 2")
        assert index.enqueue_unique(session, 3, unique_key="other").job.unique_key == "other"
    with engine.begin() as connection:
        assert index.enqueue(connection, 1) == one.job_id
    assert len(queued(engine)) == 3


def test_the_options_of_the_registration_apply(engine: Engine) -> None:
    """A call may override them."""
    index = indexers(unique_while="queued", on_conflict="replace")
    with Session(engine) as session, session.begin():
        job = index.enqueue(session, 1)
        assert job.unique_while == "queued"
        again = index.enqueue_unique(session, 1, process_in=MINUTE)
        assert again.replaced
        assert job.process_at - job.enqueued_at == MINUTE
        assert not index.enqueue_unique(session, 1, on_conflict="ignore").replaced
        with pytest.raises(JobExistsError):
            index.enqueue_unique(session, 1, on_conflict="raise")
        index.enqueue_unique(session, 1, unique_while="running")
        assert job.unique_while is None


@pytest.mark.parametrize(
    ("options", "error", "reason"),
    [
        ({"unique_key": "k"}, TypeError, "unique_key must be a function of the payload, not 'k'"),
        ({"unique_while": "never"}, ValueError, "unique_while must be one of 'queued', 'running'"),
        ({"on_conflict": "update"}, ValueError, "on_conflict must be one of 'ignore', 'replace'"),
    ],
)
def test_options_are_checked(
    engine: Engine, options: Any, error: type[Exception], reason: str
) -> None:
    """They are checked at the registration, and at a call."""
    with pytest.raises(error, match=reason):
        Handlers()("index", **options)
    options.pop("unique_key", None)
    if options:
        with Session(engine) as session, pytest.raises(error, match=reason):
            enqueue_unique(session, "index", unique_key="k", **options)


def test_a_key_is_needed(engine: Engine) -> None:
    """The error says where it may come from; a function must return a valid key."""
    handlers = Handlers()

    @handlers("plain")
    def plain(payload: Any) -> None: ...

    @handlers("wrong", unique_key=lambda _: 7)
    def wrong(payload: Any) -> None: ...

    with Session(engine) as session:
        with pytest.raises(TypeError, match="'plain' has no unique_key: pass one"):
            plain.enqueue_unique(session, 1)
        assert plain.enqueue_unique(session, 1, unique_key="k").created
        with pytest.raises(TypeError, match="unique_key must be a string, not 7"):
            wrong.enqueue(session, 1)


def test_job_classes_have_no_key_of_a_payload() -> None:
    """The error says what to do instead."""
    from .orders import SendInvoice

    handlers: Any = Handlers()
    with pytest.raises(HandlerError, match="unique_key is for handlers of payloads"):
        handlers(SendInvoice, unique_key=str)
    send = handlers(SendInvoice)(lambda job: None)
    with Session() as session, pytest.raises(TypeError, match="job_model=SendInvoice"):
        send.enqueue_unique(session, SendInvoice())


@in_a_loop
async def test_in_asyncio(engine: Engine, loop_engine: AsyncEngine) -> None:
    """``run_sync`` passes the Session of an AsyncSession; the error names it."""
    index: Any = indexers()
    async with AsyncSession(loop_engine) as session:
        with pytest.raises(TypeError, match=r"await session.run_sync\(handler.enqueue, payload"):
            index.enqueue(session, 1)
        job = await session.run_sync(index.enqueue, 1)
        assert isinstance(job, Job)
        assert not (await session.run_sync(index.enqueue_unique, 1)).created
        replaced = await session.run_sync(index.enqueue_unique, 1, on_conflict="replace")
        assert replaced.replaced
        await session.commit()
    async with loop_engine.begin() as connection:
        assert await connection.run_sync(index.enqueue, 1) == job.job_id
    assert len(queued(engine)) == 1


def test_a_handler_enqueues_its_own_key(engine: Engine, held: dict[str, Any]) -> None:
    """The key that is taken while the job waits is free, also in the handler's session."""
    handlers, runs = Handlers(), []

    @handlers("again", unique_key=lambda _: "k", unique_while="queued")
    def again(n: int, session: Session) -> None:
        runs.append(n)
        if n < 3:
            assert again.enqueue_unique(session, n + 1).created

    with Session(engine) as session, session.begin():
        again.enqueue(session, 1)
    QueueWorker(engine, handlers, **held).drain()
    assert runs == [1, 2, 3]


def test_process_next_job_frees_the_key_in_its_transaction(engine: Engine) -> None:
    """The handler's session sees it; the job runs at the first call."""
    handlers = Handlers()

    @handlers("again", unique_key=lambda _: "k", unique_while="queued")
    def again(n: int, session: Session) -> None:
        if n == 1:
            assert again.enqueue_unique(session, 2).created

    with Session(engine) as session:
        again.enqueue(session, 1)
        assert process_next_job(session, handlers)
        assert process_next_job(session, handlers)
        assert process_next_job(session, handlers) is None
    assert [job.payload for job in archived(engine)] == ["1", "2"]


def test_other_jobs_of_the_batch_run(engine: Engine, held: dict[str, Any]) -> None:
    """Jobs with and without keys run once each."""
    ran: list[Any] = []
    with Session(engine) as session, session.begin():
        for n in range(20):
            if n % 3:
                session.add(Job(job_type="job", payload=str(n)))
            else:
                enqueue_unique(session, "job", n, unique_key=f"{n}", unique_while="queued")
    assert run_all(engine, lambda _, n: ran.append(n), **held) == 20
    assert sorted(ran) == list(range(20))


def by_session(engine: Engine, **options: Any) -> None:
    with Session(engine) as session, session.begin():
        enqueue_unique(session, "job", unique_key="k", **options)


def test_a_replaced_job_is_announced(engine: Engine, url: URL) -> None:
    """It may be due earlier. A job that another call keeps from starting is announced, too."""
    by_session(engine, process_in=MINUTE)
    with listening(url) as announced:
        by_session(engine, on_conflict="replace", queue="default", notify=False)
        assert announced() == []
        by_session(engine, on_conflict="replace")
        assert announced() == ["default"]
        by_session(engine)
        assert announced() == []


def test_a_kept_job_starts_at_once_after_the_commit(engine: Engine) -> None:
    """The commit wakes the worker that has skipped the locked row."""
    log = Log()
    with Session(engine) as session:
        enqueue_unique(session, "job", unique_key="k", unique_while="queued")
        session.commit()
        enqueue_unique(session, "job", unique_key="k", unique_while="queued")
        with QueueWorker(engine, succeed, polling_interval=MINUTE, log=log):
            eventually(lambda: log.events().count("polling-for-jobs") >= 2)
            sleep(2)  # an idle worker looks again a few times
            assert archived(engine) == []
            session.commit()
            eventually(lambda: archived(engine))


@pytest.mark.parametrize("lease", ["", "lease"])
def test_a_worker_that_is_killed(engine: Engine, url: URL, lease: str) -> None:
    """The job runs again. Its key stays free, and the job that has it now runs as well."""
    index = indexers(unique_while="queued")
    with Session(engine) as session, session.begin():
        index.enqueue(session, 1, queue="default")
    program = [sys.executable, "-c", WORKER, url.render_as_string(hide_password=False), lease]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "started\n"
            assert only_queued(engine).unique_key is None
            with Session(engine) as session, session.begin():
                assert index.enqueue_unique(session, 1, queue="default").created
        finally:
            process.send_signal(signal.SIGKILL)
    assert len(queued(engine)) == 2
    worker = QueueWorker(engine, succeed)
    eventually(lambda: worker.drain() >= 0 and len(archived(engine)) == 2)
    assert {job.status for job in archived(engine)} == {"success"}
    assert len(archived(engine)) == 2


@pytest.mark.parametrize(
    "call",
    [
        lambda unit: enqueue_unique(unit, "job", unique_key="k", on_conflict="replace"),
        lambda unit: enqueue_unique(unit, "job", unique_key="k", unique_while="queued"),
    ],
)
@pytest.mark.parametrize("form", [Session, lambda connection: connection])
def test_the_privileges_for_locks(
    engine: Engine, call: Callable[[Any], Any], form: Callable[[Connection], Any]
) -> None:
    """Locking and replacing a job need UPDATE; the error has the GRANT."""
    by_session(engine, unique_while="queued")
    with engine.begin() as connection:
        connection.execute(text("CREATE ROLE only_inserts"))
        connection.execute(text("GRANT USAGE ON SCHEMA proletarian TO only_inserts"))
        connection.execute(text("GRANT SELECT, INSERT ON proletarian.job TO only_inserts"))
    try:
        with engine.connect() as connection:
            connection.execute(text("SET ROLE only_inserts"))
            with pytest.raises(PrivilegeError, match="GRANT SELECT, INSERT, UPDATE ON"):
                call(form(connection))
    finally:
        with engine.begin() as connection:
            connection.execute(text("DROP OWNED BY only_inserts"))
            connection.execute(text("DROP ROLE only_inserts"))


def test_columns_that_a_replacing_call_does_not_name(shop: Engine) -> None:
    """They stay as they are."""
    options: Any = {"unique_key": "k", "job_model": EmailJob}
    with Session(shop) as session, session.begin():
        first = enqueue_unique(session, "mail", campaign="may", internal="a", **options).job
        again = enqueue_unique(session, "mail", campaign="june", on_conflict="replace", **options)
        assert again.job is first
        assert (first.campaign, first.internal) == ("june", "a")
