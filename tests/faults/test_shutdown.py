"""Workers that are told to end, whatever they are doing."""

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
"""Seconds of ``shutdown_timeout`` of workers that will not use them well."""

LONG = "30"
"""Seconds of ``shutdown_timeout`` that no test waits for."""

PROMPT = 15.0
"""Seconds in which a process ends that waits for nothing: this machine may be busy."""


def start(workers: Fleet, kinds: Iterable[Kind], *arguments: str) -> Processes:
    """Start workers, each of which serves a queue of its own."""
    return {
        kind: workers.start(
            kind, "--queue", str(kind), "--name", str(kind), "--polling", "0.1", *arguments
        )
        for kind in kinds
    }


def put_for(kinds: Iterable[Kind], engine: Engine, job_type: str, payload: float) -> set[UUID]:
    """Enqueue a job in each worker's queue, and return their ids."""
    with Session(engine) as session, session.begin():
        return {enqueue(session, job_type, payload, queue=str(kind)).job_id for kind in kinds}


def eventually(condition: Callable[[], object], seconds: float = 15) -> None:
    """Wait until the condition holds."""
    deadline = monotonic() + seconds
    while not condition():
        assert monotonic() < deadline, "it never came true"
        sleep(0.02)


def count(engine: Engine, query: str, **parameters: Any) -> int:
    """Return what a query counts."""
    with engine.connect() as connection:
        return int(connection.scalar(text(query), parameters) or 0)


@pytest.fixture
def at_work(engine: Engine, workers: Fleet) -> Callable[..., Processes]:
    """Starts a worker of each kind, or of some, and returns when all of them work."""

    def start_working(*arguments: str, kinds: Iterable[Kind] = KINDS) -> Processes:
        processes = start(workers, kinds, *arguments)
        put_for(processes, engine, "effect", 0.0)
        await_empty(engine, 20)
        with engine.begin() as connection:
            connection.execute(text("TRUNCATE proletarian.archived_job, ledger"))
        workers.effects.unlink()
        return processes

    return start_working


def ended(processes: Processes, within: float = PROMPT) -> dict[Kind, int]:
    """Wait for the end of all, and return their exit codes."""
    deadline = monotonic() + within
    return {
        kind: process.wait(max(0.1, deadline - monotonic())) for kind, process in processes.items()
    }


def tell(processes: Processes, number: int = SIGTERM) -> None:
    """Send all a signal."""
    for process in processes.values():
        process.send_signal(number)


def busy(engine: Engine, jobs: int) -> bool:
    """Tell whether so many handlers have written to the database, and not committed."""
    writing = "SELECT count(*) FROM pg_locks WHERE relation = 'ledger'::regclass AND granted"
    return count(engine, writing) == jobs


def waiting(engine: Engine) -> int:
    """Return how many connections wait for a lock."""
    return count(engine, "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")


def assert_untouched(engine: Engine, ids: set[UUID]) -> None:
    """Assert that the jobs are due as they were enqueued, and that no trace of a run is left."""
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
    """Assert that the jobs have succeeded."""
    with Session(engine) as session:
        done = session.scalars(select(ArchivedJob).where(ArchivedJob.job_id.in_(ids))).all()
        assert len(done) == len(ids)
        assert {(job.status, job.attempts) for job in done} == {("success", attempts)}
        assert not session.scalars(select(RunningJob)).all()


def last_words(workers: Fleet) -> dict[Kind, str]:
    """Return the last line of each worker's log."""
    return {
        kind: workers.said(number).rstrip().rpartition("\n")[2] for number, kind in enumerate(KINDS)
    }


@contextmanager
def locked(engine: Engine, table: str) -> Iterator[None]:
    """Keep everybody else from a table."""
    with engine.begin() as connection:
        connection.execute(text(f"LOCK TABLE proletarian.{table} IN ACCESS EXCLUSIVE MODE"))
        yield


def test_idle(workers: Fleet, at_work: Callable[..., Processes]) -> None:
    """An idle worker ends at once, by either signal, with exit code 0."""
    processes = at_work("--timeout", LONG)
    tell(dict(list(processes.items())[::2]), SIGTERM)
    tell(dict(list(processes.items())[1::2]), SIGINT)
    assert set(ended(processes).values()) == {0}
    for kind, words in last_words(workers).items():
        assert words == f"worker-stopped: worker={kind}"


def test_finishing(engine: Engine, workers: Fleet, at_work: Callable[..., Processes]) -> None:
    """Running handlers finish, waiting jobs stay as they are, and the exit code is 0."""
    processes = at_work("--timeout", LONG, "--places", "1")
    first = put_for(KINDS, engine, "effect", 1.0)
    eventually(lambda: busy(engine, len(KINDS)))
    second = put_for(KINDS, engine, "effect", 0.0)
    tell(processes)
    assert set(ended(processes).values()) == {0}
    assert_run(engine, first)
    with Session(engine) as session:
        assert set(session.scalars(select(Job.job_id))) == second
        assert set(session.scalars(select(Job.attempts))) == {0}
    for words in last_words(workers).values():
        assert words.startswith("worker-stopped")


def test_handlers_that_do_not_end(
    engine: Engine, workers: Fleet, at_work: Callable[..., Processes]
) -> None:
    """What outlasts the timeout is due again as it was; the exit code tells of functions left."""
    processes = at_work("--timeout", SHORT)
    coroutines_only = next(kind for kind in KINDS if kind.waits == "asyncio")
    others = [kind for kind in KINDS if kind != coroutines_only]
    ids = put_for(KINDS, engine, "effect", 60.0) | put_for(others, engine, "stuck", 60.0)
    eventually(lambda: busy(engine, len(ids)))
    tell(processes)
    codes, words = ended(processes), last_words(workers)
    assert codes.pop(coroutines_only) == 0  # they are cancelled
    assert words[coroutines_only] == f"worker-stopped: worker={coroutines_only}"
    assert set(codes.values()) == {1}
    for kind in others:
        left = 1 if kind.waits == "asyncio" else 2
        assert f"{left} of 2 handlers of {kind} were still running after 0.5 s" in words[kind]
    assert_untouched(engine, ids)


