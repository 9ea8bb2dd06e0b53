"""Workers that are told to stop, whatever they are doing."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from signal import SIGINT, SIGTERM
from time import monotonic, sleep
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import Engine, select, text
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import ArchivedJob, Job, RunningJob, enqueue, utcnow

from .fleet import KINDS, Fleet, Kind, Process, audit, await_empty, put
from .server import Server

Processes = dict[Kind, Process]

SHORT = "0.5"
"""``shutdown_timeout`` in seconds for workers that will not finish in time."""

LONG = "30"
"""``shutdown_timeout`` in seconds for workers that finish earlier."""

PROMPT = 15.0
"""Seconds within which a process that waits for nothing exits, on a busy machine."""


def start(workers: Fleet, kinds: Iterable[Kind], *arguments: str) -> Processes:
    """Start a worker for each kind, each with its own queue."""
    return {
        kind: workers.start(
            kind, "--queue", str(kind), "--name", str(kind), "--polling", "0.1", *arguments
        )
        for kind in kinds
    }


def put_for(kinds: Iterable[Kind], engine: Engine, job_type: str, payload: float) -> set[UUID]:
    """Enqueue a job in the queue of each worker; return the ids."""
    with Session(engine) as session, session.begin():
        return {enqueue(session, job_type, payload, queue=str(kind)).job_id for kind in kinds}


def eventually(condition: Callable[[], object], seconds: float = 15) -> None:
    """Wait until the condition holds."""
    deadline = monotonic() + seconds
    while not condition():
        assert monotonic() < deadline, "the condition did not become true"
        sleep(0.02)


def count(engine: Engine, query: str, **parameters: Any) -> int:
    """Return the count that a query selects."""
    with engine.connect() as connection:
        return int(connection.scalar(text(query), parameters) or 0)


@pytest.fixture
def start_working(engine: Engine, workers: Fleet) -> Callable[..., Processes]:
    """Return a function that starts a worker of each kind and waits until all have run a job."""

    def start_and_wait(*arguments: str, kinds: Iterable[Kind] = KINDS) -> Processes:
        processes = start(workers, kinds, *arguments)
        put_for(processes, engine, "effect", 0.0)
        await_empty(engine, 20)
        with engine.begin() as connection:
            connection.execute(text("TRUNCATE proletarian.archived_job, ledger"))
        workers.effects.unlink()
        return processes

    return start_and_wait


def exit_codes(processes: Processes, within: float = PROMPT) -> dict[Kind, int]:
    """Wait until all processes have exited; return their exit codes."""
    deadline = monotonic() + within
    return {
        kind: process.wait(max(0.1, deadline - monotonic())) for kind, process in processes.items()
    }


def send(processes: Processes, number: int = SIGTERM) -> None:
    """Send a signal to all processes."""
    for process in processes.values():
        process.send_signal(number)


def have_written(engine: Engine, jobs: int) -> bool:
    """Return whether ``jobs`` handlers have written to the database without committing."""
    writing = "SELECT count(*) FROM pg_locks WHERE relation = 'ledger'::regclass AND granted"
    return count(engine, writing) == jobs


def waiting(engine: Engine) -> int:
    """Return how many connections wait for a lock."""
    return count(engine, "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")


def assert_untouched(engine: Engine, ids: set[UUID]) -> None:
    """Assert that the jobs are due with no attempt counted and that no run left a trace."""
    with Session(engine) as session:
        jobs = {job.job_id: job for job in session.scalars(select(Job))}
        markers = session.scalars(select(RunningJob)).all()
        written = session.scalar(text("SELECT count(*) FROM ledger"))
    assert ids <= jobs.keys()
    for job_id in ids:
        job = jobs[job_id]
        assert (job.attempts, job.error) == (0, None), job.queue
        assert job.process_at <= utcnow(), job.queue
    assert not markers
    assert not written


def assert_run(engine: Engine, ids: set[UUID], attempts: int = 1) -> None:
    """Assert that the jobs succeeded with this number of attempts."""
    with Session(engine) as session:
        done = session.scalars(select(ArchivedJob).where(ArchivedJob.job_id.in_(ids))).all()
        assert len(done) == len(ids)
        assert {(job.status, job.attempts) for job in done} == {("success", attempts)}
        assert not session.scalars(select(RunningJob)).all()


def last_log_lines(workers: Fleet) -> dict[Kind, str]:
    """Return the last line of each worker's log."""
    return {
        kind: workers.said(number).rstrip().rpartition("\n")[2] for number, kind in enumerate(KINDS)
    }


