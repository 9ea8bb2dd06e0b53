"""Workers that are killed repeatedly without warning."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic, sleep
from typing import Any

from sqlalchemy import Engine

from .fleet import Fleet, Kind, Process, audit, await_empty, put_for_each, until_each
from .sites import everywhere


@everywhere
def test_killed_over_and_over(engine: Engine, workers: Fleet, soak: float) -> None:
    """Every job takes effect once, however often workers are killed.

    Poison jobs end as failures. So do jobs whose handler raises, after all their attempts.
    """
    number = 20_000 if soak else 100 * len(workers.kinds)
    jobs: list[tuple[str, Any]] = [("effect", 0.0), ("effect", 0.0), ("effect", 0.02)]
    ids = put_for_each(workers.kinds, engine, jobs * (number // len(jobs)))
    poison: list[tuple[str, Any]] = [("poison", None)] * 2
    failing = put_for_each(workers.kinds, engine, poison + [("fails", "on purpose")] * 5)
    deadline = monotonic() + max(soak, 6.0)
    keep_running = keeper(workers, 2)

    def chaos() -> None:
        keep_running()
        if monotonic() < deadline:
            sleep(workers.random.uniform(0.1, 0.4))
            workers.kill()

    await_empty(engine, 120 + 2 * soak + number / 20, chaos)
    workers.stop()
    audit(engine, ids | failing, workers.effects_by_job(), failing)


@everywhere
def test_a_poison_job_fails_alone(engine: Engine, workers: Fleet) -> None:
    """A job that crashes its workers fails; the jobs that they run at the same time succeed."""
    ids = put_for_each(workers.kinds, engine, [("late", 0.5)])
    failing = put_for_each(workers.kinds, engine, [("poison", 0.2)])
    await_empty(engine, 60, keeper(workers, 1))
    workers.stop()
    audit(engine, ids | failing, workers.effects_by_job(), failing)


def keeper(workers: Fleet, number: int) -> Callable[[], None]:
    """Return a function that replaces crashed workers, so that there are ``number`` of each kind.

    Their leases are short: after each crash of a poison job its lease has to expire.
    """
    pools: dict[Kind, list[Process]] = {kind: [] for kind in workers.kinds}

    def replace() -> None:
        for kind, pool in pools.items():
            pool[:] = [worker for worker in pool if worker.poll() is None]
            short = ["--lease", "1"] if kind.lease else []
            while len(pool) < number:
                pool.append(workers.start(kind, "--queue", kind.queue, *short))

    return replace


@everywhere
def test_killed_in_the_middle_of_a_job(
    engine: Engine, workers: Fleet, recovered: Callable[[str, Kind, float], None]
) -> None:
    """The job of a killed worker runs elsewhere within a second, or when its lease expires.

    A crash uses up no attempt.
    """
    holders = start_one_of_each(workers)
    put_for_each(workers.kinds, engine, [("late", 60.0)])
    for crashes in range(3):

        def runs(kind: Kind, crashes: int = crashes) -> bool:
            return len(workers.running(kind)) > crashes

        for kind, seconds in until_each(workers.kinds, runs, 30).items():
            counted = workers.running(kind)[crashes].attempt - 1
            if crashes:
                recovered("a worker killed", kind, seconds)
                assert seconds < (kind.lease or 0) + 5
            assert counted == 0
        replacements = start_one_of_each(workers)
        for worker in holders:
            workers.kill(worker)
        holders = replacements


def start_one_of_each(workers: Fleet) -> list[Process]:
    """Start a worker of each kind that runs one job at a time; wait until all poll for jobs."""
    before = len(workers.workers)
    options = ["--places", "1", "--polling", "1", "--verbose"]
    started = [workers.start(kind, "--queue", kind.queue, *options) for kind in workers.kinds]
    workers.until_idle(before)
    return started