def test_coroutines_that_ignore_their_cancellation(
    engine: Engine, workers: Fleet, at_work: Callable[..., Processes]
) -> None:
    """They keep their process until it is killed at the end of its grace, but not their jobs."""
    loops = [kind for kind in KINDS if kind.waits == "asyncio"]
    processes = at_work("--timeout", SHORT, kinds=loops)
    ids = put_for(loops, engine, "stubborn", 60.0)
    eventually(lambda: busy(engine, len(ids)))
    tell(processes)
    eventually(lambda: workers.said().count("worker-stop-timed-out") == len(loops))
    for process in processes.values():
        assert process.poll() is None
        workers.kill(process)
    assert_untouched(engine, ids)


@pytest.mark.parametrize("at_once", [False, True])
def test_second_signal(
    engine: Engine, workers: Fleet, at_work: Callable[..., Processes], at_once: bool
) -> None:
    """A second signal ends the waiting, and nothing is held against the jobs."""
    processes = at_work("--timeout", LONG)
    ids = put_for(KINDS, engine, "effect", 60.0)
    eventually(lambda: busy(engine, len(KINDS)))
    if at_once:
        for process in processes.values():
            workers.freeze(process)
    tell(processes, SIGTERM if at_once else SIGINT)
    if not at_once:
        sleep(0.5)
    assert all(process.poll() is None for process in processes.values())
    tell(processes, SIGINT)
    for process in processes.values():
        workers.thaw(process)
    assert set(ended(processes).values()) == {-SIGINT}
    assert_untouched(engine, ids)


def test_during_a_claim(engine: Engine, workers: Fleet, at_work: Callable[..., Processes]) -> None:
    """A worker that is told to end while it claims runs nothing more."""
    processes = at_work("--timeout", LONG)
    with locked(engine, "running"):
        ids = put_for(KINDS, engine, "effect", 0.0)
        eventually(lambda: waiting(engine) >= len(KINDS))
        tell(processes)
        sleep(0.5)
    assert set(ended(processes).values()) == {0}
    assert_untouched(engine, ids)
    assert not workers.effects_by_job()


def test_during_a_claim_without_end(
    engine: Engine, workers: Fleet, at_work: Callable[..., Processes]
) -> None:
    """A worker whose claim does not end, ends; no handler was running, so its exit code is 0."""
    processes = at_work("--timeout", SHORT)
    with locked(engine, "running"):
        ids = put_for(KINDS, engine, "effect", 0.0)
        eventually(lambda: waiting(engine) >= len(KINDS))
        tell(processes)
        codes = ended(processes)
    assert set(codes.values()) == {0}
    assert_untouched(engine, ids)
    for words in last_words(workers).values():
        assert words.startswith("worker-stopped")


def test_during_a_settlement(
    engine: Engine, workers: Fleet, at_work: Callable[..., Processes]
) -> None:
    """A worker that is told to end while it settles settles what has ended."""
    processes = at_work("--timeout", LONG)
    with locked(engine, "archived_job"):
        ids = put_for(KINDS, engine, "effect", 0.0) | put_for(KINDS, engine, "alone", 0.0)
        eventually(lambda: waiting(engine) == 2 * len(KINDS))
        tell(processes)
        sleep(0.5)
    assert set(ended(processes).values()) == {0}
    assert_run(engine, ids)
    assert workers.effects_by_job() == dict.fromkeys(ids, 1)


def test_during_a_settlement_without_end(
    engine: Engine, workers: Fleet, at_work: Callable[..., Processes]
) -> None:
    """What cannot be settled before the timeout is due again as it was."""
    processes = at_work("--timeout", SHORT)
    with locked(engine, "archived_job"):
        ids = put_for(KINDS, engine, "effect", 0.0) | put_for(KINDS, engine, "alone", 0.0)
        eventually(lambda: waiting(engine) == 2 * len(KINDS))
        tell(processes)
        assert set(ended(processes, within=10.0).values()) == {1}
    eventually(lambda: not waiting(engine))
    assert_untouched(engine, ids)


def test_while_the_database_is_down(server: Server, workers: Fleet) -> None:
    """A worker that waits for its database ends at once, with exit code 0."""
    server.stop()
    processes = start(workers, KINDS, "--timeout", LONG)
    eventually(lambda: all(workers.said(n).count("polling-error") > 1 for n in range(len(KINDS))))
    tell(processes)
    assert set(ended(processes).values()) == {0}
    for words in last_words(workers).values():
        assert words.startswith("worker-stopped")


def test_while_the_database_does_not_answer(workers: Fleet) -> None:
    """A worker whose connection never comes about ends, with exit code 0."""
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        workers.url = workers.url.set(host="127.0.0.1", port=deaf.getsockname()[1], query={})
        processes = start(workers, KINDS, "--timeout", SHORT)
        eventually(lambda: workers.said().count("worker-starting") == len(KINDS))
        sleep(0.5)
        tell(processes)
        assert set(ended(processes).values()) == {0}


def test_rolling_restart(engine: Engine, workers: Fleet, soak: float) -> None:
    """Workers that are replaced one by one under load lose nothing, and no run counts twice."""
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