@contextmanager
def locked(engine: Engine, table: str) -> Iterator[None]:
    """Lock a table exclusively during the block."""
    with engine.begin() as connection:
        connection.execute(text(f"LOCK TABLE proletarian.{table} IN ACCESS EXCLUSIVE MODE"))
        yield


def test_an_idle_worker_stops_at_once(
    workers: Fleet, start_working: Callable[..., Processes]
) -> None:
    """An idle worker exits at once with code 0 on SIGTERM and on SIGINT."""
    processes = start_working("--timeout", LONG)
    send(dict(list(processes.items())[::2]), SIGTERM)
    send(dict(list(processes.items())[1::2]), SIGINT)
    assert set(exit_codes(processes).values()) == {0}
    for kind, line in last_log_lines(workers).items():
        assert line == f"worker-stopped: worker={kind}"


def test_running_handlers_finish(
    engine: Engine, workers: Fleet, start_working: Callable[..., Processes]
) -> None:
    """Running handlers finish, waiting jobs stay queued, and the exit code is 0."""
    processes = start_working("--timeout", LONG, "--places", "1")
    first = put_for(KINDS, engine, "effect", 1.0)
    eventually(lambda: have_written(engine, len(KINDS)))
    second = put_for(KINDS, engine, "effect", 0.0)
    send(processes)
    assert set(exit_codes(processes).values()) == {0}
    assert_run(engine, first)
    with Session(engine) as session:
        assert set(session.scalars(select(Job.job_id))) == second
        assert set(session.scalars(select(Job.attempts))) == {0}
    for line in last_log_lines(workers).values():
        assert line.startswith("worker-stopped")


def test_handlers_that_do_not_end(
    engine: Engine, workers: Fleet, start_working: Callable[..., Processes]
) -> None:
    """Jobs that outlast the timeout are due again; the exit code is 1 if functions still run."""
    processes = start_working("--timeout", SHORT)
    coroutines_only = next(kind for kind in KINDS if kind.waits == "asyncio")
    others = [kind for kind in KINDS if kind != coroutines_only]
    ids = put_for(KINDS, engine, "effect", 60.0) | put_for(others, engine, "stuck", 60.0)
    eventually(lambda: have_written(engine, len(ids)))
    send(processes)
    codes, last_lines = exit_codes(processes), last_log_lines(workers)
    assert codes.pop(coroutines_only) == 0  # its handlers are cancelled
    assert last_lines[coroutines_only] == f"worker-stopped: worker={coroutines_only}"
    assert set(codes.values()) == {1}
    for kind in others:
        left = 1 if kind.waits == "asyncio" else 2
        assert f"{left} of 2 handlers of {kind} were still running after 0.5 s" in last_lines[kind]
    assert_untouched(engine, ids)


def test_coroutines_that_ignore_their_cancellation(
    engine: Engine, workers: Fleet, start_working: Callable[..., Processes]
) -> None:
    """Coroutines that ignore their cancellation keep the process alive, but release their jobs."""
    loops = [kind for kind in KINDS if kind.waits == "asyncio"]
    processes = start_working("--timeout", SHORT, kinds=loops)
    ids = put_for(loops, engine, "stubborn", 60.0)
    eventually(lambda: have_written(engine, len(ids)))
    send(processes)
    eventually(lambda: workers.said().count("worker-stop-timed-out") == len(loops))
    for process in processes.values():
        assert process.poll() is None
        workers.kill(process)
    assert_untouched(engine, ids)


@pytest.mark.parametrize("at_once", [False, True])
def test_second_signal(
    engine: Engine, workers: Fleet, start_working: Callable[..., Processes], at_once: bool
) -> None:
    """A second signal ends the process at once; no attempt is counted."""
    processes = start_working("--timeout", LONG)
    ids = put_for(KINDS, engine, "effect", 60.0)
    eventually(lambda: have_written(engine, len(KINDS)))
    if at_once:
        for process in processes.values():
            workers.freeze(process)
    send(processes, SIGTERM if at_once else SIGINT)
    if not at_once:
        sleep(0.5)
    assert all(process.poll() is None for process in processes.values())
    send(processes, SIGINT)
    for process in processes.values():
        workers.thaw(process)
    assert set(exit_codes(processes).values()) == {-SIGINT}
    assert_untouched(engine, ids)


