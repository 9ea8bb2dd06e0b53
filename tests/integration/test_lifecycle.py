"""The life cycle of a worker: start, stop, signals, and cleanup."""

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
from sqlalchemy_proletarian.worker.assemble import Assembly
from sqlalchemy_proletarian.worker.loop import RECHECKS

from .kinds import WorkerInALoop, awaited
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


def test_jobs_run_inside_the_with_block(engine: Engine) -> None:
    """Jobs run inside the ``with`` block and wait after it."""
    with QueueWorker(engine, succeed) as worker:
        put(engine, "a")
        eventually(lambda: archived(engine))
        assert not worker.stopping
    put(engine, "b")
    assert only_queued(engine).job_type == "b"


def test_jobs_that_waited_run_at_start(engine: Engine) -> None:
    """Jobs enqueued while no worker was running are run when a worker starts."""
    put(engine, "a")
    with QueueWorker(engine, succeed, notify=False, polling_interval=MINUTE):
        eventually(lambda: archived(engine))


@pytest.mark.parametrize("notify", [True, False])
def test_an_idle_worker_finds_new_jobs(engine: Engine, notify: bool) -> None:
    """An idle worker finds a new job immediately with notifications, else at the next poll."""
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


def test_a_commit_in_another_process_wakes_the_worker(engine: Engine, url: URL) -> None:
    """A commit in another process wakes an idle worker before its next poll."""
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


def test_starting_a_running_worker_is_an_error(engine: Engine) -> None:
    """Starting a running worker raises an error; the worker keeps running."""
    with QueueWorker(engine, succeed, name="w") as worker:
        for start in (worker.start, worker.run):
            with pytest.raises(RuntimeError, match="the worker w is running already"):
                start()
        with pytest.raises(RuntimeError, match="the worker w is running"):
            worker.drain()
        put(engine, "a")
        eventually(lambda: archived(engine))


def test_stopping_a_stopped_worker_does_nothing(engine: Engine) -> None:
    """Stopping a worker that is not running does nothing."""
    shutdowns: list[int] = []
    worker = QueueWorker(engine, succeed, on_shutdown=lambda: shutdowns.append(1))
    worker.stop()
    worker.request_stop()
    assert shutdowns == []
    worker.start()
    worker.stop()
    worker.stop()
    assert shutdowns == [1]


def test_a_worker_can_be_restarted(engine: Engine) -> None:
    """A stopped worker can be started again and can drain the queue."""
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
    """An idle worker stops immediately, regardless of its polling interval."""
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


