"""A worker's life: start, stop, signals, and what it leaves behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread, Timer
from time import monotonic, sleep
from typing import Any

import pytest
from sqlalchemy import URL, Engine, create_engine, event, func, select, text
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import (
    Handlers,
    Job,
    QueueWorker,
    RunningJob,
    SchemaMismatchError,
    ShutdownTimeoutError,
    TablesMissingError,
    enqueue_many,
)
from sqlalchemy_proletarian.wakeup.channels import channel_of
from sqlalchemy_proletarian.worker.pool import LOOKS

from .support import (
    MINUTE,
    SECOND,
    Log,
    Note,
    archived,
    at_most,
    eventually,
    notes,
    only_archived,
    only_queued,
    put,
    queued,
    rows,
    run_all,
    succeed,
)


def connections(engine: Engine, name: str) -> int:
    """Return how many connections a worker has."""
    with engine.connect() as connection:
        return int(
            connection.scalar(
                text("SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE :name"),
                {"name": f"{name}%"},
            )
            or 0
        )


# Starting and stopping.


def test_context_manager(engine: Engine) -> None:
    """Inside the ``with`` block jobs run; afterwards they wait."""
    with QueueWorker(engine, succeed) as worker:
        put(engine, "a")
        eventually(lambda: archived(engine))
        assert not worker.stopping
    put(engine, "b")
    assert only_queued(engine).job_type == "b"


def test_jobs_that_waited_run_at_start(engine: Engine) -> None:
    """Jobs enqueued while no worker ran are run when one starts."""
    put(engine, "a")
    with QueueWorker(engine, succeed, notify=False, polling_interval=MINUTE):
        eventually(lambda: archived(engine))


@pytest.mark.parametrize("notify", [True, False])
def test_new_jobs_are_found(engine: Engine, notify: bool) -> None:
    """An idle worker finds a new job: at once when commits are announced, else when it polls."""
    log = Log()
    options: Any = {"notify": notify, "log": log}
    if notify:
        options["polling_interval"] = MINUTE
    else:
        options["polling_interval"] = SECOND / 10
    with QueueWorker(engine, succeed, threads=2, **options):
        for n in range(1, 4):
            eventually(lambda: "polling-for-jobs" in log.events())
            sleep(0.05)
            log.entries.clear()
            put(engine, "a")
            eventually(lambda n=n: len(archived(engine)) == n)


def test_job_of_another_process_wakes_the_worker(engine: Engine, url: URL) -> None:
    """A commit in another process wakes an idle worker long before it would poll."""
    log = Log()
    program = (
        "import sys; from sqlalchemy import create_engine; from sqlalchemy.orm import Session\n"
        "from sqlalchemy_proletarian import enqueue\n"
        "with Session(create_engine(sys.argv[1])) as session, session.begin():\n"
        "    enqueue(session, 'elsewhere')\n"
    )
    with QueueWorker(engine, succeed, polling_interval=MINUTE, log=log):
        eventually(lambda: log.events().count("polling-for-jobs") >= 2)
        target = url.render_as_string(hide_password=False)
        subprocess.run([sys.executable, "-c", program, target], check=True)
        eventually(lambda: archived(engine))


def test_start_twice(engine: Engine) -> None:
    """Starting a running worker is an error, and the worker goes on."""
    with QueueWorker(engine, succeed, name="w") as worker:
        for start in (worker.start, worker.run):
            with pytest.raises(RuntimeError, match="the worker w is running already"):
                start()
        with pytest.raises(RuntimeError, match="the worker w is running"):
            worker.drain()
        put(engine, "a")
        eventually(lambda: archived(engine))


def test_stop_without_start_and_twice(engine: Engine) -> None:
    """Stopping a worker that does not run does nothing."""
    calls: list[int] = []
    worker = QueueWorker(engine, succeed, on_shutdown=lambda: calls.append(1))
    worker.stop()
    worker.request_stop()
    assert calls == []
    worker.start()
    worker.stop()
    worker.stop()
    assert calls == [1]


def test_restart(engine: Engine) -> None:
    """A stopped worker starts again, drains, and starts once more."""
    worker = QueueWorker(engine, succeed, threads=2)
    for n in (1, 3):
        with worker:
            put(engine, "a")
            eventually(lambda n=n: len(archived(engine)) == n)
        assert queued(engine) == []
        put(engine, "a")
        assert worker.drain() == 1
    assert len(archived(engine)) == 4


def test_stop_wakes_idle_threads(engine: Engine) -> None:
    """An idle worker stops at once, whatever its polling interval."""
    log = Log()
    worker = QueueWorker(engine, succeed, threads=4, polling_interval=10 * MINUTE, log=log)
    worker.start()
    eventually(lambda: "polling-for-jobs" in log.events())
    before = monotonic()
    worker.stop()
    assert monotonic() - before < 8
    assert [name for name in log.events() if name.startswith("worker")] == [
        "worker-starting",
        "worker-stopping",
        "worker-stopped",
    ]


def test_on_shutdown(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    """``on_shutdown`` is called when the last job has ended, and an error in it is logged."""
    seen: list[str] = []
    running = Event()

    def handler(job_type: str, payload: Any) -> None:
        running.set()
        sleep(0.1)
        seen.append("job")

    def on_shutdown() -> None:
        seen.append("shutdown")
        raise RuntimeError("no goodbye")

    put(engine, "a")
    with QueueWorker(engine, handler, on_shutdown=on_shutdown):
        assert running.wait(25)
    assert seen == ["job", "shutdown"]
    assert "no goodbye" in caplog.text


def test_request_stop_from_a_handler(engine: Engine) -> None:
    """A handler may ask its own worker to stop: ``run`` returns and its job is done."""
    handlers = Handlers()

    @handlers("last")
    def last(payload: Any) -> None:
        worker.request_stop()

    worker = QueueWorker(engine, handlers)
    put(engine, "last")
    put(engine, "last")
    thread = Thread(target=worker.run, daemon=True)  # signals are heard by the main thread only
    thread.start()
    thread.join(10)
    assert not thread.is_alive()
    assert only_archived(engine).status == "success"
    assert len(queued(engine)) == 1


def test_drain(engine: Engine) -> None:
    """``drain`` returns how many runs it took, retries that came due included."""

    def handler(job_type: str, payload: Any) -> None:
        if job_type == "bad":
            raise ValueError

    worker = QueueWorker(engine, handler, retry_strategy={"retries": 2})
    assert worker.drain() == 0
    put(engine, "good")
    put(engine, "bad")
    put(engine, "later", process_in=MINUTE)
    assert worker.drain() == 4
    assert worker.drain() == 0
    assert only_queued(engine).job_type == "later"


def test_drain_that_is_asked_to_stop(engine: Engine) -> None:
    """``drain`` ends early when the worker is asked to stop; the next one goes on."""
    runs: list[Any] = []

    def handler(job_type: str, payload: Any) -> None:
        runs.append(payload)
        if len(runs) == 4:
            worker.request_stop()

    worker = QueueWorker(engine, handler, batch_size=1)
    with Session(engine) as session, session.begin():
        enqueue_many(session, [("job", n) for n in range(10)])
    assert worker.drain() == 4
    assert worker.drain() == 6


@pytest.mark.parametrize("threads", [1, 3])
def test_drain_reports_errors(engine: Engine, threads: int) -> None:
    """An error that is no job's is raised by ``drain``, from whichever thread."""

    def broken_clock() -> Any:
        raise OSError("no clock")

    with pytest.raises(OSError, match="no clock"):
        QueueWorker(engine, succeed, clock=broken_clock, threads=threads).drain()


