"""A server that stops, crashes and restarts while jobs are enqueued and run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import cycle
from threading import Event, Thread
from time import monotonic, sleep
from uuid import UUID

from sqlalchemy import Engine, func, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import ArchivedJob, enqueue

from .fleet import Fleet, Kind, attempts, audit, await_empty, put_for_each, until, until_each
from .sites import Site, on_servers


@dataclass
class Producer:
    """An application that enqueues continuously and carries on after errors."""

    engine: Engine
    kinds: Sequence[Kind]
    acknowledged: set[UUID] = field(default_factory=set)
    doubtful: set[UUID] = field(default_factory=set)
    """Ids of jobs whose commit was not acknowledged and may have succeeded."""
    stopped: Event = field(default_factory=Event)

    def work(self) -> None:
        """Enqueue until ``stopped`` is set."""
        while not self.stopped.wait(0.02):
            ids: set[UUID] = set()
            try:
                with Session(self.engine) as session, session.begin():
                    for kind in self.kinds:
                        for seconds in (0.0, 0.02):
                            job = enqueue(session, "effect", seconds, queue=kind.queue)
                            ids.add(job.job_id)
            except DBAPIError:
                self.doubtful |= ids
                sleep(0.05)
            else:
                self.acknowledged |= ids


@contextmanager
def producing(site: Site) -> Iterator[Producer]:
    """Run an application that enqueues in the background."""
    producer = Producer(site.engine(), site.kinds)
    thread = Thread(target=producer.work)
    thread.start()
    try:
        yield producer
    finally:
        producer.stopped.set()
        thread.join()
        producer.engine.dispose()


@on_servers
def test_restarted_over_and_over(
    site: Site,
    engine: Engine,
    workers: Fleet,
    *,
    soak: float,
    recovered: Callable[[str, Kind, float], None],
) -> None:
    """Workers wait for a server that stopped; each acknowledged job takes effect once.

    No attempt is counted.
    """

    def start(fault: str) -> None:
        site.start()
        before = done(engine)

        def more(kind: Kind) -> bool:
            return done(engine)[kind.queue] > before[kind.queue]

        for kind, seconds in until_each(workers.kinds, more, 30).items():
            recovered(fault, kind, seconds)

    site.stop()
    for kind in workers.kinds:
        workers.start(kind, *kind.patiently)
    with producing(site) as producer:
        sleep(4.0)
        assert len(workers.alive()) == len(workers.kinds)
        for number in range(len(workers.kinds)):
            tries = workers.said(number).count("polling-error")
            assert 1 <= tries <= 20, "the worker does not retry, or too often"
        start("down at the start")
        deadline = monotonic() + soak
        for fault, end in cycle([("stopped", site.stop), ("crashed", site.kill)]):
            sleep(workers.random.uniform(0.5, 1.0))
            end()
            sleep(workers.random.uniform(0.0, 1.0))
            start(fault)
            if monotonic() > deadline and fault == "crashed":
                break
    await_empty(engine, 60)
    assert workers.stop() == [0] * len(workers.kinds)
    made = attempts(engine)
    assert producer.acknowledged <= made.keys() <= producer.acknowledged | producer.doubtful
    audit(engine, set(made), workers.effects_by_job())
    assert set(made.values()) == {1}


@on_servers
def test_stopped_when_a_handler_needs_it(
    site: Site,
    engine: Engine,
    workers: Fleet,
    recovered: Callable[[str, Kind, float], None],
) -> None:
    """A handler whose session cannot reach the server runs again; no attempt is counted."""
    for kind in workers.kinds:
        workers.start(kind, *kind.patiently, "--verbose")
    workers.until_idle()
    ids = put_for_each(workers.kinds, engine, [("late", 3.0)] * 2)
    until(lambda: len(workers.begun()) == len(ids), 30)
    site.stop()
    sleep(4.0)
    site.start()
    assert not done(engine)
    for kind, seconds in until_each(
        workers.kinds, lambda kind: done(engine)[kind.queue] > 0, 30
    ).items():
        recovered("stopped while a handler ran", kind, max(0.0, seconds - 3.0))
    await_empty(engine, 30)
    assert workers.stop() == [0] * len(workers.kinds)
    audit(engine, ids, workers.effects_by_job())
    assert attempts(engine) == dict.fromkeys(ids, 1)


def done(engine: Engine) -> Counter[str]:
    """Return the number of finished jobs by queue."""
    query = select(ArchivedJob.queue, func.count()).group_by(ArchivedJob.queue)
    with Session(engine) as session:
        return Counter(dict(session.execute(query).all()))
