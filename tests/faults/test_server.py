"""A server that stops, crashes and comes back while jobs are enqueued and run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import cycle
from threading import Event, Thread
from time import monotonic, sleep
from typing import Literal
from uuid import UUID

from sqlalchemy import URL, Engine, create_engine, func, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import ArchivedJob, RunningJob, enqueue

from .fleet import (
    EACH,
    Fleet,
    Kind,
    attempts,
    audit,
    await_empty,
    put_for_each,
    until,
    until_each,
)
from .server import Server

MODES: list[Literal["fast", "immediate"]] = ["fast", "immediate"]


@dataclass
class Producer:
    """An application that enqueues without rest, and tries again what failed."""

    engine: Engine
    acknowledged: set[UUID] = field(default_factory=set)
    doubtful: set[UUID] = field(default_factory=set)
    """Ids whose commit may or may not have taken effect: its answer never came."""
    enough: Event = field(default_factory=Event)

    def work(self) -> None:
        """Enqueue until it is enough."""
        while not self.enough.wait(0.02):
            ids: set[UUID] = set()
            try:
                with Session(self.engine) as session, session.begin():
                    for kind in EACH:
                        for seconds in (0.0, 0.02):
                            job = enqueue(session, "effect", seconds, queue=kind.queue)
                            ids.add(job.job_id)
            except DBAPIError:
                self.doubtful |= ids
                sleep(0.05)
            else:
                self.acknowledged |= ids


@contextmanager
def producing(url: URL) -> Iterator[Producer]:
    """Have an application enqueue meanwhile."""
    producer = Producer(create_engine(url))
    thread = Thread(target=producer.work)
    thread.start()
    try:
        yield producer
    finally:
        producer.enough.set()
        thread.join()
        producer.engine.dispose()


def test_restarted_over_and_over(
    server: Server,
    engine: Engine,
    workers: Fleet,
    *,
    soak: float,
    recovered: Callable[[str, Kind, float], None],
) -> None:
    """Whenever the server stops, workers wait for it; what was acknowledged takes effect once.

    Nor does it cost a job an attempt.
    """

    def start(fault: str) -> None:
        server.start()
        before = done(engine)
        for kind, seconds in until_each(lambda kind: done(engine)[kind] > before[kind], 30).items():
            recovered(fault, kind, seconds)

    server.stop()
    for kind in EACH:
        lease = ["--lease", "60"] if kind.lease else []  # longer than an outage
        workers.start(kind, "--queue", kind.queue, *lease)
    with producing(server.url()) as producer:
        sleep(4.0)
        assert len(workers.alive()) == len(EACH)
        for number in range(len(EACH)):
            tries = workers.said(number).count("polling-error")
            assert 1 <= tries <= 20, "it does not try, or it spins"
        start("PostgreSQL down at the start")
        enough = monotonic() + soak
        for mode in cycle(MODES):
            sleep(workers.random.uniform(0.5, 1.0))
            server.stop(mode)
            sleep(workers.random.uniform(0.0, 1.0))
            start(f"PostgreSQL stopped ({mode})")
            if monotonic() > enough and mode == MODES[-1]:
                break
    await_empty(engine, 60)
    assert workers.stop() == [0] * len(EACH)
    made = attempts(engine)
    assert producer.acknowledged <= made.keys() <= producer.acknowledged | producer.doubtful
    audit(engine, set(made), workers.effects_by_job())
    assert set(made.values()) == {1}


def test_stopped_when_a_handler_needs_it(
    server: Server,
    engine: Engine,
    workers: Fleet,
    recovered: Callable[[str, Kind, float], None],
) -> None:
    """A handler that cannot reach the server through its session runs again: no attempt counts."""
    for kind in EACH:
        lease = ["--lease", "60"] if kind.lease else []
        workers.start(kind, "--queue", kind.queue, *lease)
    ids = put_for_each(engine, [("late", 2.0)] * 2)
    until(lambda: running(engine) == len(ids), 30)
    server.stop()
    sleep(3.0)
    server.start()
    assert not any(done(engine).values())
    for kind, seconds in until_each(lambda kind: done(engine)[kind] > 0, 30).items():
        recovered("PostgreSQL gone under a handler", kind, seconds - 2.0)
    await_empty(engine, 30)
    assert workers.stop() == [0] * len(EACH)
    audit(engine, ids, workers.effects_by_job())
    assert attempts(engine) == dict.fromkeys(ids, 1)


def running(engine: Engine) -> int:
    """Return how many jobs are marked as running."""
    with Session(engine) as session:
        return session.scalar(select(func.count()).select_from(RunningJob)) or 0


def done(engine: Engine) -> dict[Kind, int]:
    """Return how many jobs of each kind have ended."""
    query = select(ArchivedJob.queue, func.count()).group_by(ArchivedJob.queue)
    with Session(engine) as session:
        counted = dict(session.execute(query).all())
    return {kind: counted.get(kind.queue, 0) for kind in EACH}