# Missing and late databases.


def test_missing_tables(empty_database: URL) -> None:
    """Without the tables a worker does not start, and names the command that makes them."""
    engine = create_engine(empty_database)
    worker = QueueWorker(engine, succeed)
    for start in (worker.start, worker.run, worker.drain):
        with pytest.raises(TablesMissingError) as refusal:
            start()
        assert "proletarian.job does not exist" in str(refusal.value)
        assert "proletarian migrate upgrade --url" in str(refusal.value)
    worker.stop()
    engine.dispose()


@pytest.mark.parametrize("table", ["archived_job", "running"])
def test_one_table_missing(empty_database: URL, table: str) -> None:
    """Each table that is missing is named."""
    engine = create_engine(empty_database)
    with engine.begin() as connection:
        connection.execute(text("CREATE SCHEMA proletarian"))
        Job.metadata.create_all(connection)
        connection.execute(text(f"DROP TABLE proletarian.{table}"))
    with pytest.raises(TablesMissingError, match=f"proletarian.{table} does not exist"):
        QueueWorker(engine, succeed).start()
    engine.dispose()


def test_database_that_comes_later(server_url: URL) -> None:
    """A worker may start before its database: it says so and keeps trying."""
    late = server_url.set(database="proletarian_test_late")
    engine = create_engine(late)
    admin = create_engine(server_url, isolation_level="AUTOCOMMIT")
    log = Log()
    try:
        with QueueWorker(engine, succeed, log=log):
            eventually(lambda: log.events().count("polling-error") >= 2)
            with admin.connect() as connection:
                connection.execute(text("CREATE DATABASE proletarian_test_late"))
            with engine.begin() as connection:
                connection.execute(text("CREATE SCHEMA proletarian"))
                Job.metadata.create_all(connection)
            put(engine, "a")
            eventually(lambda: archived(engine))
    finally:
        engine.dispose()
        with admin.connect() as connection:
            connection.execute(text("DROP DATABASE proletarian_test_late WITH (FORCE)"))
        admin.dispose()