def test_during_a_claim(
    engine: Engine, workers: Fleet, start_working: Callable[..., Processes]
) -> None:
    """A worker that is told to stop while it claims runs no more jobs."""
    processes = start_working("--timeout", LONG)
    with locked(engine, "running"):
        ids = put_for(KINDS, engine, "effect", 0.0)
        eventually(lambda: waiting(engine) >= len(KINDS))
        send(processes)
        sleep(0.5)
    assert set(exit_codes(processes).values()) == {0}
    assert_untouched(engine, ids)
    assert not workers.effects_by_job()


def test_during_a_claim_that_hangs(
    engine: Engine, workers: Fleet, start_working: Callable[..., Processes]
) -> None:
    """A worker whose claim hangs stops; its exit code is 0 because no handler was running."""
    processes = start_working("--timeout", SHORT)
    with locked(engine, "running"):
        ids = put_for(KINDS, engine, "effect", 0.0)
        eventually(lambda: waiting(engine) >= len(KINDS))
        send(processes)
        codes = exit_codes(processes)
    assert set(codes.values()) == {0}
    assert_untouched(engine, ids)
    for line in last_log_lines(workers).values():
        assert line.startswith("worker-stopped")


def test_during_a_settlement(
    engine: Engine, workers: Fleet, start_working: Callable[..., Processes]
) -> None:
    """A worker that is told to stop while it settles jobs completes the settlement."""
    processes = start_working("--timeout", LONG)
    with locked(engine, "archived_job"):
        ids = put_for(KINDS, engine, "effect", 0.0) | put_for(KINDS, engine, "alone", 0.0)
        eventually(lambda: waiting(engine) == 2 * len(KINDS))
        send(processes)
        sleep(0.5)
    assert set(exit_codes(processes).values()) == {0}
    assert_run(engine, ids)
    assert workers.effects_by_job() == dict.fromkeys(ids, 1)


def test_during_a_settlement_that_hangs(
    engine: Engine, workers: Fleet, start_working: Callable[..., Processes]
) -> None:
    """Jobs that cannot be settled before the timeout are due again; no attempt is counted."""
    processes = start_working("--timeout", SHORT)
    with locked(engine, "archived_job"):
        ids = put_for(KINDS, engine, "effect", 0.0) | put_for(KINDS, engine, "alone", 0.0)
        eventually(lambda: waiting(engine) == 2 * len(KINDS))
        send(processes)
        assert set(exit_codes(processes, within=10.0).values()) == {1}
    eventually(lambda: not waiting(engine))
    assert_untouched(engine, ids)


def test_while_the_database_is_down(server: Server, workers: Fleet) -> None:
    """A worker that waits for its database exits at once with code 0."""
    server.stop()
    processes = start(workers, KINDS, "--timeout", LONG)
    eventually(lambda: all(workers.said(n).count("polling-error") > 1 for n in range(len(KINDS))))
    send(processes)
    assert set(exit_codes(processes).values()) == {0}
    for line in last_log_lines(workers).values():
        assert line.startswith("worker-stopped")


def test_while_the_database_does_not_answer(workers: Fleet) -> None:
    """A worker whose connection attempt hangs exits with code 0."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        workers.url = workers.url.set(host="127.0.0.1", port=listener.getsockname()[1], query={})
        processes = start(workers, KINDS, "--timeout", SHORT)
        eventually(lambda: workers.said().count("worker-starting") == len(KINDS))
        sleep(0.5)
        send(processes)
        assert set(exit_codes(processes).values()) == {0}


def test_rolling_restart(engine: Engine, workers: Fleet, soak: float) -> None:
    """Workers that are replaced one by one under load lose no job and run none twice."""
    ids: set[UUID] = set()
    until = monotonic() + soak

    def load() -> None:
        seconds = [workers.random.choice([0.0, 0.0, 0.02, 0.3]) for _ in range(20)]
        ids.update(put(engine, [("effect", payload) for payload in seconds]))

    def join(*kinds: Kind) -> None:
        for kind in kinds:
            workers.start(kind)
        eventually(lambda: workers.said().count("worker-starting") == len(workers.workers))

    join(*KINDS[:3])
    rounds = 0
    while rounds < 3 or monotonic() < until:
        join(KINDS[(rounds + 3) % len(KINDS)])
        load()
        sleep(workers.random.uniform(0.0, 0.3))
        old = workers.alive()[0]
        old.terminate()
        load()
        assert old.wait(15) == 0
        rounds += 1
    await_empty(engine, 60)
    assert workers.stop() == [0, 0, 0]
    audit(engine, ids, workers.effects_by_job())
    assert workers.effects_by_job() == dict.fromkeys(ids, 1)
    assert_run(engine, ids)