def test_on_shutdown_is_called_after_the_last_job(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    """``on_shutdown`` is called after the last job has ended; errors in it are logged."""
    seen: list[str] = []
    running = Event()

    def handler(job_type: str, payload: Any) -> None:
        running.set()
        sleep(0.1)
        seen.append("job")

    def on_shutdown() -> None:
        seen.append("shutdown")
        raise RuntimeError("no shutdown")

    put(engine, "a")
    with QueueWorker(engine, handler, on_shutdown=on_shutdown):
        assert running.wait(25)
    assert seen == ["job", "shutdown"]
    assert "no shutdown" in caplog.text


def test_a_handler_can_stop_its_worker(engine: Engine) -> None:
    """A handler can stop its own worker: its job completes and ``run`` returns."""
    handlers = Handlers()

    @handlers("last")
    def last(payload: Any) -> None:
        worker.request_stop()

    worker = QueueWorker(engine, handlers)
    put(engine, "last")
    put(engine, "last")
    thread = Thread(target=worker.run, daemon=True)  # only the main thread can handle signals
    thread.start()
    thread.join(10)
    assert not thread.is_alive()
    assert only_archived(engine).status == "success"
    assert len(queued(engine)) == 1


def test_drain_returns_the_number_of_runs(engine: Engine) -> None:
    """``drain`` returns the number of runs, including retries that became due."""

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


def test_request_stop_ends_drain(engine: Engine) -> None:
    """``drain`` returns early after ``request_stop``; the next call runs the remaining jobs."""
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
def test_drain_raises_errors(engine: Engine, threads: int) -> None:
    """``drain`` raises an error that no job caused, regardless of the thread."""

    def broken_clock() -> Any:
        raise OSError("no clock")

    with pytest.raises(OSError, match="no clock"):
        QueueWorker(engine, succeed, clock=broken_clock, threads=threads).drain()


# Missing databases and tables.


def test_a_worker_does_not_start_without_tables(empty_database: URL) -> None:
    """Without the tables a worker does not start; the error names the command to create them."""
    engine = create_engine(empty_database)
    worker = QueueWorker(engine, succeed)
    for start in (worker.start, worker.run, worker.drain):
        with pytest.raises(TablesMissingError) as error_info:
            start()
        assert "proletarian.job does not exist" in str(error_info.value)
        assert "proletarian migrate upgrade --url" in str(error_info.value)
    worker.stop()
    engine.dispose()


@pytest.mark.parametrize("table", ["archived_job", "running"])
def test_the_missing_table_is_named(empty_database: URL, table: str) -> None:
    """The error names the missing table."""
    engine = create_engine(empty_database)
    with engine.begin() as connection:
        connection.execute(text("CREATE SCHEMA proletarian"))
        Job.metadata.create_all(connection)
        connection.execute(text(f"DROP TABLE proletarian.{table}"))
    with pytest.raises(TablesMissingError, match=f"proletarian.{table} does not exist"):
        QueueWorker(engine, succeed).start()
    engine.dispose()


def test_a_worker_waits_for_its_database(server_url: URL) -> None:
    """A worker can start before its database exists: it logs errors and keeps trying."""
    late_url = server_url.set(database="proletarian_test_late")
    engine = create_engine(late_url)
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


def test_a_missing_column_is_named(empty_database: URL) -> None:
    """A missing column is an error that names the column."""
    engine = create_engine(empty_database)
    with engine.begin() as connection:
        connection.execute(text("CREATE SCHEMA proletarian"))
        Job.metadata.create_all(connection)
        connection.execute(text("ALTER TABLE proletarian.job DROP COLUMN priority"))
    with pytest.raises(SchemaMismatchError, match=r"column priority of proletarian\.job"):
        QueueWorker(engine, succeed).drain()
    engine.dispose()


def test_a_connection_whose_settings_fail_is_closed(url: URL) -> None:
    """If the settings of a connection fail, the connection is closed and not checked out."""
    engine = create_engine(url)

    @event.listens_for(engine, "before_cursor_execute")
    def reject(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if "set_config" in statement:
            raise PermissionError("settings are locked")

    with pytest.raises(PermissionError, match="settings are locked"):
        QueueWorker(engine, succeed, name="locked").drain()
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    engine.dispose()


def test_a_worker_still_listens_after_an_idle_period(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that has received nothing for long still listens, but ignores other queues."""
    monkeypatch.setattr("sqlalchemy_proletarian.wakeup.listener.PROOF_OF_LIFE", 0.02)
    log = Log()
    channel = channel_of("proletarian.job")
    with QueueWorker(engine, succeed, polling_interval=MINUTE, log=log):
        eventually(lambda: log.events().count("polling-for-jobs") >= 1 + len(RECHECKS))
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


# Handlers that do not end.


@contextmanager
def worker_with_blocked_handler(
    engine: Engine, **options: Any
) -> Iterator[tuple[QueueWorker, Event, Event]]:
    """Yield a running worker whose handler blocks until the event ``release`` is set."""
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


def test_a_job_that_exceeds_the_shutdown_timeout_is_rolled_back(shop: Engine) -> None:
    """A job that exceeds the timeout is rolled back, is due again, and counts no attempt."""
    put(shop, "stuck")
    before = only_queued(shop)
    shutdowns: list[int] = []
    log = Log()
    options: Any = {"shutdown_timeout": SECOND / 10, "log": log}
    with worker_with_blocked_handler(shop, on_shutdown=lambda: shutdowns.append(1), **options) as (
        worker,
        _,
        _,
    ):
        with pytest.raises(ShutdownTimeoutError, match=r"1 of 1 handlers of .* after 0\.1 s"):
            worker.stop()
        assert shutdowns == [1]
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
    sleep(0.2)  # the abandoned handler ends now
    eventually(lambda: connections(shop, worker.name) == 0)
    assert notes(shop) == ["done"]
    assert (only_archived(shop).status, only_archived(shop).attempts) == ("success", 1)
    assert rows(shop, RunningJob) == []


def test_stopping_stays_true_after_the_shutdown_timeout(shop: Engine) -> None:
    """``worker.stopping`` stays true for handlers that exceed the shutdown timeout."""
    put(shop, "stuck")
    seen: list[bool] = []
    with worker_with_blocked_handler(shop, shutdown_timeout=SECOND / 10) as (worker, _, _):
        with pytest.raises(ShutdownTimeoutError):
            worker.stop()
        seen.append(worker.stopping)
    assert seen == [True]


def test_shutdown_timeout_during_a_query(shop: Engine) -> None:
    """The timeout also applies to a handler that waits for a query."""
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
    """After a timeout the worker can start again, and its abandoned thread does no more work."""
    put(shop, "stuck")
    with worker_with_blocked_handler(shop, shutdown_timeout=SECOND / 10, name="again") as (
        worker,
        started,
        release,
    ):
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
    """The worker opens its own connections; the caller's pool and settings do not change."""
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


def test_settings_of_the_worker_connections(engine: Engine) -> None:
    """The worker sets the application name and other settings of its connections."""
    seen: list[Any] = []
    handlers = Handlers()

    @handlers("read-settings")
    def read_settings(payload: Any, session: Session) -> None:
        names = "application_name", "idle_in_transaction_session_timeout", "transaction_isolation"
        seen.extend(session.scalar(select(func.current_setting(name))) for name in names)

    put(engine, "read-settings")
    name = "worker " + "x" * 100
    run_all(engine, handlers, name=name)
    assert seen[0].startswith(name[:40])
    assert seen[1:] == ["0", "read committed"]


@pytest.mark.parametrize("isolation_level", ["AUTOCOMMIT", "SERIALIZABLE"])
def test_engines_with_other_isolation_levels(shop: Engine, isolation_level: Any) -> None:
    """With any isolation level, a worker keeps its locks and rolls back failed jobs."""
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


# Signals and crashes.

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
    """Yield a worker process that is running a job."""
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
def test_a_signal_lets_the_running_job_end(shop: Engine, url: URL, number: int, how: str) -> None:
    """After SIGTERM or SIGINT the running job may end; the process exits with code 0."""
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


def test_a_hanging_handler_exits_with_an_error(shop: Engine, url: URL) -> None:
    """If a handler exceeds ``shutdown_timeout`` after SIGTERM, the process exits with an error."""
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


def test_a_second_signal_does_not_wait(shop: Engine, url: URL) -> None:
    """After a second signal the process ends without waiting for the handler."""
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


def test_a_job_of_a_killed_worker_runs_again(shop: Engine, url: URL) -> None:
    """A job whose worker is killed is rolled back and runs again; no attempt is counted."""
    put(shop, "job")
    with process(url, "hangs") as child:
        os.kill(child.pid, signal.SIGKILL)
        child.wait(25)
    eventually(lambda: connections(shop, "subprocess") == 0)
    assert run_all(shop, succeed) == 1
    job = only_archived(shop)
    assert (job.status, job.attempts, job.deaths, job.error) == ("success", 1, 1, None)
    assert notes(shop) == []


def test_a_second_ctrl_c_ends_run(shop: Engine) -> None:
    """Pressing Ctrl-C twice ends ``run`` with KeyboardInterrupt; no attempt is counted."""
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
    interrupting = Thread(target=interrupt, daemon=True)
    interrupting.start()
    with at_most(12, worker.request_stop), pytest.raises(KeyboardInterrupt):
        worker.run()
    interrupting.join(10)
    release.set()
    worker.stop()
    assert only_queued(shop).attempts == 0


def test_run_restores_signal_handlers(engine: Engine) -> None:
    """``run`` restores the program's signal handlers when it returns."""
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    worker = QueueWorker(engine, succeed)
    Timer(0.2, worker.request_stop).start()
    worker.run()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_signal_during_startup_stops_the_worker(url: URL) -> None:
    """A SIGTERM that arrives while the worker connects stops the worker."""
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


@pytest.mark.parametrize("in_a_loop", [False, True], ids=["threads", "asyncio"])
def test_a_signal_just_before_it_starts_stops_the_worker(
    url: URL, in_a_loop: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A SIGTERM that arrives when ``run`` handles signals and the worker has no members yet."""
    assembled = Assembly.pool

    def pool(*arguments: Any) -> Any:
        signal.raise_signal(signal.SIGTERM)
        return assembled(*arguments)

    monkeypatch.setattr(Assembly, "pool", pool)
    engine = create_engine(url)
    worker: Any = QueueWorker(engine, succeed)
    if in_a_loop:
        worker = WorkerInALoop(awaited(engine, "psycopg"), succeed)
    with at_most(5, worker.request_stop):
        worker.run()
    engine.dispose()


def test_stopping_with_a_backlog_loses_no_job(engine: Engine) -> None:
    """After a stop with a backlog, every job has either run once or is still queued."""
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
