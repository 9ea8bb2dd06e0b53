"""Connections that are cut, one at a time or all at once, and connections that are unavailable."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic, sleep
from uuid import UUID

import pytest
from sqlalchemy import Engine, NullPool, create_engine, select
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import Handlers, Job, enqueue
from tests.integration.kinds import KINDS as WORKERS
from tests.integration.kinds import Kind as Worker

from .fleet import (
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
from .sites import Site, each_on_servers, on_servers


def is_done(engine: Engine, kind: Kind) -> bool:
    """Return whether no job of a kind is left."""
    with Session(engine) as session:
        return session.scalar(select(Job.job_id).where(Job.queue == kind.queue).limit(1)) is None


@each_on_servers
def test_cut_in_the_middle_of_a_commit(
    site: Site, engine: Engine, workers: Fleet, kind: Kind
) -> None:
    """A job whose commit is never acknowledged takes effect once, whether or not it committed.

    The worker continues unless it is killed itself. No attempt is counted.
    """
    commits = [b"INTO proletarian.running", b"INTO ledger"] if kind.lease else [b"INTO ledger"]
    cuts = [(statement, forward, False) for statement in commits for forward in (False, True)]
    with proxy(site.proxied_url()) as between:
        url = between.url
        if kind.driver == "asyncpg":  # so that the proxy sees statements as text
            url = url.update_query_dict({"prepared_statement_cache_size": "0"})
        worker = workers.start(kind, *kind.patiently, url=url)
        ids = put(engine, [("effect", 0.0)], queue=kind.queue)
        await_empty(engine, 30)
        for statement, forward, killed in [*cuts, (b"INTO ledger", True, True)]:
            trap = between.set(statement, forward=forward)
            ids |= put(engine, [("effect", 0.0)], queue=kind.queue)
            assert trap.caught.wait(30)
            if killed:
                workers.kill(worker)
                workers.start(kind, *kind.patiently)
            trap.released.set()
            await_empty(engine, 30)
        ids |= put(engine, [("effect", 0.0)], queue=kind.queue)
        await_empty(engine, 30)
        assert workers.stop() == [0]
    audit(engine, ids, workers.effects_by_job())
    assert attempts(engine) == dict.fromkeys(ids, 1)
    assert "lease-lost" not in workers.said(), "no other worker has claimed it"


@on_servers
def test_terminated_over_and_over(site: Site, engine: Engine, workers: Fleet, soak: float) -> None:
    """Workers survive connections that are cut repeatedly at random; no job loses an attempt."""
    for kind in workers.kinds:
        workers.start(kind, *kind.patiently)
    ids = put_for_each(
        workers.kinds, engine, [("effect", 0.0), ("effect", 0.02)] * int(100 + 10 * soak)
    )
    cuts, deadline = 0, monotonic() + max(soak, 6.0)

    def chaos() -> None:
        nonlocal cuts
        with engine.begin() as connection:
            open_connections = list(site.lines(connection))
            if open_connections and monotonic() < deadline:
                site.cut(connection, workers.random.choice(open_connections))
                cuts += 1
        sleep(workers.random.uniform(0.0, 0.05))

    await_empty(engine, 60 + 2 * soak, chaos)
    assert workers.stop() == [0] * len(workers.kinds)
    audit(engine, ids, workers.effects_by_job())
    assert set(attempts(engine).values()) == {1}
    assert workers.said().count("polling-error") < 5 * cuts + 10, "the workers retry too often"


@on_servers
def test_all_connections_terminated_at_once(
    site: Site, engine: Engine, workers: Fleet, recovered: Callable[[str, Kind, float], None]
) -> None:
    """A worker that loses all its connections is not counted as crashed; no attempt is counted."""
    for kind in [*workers.kinds] * 2:
        workers.start(kind, *kind.patiently)
    ids: set[UUID] = set()
    # One worker's connections are known only where the server shows their names.
    for whose in ("of one worker", "of all workers")[not site.names :]:
        ids |= put_for_each(workers.kinds, engine, [("effect", 2.0)])
        until_each(workers.kinds, workers.running, 30)
        holders = [run.worker for kind in workers.kinds for run in workers.running(kind)]
        sleep(0.3)
        with engine.begin() as connection:
            for connection_id, name in site.lines(connection).items():
                if whose == "of all workers" or any(f"-{pid}-" in name for pid in holders):
                    site.cut(connection, connection_id)
        taken = until_each(workers.kinds, lambda kind: is_done(engine, kind), 30)
    for kind, seconds in taken.items():
        recovered("all connections cut", kind, max(0.0, seconds - 2.0))
    assert workers.stop() == [0] * 2 * len(workers.kinds)
    audit(engine, ids, workers.effects_by_job())
    assert attempts(engine) == dict.fromkeys(ids, 1)


@on_servers
def test_exhausted_pool(engine: Engine, workers: Fleet) -> None:
    """A job whose handler gets no connection from the pool is rescheduled without an attempt."""
    ids = put_for_each(workers.kinds, engine, [("effect", 0.4)] * 4)
    for kind in workers.kinds:
        pool = ["--places", "4", "--pool-size", "1", "--pool-timeout", "0.1"]
        workers.start(kind, *kind.patiently, *pool)
    await_empty(engine, 60)
    assert workers.stop() == [0] * len(workers.kinds)
    audit(engine, ids, workers.effects_by_job())
    assert attempts(engine) == dict.fromkeys(ids, 1)
    for number, kind in enumerate(workers.kinds):
        output = workers.said(number)
        assert ("QueuePool limit" in output) is (kind.lease is not None)
        assert output.count("polling-error") <= 30, "the worker retries too often"


@on_servers
def test_too_many_clients(
    site: Site,
    engine: Engine,
    workers: Fleet,
    recovered: Callable[[str, Kind, float], None],
) -> None:
    """A worker that gets no connection, at its start or later, logs it, waits and continues."""

    def complaints(kind: Kind) -> int:
        return workers.said(workers.kinds.index(kind)).count(site.full)

    def awake(fault: str) -> None:
        taken = until_each(workers.kinds, lambda kind: is_done(engine, kind), 30)
        for kind, seconds in taken.items():
            recovered(fault, kind, seconds)

    with engine.connect() as connection:
        connection.execution_options(isolation_level="AUTOCOMMIT")
        with site.full_up(connection):
            for kind in workers.kinds:
                workers.start(kind, *kind.patiently)
            until_each(workers.kinds, lambda kind: complaints(kind) > 1, 30)
        ids = put_for_each(workers.kinds, engine, [("effect", 0.0)])
        awake("no connection free at the start")

        ids |= put_for_each(workers.kinds, engine, [("effect", 0.5)] * 4)
        until_each(workers.kinds, workers.running, 30)
        before = {kind: complaints(kind) for kind in workers.kinds}
        with site.full_up(connection):
            until_each(workers.kinds, lambda kind: complaints(kind) > before[kind] + 1, 30)
        awake("no connection free any more")
    assert workers.stop() == [0] * len(workers.kinds)
    audit(engine, ids, workers.effects_by_job())
    assert attempts(engine) == dict.fromkeys(ids, 1)
    for number in range(len(workers.kinds)):
        assert workers.said(number).count("polling-error") < 100, "the worker retries too often"


def _uses_nothing(session: Session) -> None:
    """Do nothing."""


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
    """A handler that cannot reach another server fails, as with any other error."""
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