def test_outdated_tables(empty_database: URL) -> None:
    """A table without a column that is needed is an error that names the column."""
    engine = create_engine(empty_database)
    with engine.begin() as connection:
        connection.execute(text("CREATE SCHEMA proletarian"))
        Job.metadata.create_all(connection)
        connection.execute(text("ALTER TABLE proletarian.job DROP COLUMN priority"))
    with pytest.raises(SchemaMismatchError, match=r"column priority of proletarian\.job"):
        QueueWorker(engine, succeed).drain()
    engine.dispose()


def test_connection_that_cannot_be_set_up(url: URL) -> None:
    """A connection on which the worker's settings fail is closed, and the pool is as it was."""
    engine = create_engine(url)

    @event.listens_for(engine, "before_cursor_execute")
    def refuse(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if "set_config" in statement:
            raise PermissionError("settings are locked")

    with pytest.raises(PermissionError, match="settings are locked"):
        QueueWorker(engine, succeed, name="locked").drain()
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    engine.dispose()


def test_listening_outlives_a_quiet_hour(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that heard nothing for long still listens, and not to other queues."""
    monkeypatch.setattr("sqlalchemy_proletarian.wakeup.listener.PROOF_OF_LIFE", 0.02)
    log = Log()
    channel = channel_of("proletarian.job")
    with QueueWorker(engine, succeed, polling_interval=MINUTE, log=log):
        eventually(lambda: log.events().count("polling-for-jobs") >= 1 + len(LOOKS))
        sleep(0.1)
        polls = log.events().count("polling-for-jobs")
        with engine.begin() as connection:
            connection.execute(select(func.pg_notify(channel, "other")))
        sleep(0.1)
        assert log.events().count("polling-for-jobs") == polls
        with engine.begin() as connection:
            connection.execute(select(func.pg_notify(channel, "default")))
        eventually(lambda: log.events().count("polling-for-jobs") > polls)
    assert "listening-lost" not in log.events()


# A handler that does not end.


@contextmanager
def stuck(engine: Engine, **options: Any) -> Iterator[tuple[QueueWorker, Event, Event]]:
    """A worker whose handler runs until it is released."""
    started, release = Event(), Event()
    handlers = Handlers()

    @handlers("stuck")
    def handler(payload: Any, session: Session) -> None:
        session.add(Note(text="half done"))
        session.flush()
        started.set()
        assert release.wait(30)

    worker = QueueWorker(engine, handlers, **options)
    worker.start()
    try:
        assert started.wait(25)
        yield worker, started, release
    finally:
        release.set()


def test_shutdown_timeout(shop: Engine) -> None:
    """A handler that outlasts the timeout loses its job: rolled back, uncounted, due at once."""
    put(shop, "stuck")
    before = only_queued(shop)
    calls: list[int] = []
    log = Log()
    options: Any = {"shutdown_timeout": SECOND / 10, "log": log}
    with stuck(shop, on_shutdown=lambda: calls.append(1), **options) as (worker, _, _):
        with pytest.raises(ShutdownTimeoutError, match=r"1 of 1 handlers of .* after 0\.1 s"):
            worker.stop()
        assert calls == [1]
        assert log.events()[-1] == "worker-stop-timed-out"
        after = only_queued(shop)
        assert (after.attempts, after.process_at, after.error) == (0, before.process_at, None)
        handlers = Handlers()
        seen: list[int] = []

        @handlers("stuck")
        def handler(payload: Any, session: Session, job: Job) -> None:
            seen.append(job.attempts)
            session.add(Note(text="done"))

        eventually(lambda: run_all(shop, handlers) == 1)
        assert seen == [1]
    sleep(0.2)  # the handler that was given up ends now
    eventually(lambda: connections(shop, worker.name) == 0)
    assert notes(shop) == ["done"]
    assert (only_archived(shop).status, only_archived(shop).attempts) == ("success", 1)
    assert rows(shop, RunningJob) == []


def test_late_handler_still_sees_that_it_should_stop(shop: Engine) -> None:
    """A handler that ``stop`` no longer waits for finds ``worker.stopping`` true when it looks."""
    put(shop, "stuck")
    seen: list[bool] = []
    with stuck(shop, shutdown_timeout=SECOND / 10) as (worker, _, _):
        with pytest.raises(ShutdownTimeoutError):
            worker.stop()
        seen.append(worker.stopping)
    assert seen == [True]


def test_shutdown_timeout_during_a_query(shop: Engine) -> None:
    """A handler that waits for the database loses its job just as fast."""
    handlers = Handlers()
    running = Event()

    @handlers("query")
    def query(payload: Any, session: Session) -> None:
        running.set()
        session.execute(select(func.pg_sleep(8)))

    put(shop, "query")
    worker = QueueWorker(shop, handlers, shutdown_timeout=SECOND / 10)
    worker.start()
    assert running.wait(25)
    sleep(0.1)
    with pytest.raises(ShutdownTimeoutError):
        worker.stop()
    eventually(lambda: run_all(shop, succeed) == 1)


def test_start_after_a_shutdown_timeout(shop: Engine) -> None:
    """After a timeout the worker starts again, and the thread it gave up does no more work."""
    put(shop, "stuck")
    with stuck(shop, shutdown_timeout=SECOND / 10, name="again") as (worker, started, release):
        with pytest.raises(ShutdownTimeoutError):
            worker.stop()
        started.clear()
        worker.start()
        assert started.wait(25)
        release.set()
        eventually(lambda: archived(shop))
        worker.stop()
    assert notes(shop) == ["half done"]
    assert only_archived(shop).attempts == 1
    eventually(lambda: connections(shop, "again") == 0)


# The caller's engine.


def test_the_callers_engine_is_unchanged(url: URL) -> None:
    """The worker's connections are its own: the caller's pool and settings are as they were."""
    engine = create_engine(url, pool_size=2, max_overflow=0, pool_timeout=2)
    settings = text(
        "SELECT name, setting FROM pg_settings WHERE name LIKE 'tcp%' OR name IN "
        "('idle_in_transaction_session_timeout', 'application_name', 'synchronous_commit', "
        "'transaction_isolation') ORDER BY name"
    )
    with engine.connect() as connection:
        before = connection.execute(settings).all()
    status = engine.pool.status()
    with QueueWorker(engine, succeed, threads=4, name="own"):
        put(engine, "a")
        eventually(lambda: archived(engine))
        assert connections(engine, "own") >= 5
        with engine.connect() as one, engine.connect() as two:
            assert one.execute(settings).all() == before
            assert two.execute(settings).all() == before
    assert (
        engine.pool.status().split("Connections in pool")[0]
        == status.split("Connections in pool")[0]
    )
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    with engine.connect() as connection:
        assert connection.execute(settings).all() == before
    eventually(lambda: connections(engine, "own") == 0)
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM proletarian.archived_job"))
    engine.dispose()


def test_settings_of_the_workers_connections(engine: Engine) -> None:
    """The worker's connections carry its name and notice a vanished host within seconds."""
    seen: list[Any] = []
    handlers = Handlers()

    @handlers("look")
    def look(payload: Any, session: Session) -> None:
        names = "application_name", "idle_in_transaction_session_timeout", "transaction_isolation"
        seen.extend(session.scalar(select(func.current_setting(name))) for name in names)

    put(engine, "look")
    name = "worker " + "x" * 100
    run_all(engine, handlers, name=name)
    assert seen[0].startswith(name[:40])
    assert seen[1:] == ["0", "read committed"]


@pytest.mark.parametrize("isolation_level", ["AUTOCOMMIT", "SERIALIZABLE"])
def test_engine_in_another_isolation_level(shop: Engine, isolation_level: Any) -> None:
    """A worker on an engine in AUTOCOMMIT still holds its locks and undoes what failed."""
    engine = create_engine(shop.url, isolation_level=isolation_level)
    handlers = Handlers()

    @handlers("write")
    def write(payload: Any, session: Session) -> None:
        session.add(Note(text="lost"))
        session.flush()
        assert run_all(shop, succeed) == 0  # the lock holds
        raise ValueError

    put(shop, "write")
    run_all(engine, handlers)
    assert notes(shop) == []
    assert only_archived(shop).status == "failure"
    engine.dispose()


# Signals and deaths.

PROGRAM = """
    import sys, time
    from datetime import timedelta
    from sqlalchemy import create_engine, text
    from sqlalchemy.orm import Session
    from sqlalchemy_proletarian import Handlers, QueueWorker

    url, how, timeout = sys.argv[1:]
    handlers = Handlers()

    @handlers("job")
    def job(payload, session: Session):
        session.execute(text("INSERT INTO note (text, transaction) VALUES ('written', 0)"))
        print("running", flush=True)
        while not worker.stopping:
            time.sleep(0.01)
        if how == "gives up":
            raise TimeoutError
        if how == "hangs":
            time.sleep(30)

    worker = QueueWorker(
        create_engine(url),
        handlers,
        name="subprocess",
        shutdown_timeout=timedelta(seconds=float(timeout)),
        on_shutdown=lambda: print("goodbye", flush=True),
    )
    worker.run()
    print("returned", flush=True)
"""


@contextmanager
def process(url: URL, how: str, timeout: float = 10) -> Iterator[subprocess.Popen[str]]:
    """A worker in a process of its own, in the middle of a job."""
    arguments = [url.render_as_string(hide_password=False), how, str(timeout)]
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(PROGRAM), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as child:
        try:
            assert child.stdout is not None
            with at_most(15, child.kill):
                started = child.stdout.readline() == "running\n"
            assert started, child.communicate(timeout=5)[1]
            yield child
        finally:
            child.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("how", ["finishes", "gives up"])
def test_signal_during_a_job(shop: Engine, url: URL, number: int, how: str) -> None:
    """At SIGTERM and SIGINT a running job may end; ``run`` returns and the process exits with 0."""
    put(shop, "job")
    put(shop, "job", priority=9)
    with process(url, how) as child:
        child.send_signal(number)
        out, err = child.communicate(timeout=25)
    assert (child.returncode, out) == (0, "goodbye\nreturned\n"), err
    if how == "finishes":
        assert only_archived(shop).status == "success"
        assert notes(shop) == ["written"]
        assert only_queued(shop).attempts == 0
    else:
        assert [job.attempts for job in queued(shop)] == [0, 0]
        assert notes(shop) == archived(shop) == []
    assert rows(shop, RunningJob) == []


def test_signal_and_a_handler_that_hangs(shop: Engine, url: URL) -> None:
    """A handler that ignores SIGTERM costs ``shutdown_timeout``; the process ends with an error."""
    put(shop, "job")
    with process(url, "hangs", timeout=0.2) as child:
        child.send_signal(signal.SIGTERM)
        out, err = child.communicate(timeout=25)
    assert child.returncode == 1
    assert out == "goodbye\n"
    assert "ShutdownTimeoutError" in err
    assert only_queued(shop).attempts == 0
    assert rows(shop, RunningJob) == []
    assert run_all(shop, succeed) == 1
    assert only_archived(shop).attempts == 1


def test_second_signal(shop: Engine, url: URL) -> None:
    """A second signal does not wait for the handler."""
    put(shop, "job")
    with process(url, "hangs", timeout=30) as child:
        child.send_signal(signal.SIGINT)
        sleep(0.3)
        assert child.poll() is None
        child.send_signal(signal.SIGINT)
        _, err = child.communicate(timeout=25)
    assert child.returncode != 0
    assert "KeyboardInterrupt" in err
    eventually(lambda: connections(shop, "subprocess") == 0)
    assert only_queued(shop).attempts == 0


def test_killed_in_the_middle(shop: Engine, url: URL) -> None:
    """A job whose worker is killed is neither lost nor half done, and has used up no attempt."""
    put(shop, "job")
    with process(url, "hangs") as child:
        os.kill(child.pid, signal.SIGKILL)
        child.wait(25)
    eventually(lambda: connections(shop, "subprocess") == 0)
    assert run_all(shop, succeed) == 1
    job = only_archived(shop)
    assert (job.status, job.attempts, job.deaths, job.error) == ("success", 1, 1, None)
    assert notes(shop) == []


def test_second_signal_in_the_main_thread(shop: Engine) -> None:
    """Ctrl-C twice ends ``run`` with KeyboardInterrupt; the job is due again, uncounted."""
    started, release = Event(), Event()

    def handler(job_type: str, payload: Any) -> None:
        started.set()
        assert release.wait(30)

    def interrupt() -> None:
        assert started.wait(25)
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
            sleep(0.2)

    put(shop, "stuck")
    worker = QueueWorker(shop, handler, shutdown_timeout=5 * SECOND)
    impatient = Thread(target=interrupt, daemon=True)
    impatient.start()
    with at_most(12, worker.request_stop), pytest.raises(KeyboardInterrupt):
        worker.run()
    impatient.join(10)
    release.set()
    worker.stop()
    assert only_queued(shop).attempts == 0


def test_signals_are_given_back(engine: Engine) -> None:
    """After ``run`` the program's own signal handlers are in place again."""
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    worker = QueueWorker(engine, succeed)
    Timer(0.2, worker.request_stop).start()
    worker.run()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_signal_while_starting(url: URL) -> None:
    """A SIGTERM that comes while the worker is still connecting is heard as well."""
    engine = create_engine(url)
    fired: list[int] = []

    @event.listens_for(engine, "connect")
    def on_connect(*_: object) -> None:
        if not fired:
            fired.append(1)
            signal.raise_signal(signal.SIGTERM)

    worker = QueueWorker(engine, succeed)
    with at_most(3, worker.request_stop):
        worker.run()
    assert fired == [1]
    engine.dispose()


def test_many_threads_stop_in_the_middle_of_the_backlog(engine: Engine) -> None:
    """A worker that stops in a backlog leaves every job done once or still waiting."""
    with Session(engine) as session, session.begin():
        enqueue_many(session, [("n", n) for n in range(2000)])
    runs: list[int] = []
    with QueueWorker(engine, lambda _, n: runs.append(n), threads=4):
        eventually(lambda: len(runs) > 200)
    done = {int(job.payload) for job in archived(engine)}
    left = {int(job.payload) for job in queued(engine)}
    assert len(runs) == len(set(runs))
    assert done == set(runs)
    assert done | left == set(range(2000))
    assert not done & left
    assert left
    assert rows(engine, RunningJob) == []
