"""Workers that are killed without warning, over and over."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic, sleep
from typing import Any

from sqlalchemy import Engine, select, text
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import Job, RunningJob

from .fleet import (
    EACH,
    Fleet,
    Kind,
    Process,
    audit,
    await_empty,
    put_for_each,
    until,
    until_each,
)

IDLE = text("SELECT application_name FROM pg_stat_activity WHERE query ~ '^COMMIT'")


def test_killed_over_and_over(engine: Engine, workers: Fleet, soak: float) -> None:
    """However often workers are killed, every job takes effect once, and poison ends as a failure.

    A plain failure does, too, after all its attempts.
    """
    number = 20_000 if soak else 600
    jobs: list[tuple[str, Any]] = [("effect", 0.0), ("effect", 0.0), ("effect", 0.02)]
    ids = put_for_each(engine, jobs * (number // len(jobs)))
    failing = put_for_each(engine, [("poison", None)] * 2 + [("fails", "on purpose")] * 5)
    enough = monotonic() + max(soak, 6.0)
    crews: dict[Kind, list[Process]] = {kind: [] for kind in EACH}

    def chaos() -> None:
        for kind, crew in crews.items():
            crew[:] = [worker for worker in crew if worker.poll() is None]
            short = ["--lease", "1"] if kind.lease else []  # each death of the poison costs one
            while len(crew) < 2:
                crew.append(workers.start(kind, "--queue", kind.queue, *short))
        if monotonic() < enough:
            sleep(workers.random.uniform(0.1, 0.4))
            workers.kill()

    await_empty(engine, 120 + 2 * soak, chaos)
    workers.stop()
    audit(engine, ids | failing, workers.effects_by_job(), failing)


def test_killed_in_the_middle_of_a_job(
    engine: Engine, workers: Fleet, recovered: Callable[[str, Kind, float], None]
) -> None:
    """The job of a killed worker runs elsewhere within a second, or when its lease ends.

    Each death costs it an attempt, for it may have been the job's doing.
    """
    holders = start_one_of_each(engine, workers)
    put_for_each(engine, [("effect", 60.0)])
    for deaths in range(3):

        def runs(kind: Kind, deaths: int = deaths) -> bool:
            running = (
                select(RunningJob.worker)
                .join(Job, Job.job_id == RunningJob.job_id)
                .where(Job.queue == kind.queue, Job.attempts == deaths + (kind.lease is not None))
            )
            with Session(engine) as session:
                return session.scalar(running) is not None

        for kind, seconds in until_each(runs, 30).items():
            if deaths:
                recovered("a worker killed", kind, seconds)
                assert seconds < (kind.lease or 0) + 5
        spares = start_one_of_each(engine, workers)
        for worker in holders:
            workers.kill(worker)
        holders = spares


def start_one_of_each(engine: Engine, workers: Fleet) -> list[Process]:
    """Start a worker of each kind that runs one job at a time, and wait until all look for jobs."""
    started = [
        workers.start(kind, "--queue", kind.queue, "--places", "1", "--polling", "1")
        for kind in EACH
    ]

    def all_look() -> bool:
        with engine.connect() as connection:
            names = " ".join(connection.scalars(IDLE))
        return all(f"-{worker.pid}-" in names for worker in started)

    until(all_look, 30)
    return started
