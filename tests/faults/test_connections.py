"""Connections that are cut, one at a time or all at once, and connections that cannot be had."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from time import monotonic, sleep
from uuid import UUID

import pytest
from sqlalchemy import Connection, Engine, NullPool, create_engine, select, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import Handlers, Job, RunningJob, enqueue
from tests.integration.kinds import KINDS as WORKERS
from tests.integration.kinds import Kind as Worker

from .conftest import TEST
from .fleet import (
    EACH,
    Fleet,
    Kind,
    attempts,
    audit,
    await_empty,
    put,
    put_for_each,
    until_each,
)
from .proxy import proxy
from .server import Server

BACKENDS = text("""
    SELECT pid, application_name FROM pg_stat_activity
    WHERE backend_type = 'client backend' AND application_name <> :test
""").bindparams(test=TEST)
TERMINATE = text("SELECT pg_terminate_backend(:pid)")


def options(kind: Kind) -> list[str]:
    """Return the arguments of a worker whose leases last longer than any test."""
    return ["--queue", kind.queue, *(["--lease", "60"] if kind.lease else [])]


def runs_on(engine: Engine, kind: Kind) -> str | None:
    """Return which worker runs a job of a kind, if any does."""
    running = select(RunningJob.worker).join(Job, Job.job_id == RunningJob.job_id)
    with Session(engine) as session:
        return session.scalar(running.where(Job.queue == kind.queue).limit(1))


def is_done(engine: Engine, kind: Kind) -> bool:
    """Tell whether no job of a kind is left."""
    with Session(engine) as session:
        return session.scalar(select(Job.job_id).where(Job.queue == kind.queue).limit(1)) is None


@pytest.mark.parametrize("kind", EACH, ids=lambda kind: kind.queue)
def test_cut_in_the_middle_of_a_commit(
    server: Server, engine: Engine, workers: Fleet, kind: Kind
) -> None:
    """A job whose commit is never acknowledged has run once, or not at all and runs again.

    Its worker goes on, if it is not killed itself; no attempt is counted.
    """
    commits = [b"INTO proletarian.running", b"INTO ledger"] if kind.lease else [b"INTO ledger"]
    cuts = [(said, forward, False) for said in commits for forward in (False, True)]
    with proxy(server.url(host="127.0.0.1")) as between:
        url = between.url
        if kind.driver == "asyncpg":  # so that statements are sent as text
            url = url.update_query_dict({"prepared_statement_cache_size": "0"})
        worker = workers.start(kind, *options(kind), url=url)
        ids = put(engine, [("effect", 0.0)], queue=kind.queue)
        await_empty(engine, 30)
        for said, forward, killed in [*cuts, (b"INTO ledger", True, True)]:
            trap = between.set(said, forward=forward)
            ids |= put(engine, [("effect", 0.0)], queue=kind.queue)
            assert trap.caught.wait(30)
            if killed:
                workers.kill(worker)
                workers.start(kind, *options(kind))
            trap.released.set()
            await_empty(engine, 30)
        ids |= put(engine, [("effect", 0.0)], queue=kind.queue)
        await_empty(engine, 30)
        assert workers.stop() == [0]
    audit(engine, ids, workers.effects_by_job())
    assert attempts(engine) == dict.fromkeys(ids, 1)
    assert "lease-lost" not in workers.said(), "nobody has taken it"


def test_terminated_over_and_over(engine: Engine, workers: Fleet, soak: float) -> None:
    """Whichever connections end, all the time: workers go on, and no job is charged for it."""
    for kind in EACH:
        workers.start(kind, *options(kind))
    ids = put_for_each(engine, [("effect", 0.0), ("effect", 0.02)] * int(100 + 10 * soak))
    cuts, enough = 0, monotonic() + max(soak, 6.0)

    def chaos() -> None:
        nonlocal cuts
        with engine.begin() as connection:
            pids = connection.scalars(BACKENDS).all()
            if pids and monotonic() < enough:
                connection.execute(TERMINATE, {"pid": workers.random.choice(pids)})
                cuts += 1
        sleep(workers.random.uniform(0.0, 0.05))

    await_empty(engine, 60 + 2 * soak, chaos)
    assert workers.stop() == [0] * len(EACH)
    audit(engine, ids, workers.effects_by_job())
    assert set(attempts(engine).values()) == {1}
    assert workers.said().count("polling-error") < 5 * cuts + 10, "they spin"


def test_all_connections_terminated_at_once(
    engine: Engine, workers: Fleet, recovered: Callable[[str, Kind, float], None]
) -> None:
    """A worker that loses every connection is no dead worker: its job is not charged for it."""
    for kind in EACH * 2:
        workers.start(kind, *options(kind))
    ids: set[UUID] = set()
    for whose in ("of one worker", "of all workers"):
        ids |= put_for_each(engine, [("effect", 1.0)])
        until_each(lambda kind: runs_on(engine, kind), 30)
        holders = tuple(str(runs_on(engine, kind)) for kind in EACH)
        sleep(0.3)
        with engine.begin() as connection:
            for pid, name in connection.execute(BACKENDS).all():
                if whose == "of all workers" or name.startswith(holders):
                    connection.execute(TERMINATE, {"pid": pid})
        taken = until_each(lambda kind: is_done(engine, kind), 30)
    for kind, seconds in taken.items():
        recovered("all connections cut", kind, seconds - 1.0)
    assert workers.stop() == [0] * 2 * len(EACH)
    audit(engine, ids, workers.effects_by_job())
    assert attempts(engine) == dict.fromkeys(ids, 1)


def test_exhausted_pool(engine: Engine, workers: Fleet) -> None:
    """A job whose handler gets no connection from the pool is put off: no attempt is counted."""
    ids = put_for_each(engine, [("effect", 0.4)] * 4)
    for kind in EACH:
        pool = ["--places", "4", "--pool-size", "1", "--pool-timeout", "0.1"]
        workers.start(kind, *options(kind), *pool)
    await_empty(engine, 60)
    assert workers.stop() == [0] * len(EACH)
    audit(engine, ids, workers.effects_by_job())
    assert attempts(engine) == dict.fromkeys(ids, 1)
    for number, kind in enumerate(EACH):
        said = workers.said(number)
        assert ("QueuePool limit" in said) is (kind.lease is not None)
        assert said.count("polling-error") <= 30, "it spins"


def test_too_many_clients(
    server: Server,
    engine: Engine,
    workers: Fleet,
    recovered: Callable[[str, Kind, float], None],
) -> None:
    """A worker that finds no free connection, at its start or later, says so, waits and goes on."""
    hog = create_engine(server.url(), poolclass=NullPool, connect_args={"application_name": TEST})

    def complaints(kind: Kind) -> int:
        return workers.said(EACH.index(kind)).count("too many clients")

    with engine.connect() as connection, ExitStack() as taken:
        connection.execution_options(isolation_level="AUTOCOMMIT")
        take_all(connection, hog, taken)
        for kind in EACH:
            workers.start(kind, *options(kind))
        until_each(lambda kind: complaints(kind) > 1, 30)
        taken.close()
        ids = put_for_each(engine, [("effect", 0.0)])
        for kind, seconds in until_each(lambda kind: is_done(engine, kind), 30).items():
            recovered("no connection free at the start", kind, seconds)

        ids |= put_for_each(engine, [("effect", 0.5)] * 4)
        until_each(lambda kind: runs_on(engine, kind), 30)
        before = {kind: complaints(kind) for kind in EACH}
        take_all(connection, hog, taken)
        until_each(lambda kind: complaints(kind) > before[kind] + 1, 30)
        taken.close()
        for kind, seconds in until_each(lambda kind: is_done(engine, kind), 30).items():
            recovered("no connection free any more", kind, seconds)
    assert workers.stop() == [0] * len(EACH)
    audit(engine, ids, workers.effects_by_job())
    assert attempts(engine) == dict.fromkeys(ids, 1)
    for number in range(len(EACH)):
        assert workers.said(number).count("polling-error") < 40, "it spins"


def _uses_nothing(session: Session) -> None:
    """Leave the session alone."""


def _enqueues(session: Session) -> None:
    enqueue(session, "follow-up")


def _queries(session: Session) -> None:
    session.execute(select(1))


@pytest.mark.parametrize("kind", WORKERS, ids=str)
@pytest.mark.parametrize("first", [_uses_nothing, _enqueues, _queries])
@pytest.mark.parametrize("through", ["SQLAlchemy", "a socket"])
def test_unreachable_elsewhere(
    server: Server, engine: Engine, kind: Worker, first: Callable[[Session], None], through: str
) -> None:
    """A handler that cannot reach something else has failed, as with any other error."""
    handlers = Handlers()

    @handlers("job")
    def job(payload: object, session: Session) -> None:
        first(session)
        if through == "a socket":
            raise ConnectionRefusedError
        create_engine(server.url(host="127.0.0.1").set(port=1), poolclass=NullPool).connect()

    ids = put(engine, [("job", None)])
    kind.run_all(engine, handlers)
    assert attempts(engine) == dict.fromkeys(ids, 1)


def take_all(connection: Connection, hog: Engine, taken: ExitStack) -> None:
    """Take every connection that the server has, also those of the workers."""
    while True:
        try:
            while True:
                taken.callback(hog.connect().close)
        except OperationalError:
            pids = connection.scalars(BACKENDS).all()
        if not pids:
            return
        for pid in pids:
            connection.execute(TERMINATE, {"pid": pid})
