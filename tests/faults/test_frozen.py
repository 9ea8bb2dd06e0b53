"""Workers that freeze and resume later, as on a machine that swaps or sleeps."""

from __future__ import annotations

from time import monotonic, sleep
from uuid import UUID

from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import Job

from .fleet import LEASE, Fleet, audit, await_empty, put_for_each, until
from .sites import on_servers


def queued(engine: Engine) -> set[UUID]:
    """Return the ids of the queued jobs."""
    with Session(engine) as session:
        return set(session.scalars(select(Job.job_id)))


@on_servers
def test_frozen_past_its_lease(engine: Engine, workers: Fleet) -> None:
    """Leased jobs of a frozen worker run elsewhere; jobs locked by its transaction wait.

    No job takes effect twice. When the frozen worker resumes, it does not complete jobs that
    another worker ran.
    """
    frozen = []
    for kind in workers.kinds:
        # A longer lease: a worker frozen while it extends leases would keep their rows locked.
        lease = [f"--lease={2 * LEASE}"] if kind.lease else []
        options = [f"--queue={kind.queue}", "--batch-size=1", "--verbose", *lease]
        frozen.append(workers.start(kind, *options))
    workers.until_idle()
    held = put_for_each(workers.kinds, engine, [("effect", 3.0)] * 2)
    until(lambda: len(workers.begun()) == len(held), 30)
    for worker in frozen:
        workers.freeze(worker)
    with Session(engine) as session:
        in_transactions = {kind.queue for kind in workers.kinds if kind.lease is None}
        their_jobs = select(Job.job_id).where(Job.queue.in_(in_transactions))
        waiting = set(session.scalars(their_jobs))
    free = put_for_each(workers.kinds, engine, [("effect", 0.0)] * 2)
    for kind in workers.kinds:
        workers.start(kind, f"--queue={kind.queue}")
    until(lambda: queued(engine) == waiting, 60)
    sleep(LEASE)
    assert queued(engine) == waiting
    for worker in frozen:
        workers.thaw(worker)
    await_empty(engine, 60)
    assert workers.stop() == [0] * 2 * len(workers.kinds)
    for number, kind in enumerate(workers.kinds):
        assert ("lease-lost" in workers.said(number)) == (kind.lease is not None)
    audit(engine, held | free, workers.effects_by_job())


@on_servers
def test_frozen_over_and_over(engine: Engine, workers: Fleet, soak: float) -> None:
    """Each job takes effect once, however often workers freeze, within a lease or beyond it."""
    for kind in workers.kinds:
        for _ in range(2):
            workers.start(kind, f"--queue={kind.queue}")
    until(lambda: workers.said().count("worker-starting") == len(workers.workers), 30)
    ids = put_for_each(
        workers.kinds, engine, [("effect", 0.05), ("effect", 0.0), ("effect", 0.5)] * 10
    )
    deadline = monotonic() + max(soak, 6.0)
    frozen: dict[int, float] = {}

    def chaos() -> None:
        now = monotonic()
        for number, worker in enumerate(workers.workers):
            if number in frozen:
                if now > frozen[number]:
                    workers.thaw(worker)
                    del frozen[number]
            elif now < deadline and workers.random.random() < 0.02:
                workers.freeze(worker)
                frozen[number] = now + workers.random.uniform(0.1, 2 * LEASE)

    await_empty(engine, 60 + 2 * soak, chaos)
    for worker in workers.workers:
        workers.thaw(worker)
    assert workers.stop() == [0] * len(workers.workers)
    audit(engine, ids, workers.effects_by_job())
