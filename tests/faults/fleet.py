"""Worker processes that tests start, freeze and kill, and what must be true afterwards."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic, sleep
from typing import Any, TypeAlias, TypeVar
from uuid import UUID

from sqlalchemy import URL, Engine, func, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import ArchivedJob, Job, RunningJob, enqueue_many

from .nursery import ROOT, Nursery, Worker
from .program import BEGUN, LEDGER

T = TypeVar("T")

Process: TypeAlias = "Worker | subprocess.Popen[bytes]"

LEASE = 2.0
"""Seconds; the tests wait for its end, so it is short."""


@dataclass(frozen=True)
class Kind:
    """How a worker waits and holds its jobs."""

    waits: str
    lease: float | None
    driver: str = "psycopg"

    def arguments(self) -> list[str]:
        """Return the arguments of the worker's program."""
        held = [] if self.lease is None else ["--lease", str(self.lease)]
        return ["--driver", self.driver, *held]

    def __str__(self) -> str:
        return f"{self.waits}-{self.held}"

    @property
    def held(self) -> str:
        """What holds its jobs."""
        return "transaction" if self.lease is None else "lease"

    @property
    def queue(self) -> str:
        """A queue of its own, for tests in which all kinds suffer at once."""
        return f"{self}-{self.driver}"

    @property
    def patiently(self) -> list[str]:
        """Arguments for that queue, and for leases that outlive what the tests do."""
        return ["--queue", self.queue, *(["--lease", "60"] if self.lease else [])]


KINDS = [
    Kind("threads", None),
    Kind("threads", LEASE),
    Kind("asyncio", None, "asyncpg"),
    Kind("asyncio", LEASE),
]
EACH = [*KINDS, Kind("asyncio", LEASE, "asyncpg")]
"""With asyncpg, which has errors of its own for connections that cannot be made, in both ways."""


@dataclass(frozen=True)
class Begun:
    """A run of a job that was seen to begin."""

    job_id: UUID
    queue: str
    attempt: int
    worker: int
    """The number of its process."""


@dataclass
class Fleet:
    """The workers of one test.

    :param nursery: where they come from.
    :param kinds: what there is of them on this database.
    :param effects: the file of external effects.
    """

    nursery: Nursery
    url: URL
    kinds: Sequence[Kind]
    effects: Path
    logs: Path
    random: random.Random
    workers: list[Process] = field(default_factory=list)

    def start(
        self, kind: Kind, *arguments: str, url: URL | None = None, within: Sequence[str] = ()
    ) -> Process:
        """Start one more worker.

        :param url: another way to the server.
        :param within: what its command starts with, to run on another host.
        """
        url_text = (url or self.url).render_as_string(hide_password=False)
        log = self.logs / f"worker-{len(self.workers)}.log"
        given = [url_text, kind.waits, str(self.effects), *kind.arguments(), *arguments]
        worker: Process
        if within:
            with log.open("wb") as output:
                worker = subprocess.Popen(
                    [*within, sys.executable, "-m", "tests.faults.program", *given],
                    cwd=ROOT,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
        else:
            worker = self.nursery.start(given, log)
        self.workers.append(worker)
        return worker

    def alive(self) -> list[Process]:
        """Return the workers that run."""
        return [worker for worker in self.workers if worker.poll() is None]

    def kill(self, worker: Process | None = None) -> None:
        """Kill a worker without warning, any one if none is given."""
        alive = self.alive()
        if victim := worker or (self.random.choice(alive) if alive else None):
            victim.kill()
            victim.wait()

    def freeze(self, worker: Process) -> None:
        """Stop a worker in its tracks."""
        worker.send_signal(signal.SIGSTOP)

    def thaw(self, worker: Process) -> None:
        """Let a frozen worker go on."""
        worker.send_signal(signal.SIGCONT)

    def stop(self, timeout: float = 30) -> list[int]:
        """Ask all workers to end; return their exit codes."""
        alive = self.alive()
        for worker in alive:
            worker.terminate()
        return [worker.wait(timeout) for worker in alive]

    def said(self, number: int | None = None) -> str:
        """Return everything the workers have logged, or one of them."""
        logs = sorted(self.logs.glob(f"worker-{'*' if number is None else number}.log"))
        return "".join(log.read_text(errors="replace") for log in logs)

    def progress(self) -> int:
        """Return a number that grows with each external effect."""
        return self.effects.stat().st_size if self.effects.exists() else 0

    def begun(self) -> list[Begun]:
        """Return the runs that have begun, in the order in which they did."""
        file = self.effects.with_name(self.effects.name + BEGUN)
        lines = file.read_text().splitlines() if file.exists() else []
        words = [line.split() for line in lines]
        return [Begun(UUID(job), queue, int(n), int(pid)) for job, queue, n, pid in words]

    def running(self, kind: Kind) -> list[Begun]:
        """Return the runs of a kind of worker whose jobs have had no effect yet."""
        ended = self.effects_by_job()
        return [run for run in self.begun() if run.queue == kind.queue and run.job_id not in ended]

    def until_idle(self, since: int = 0) -> None:
        """Wait until workers look for jobs, all or from one on, that were told to be verbose."""
        numbers = range(since, len(self.workers))
        until(lambda: all("polling-for-jobs" in self.said(n) for n in numbers), 30)

    def effects_by_job(self) -> Counter[UUID]:
        """Return how often each job's external effect took place."""
        lines = self.effects.read_text().split() if self.effects.exists() else []
        return Counter(UUID(line) for line in lines)


@contextmanager
def fleet(
    nursery: Nursery, url: URL, kinds: Sequence[Kind], directory: Path, seed: int
) -> Iterator[Fleet]:
    """Yield a fleet; kill what is left of it."""
    logs = directory / "logs"
    logs.mkdir()
    chance = random.Random(seed)  # noqa: S311
    workers = Fleet(nursery, url, kinds, directory / "effects", logs, chance)
    try:
        yield workers
    finally:
        for worker in workers.alive():
            worker.kill()
            worker.wait()


def put(engine: Engine, jobs: list[tuple[str, Any]], *, queue: str = "default") -> set[UUID]:
    """Enqueue jobs, and return their ids."""
    with Session(engine) as session, session.begin():
        before = set(session.scalars(select(Job.job_id)))
        enqueue_many(session, jobs, queue=queue)
        return set(session.scalars(select(Job.job_id))) - before


def put_for_each(kinds: Iterable[Kind], engine: Engine, jobs: list[tuple[str, Any]]) -> set[UUID]:
    """Enqueue the same jobs for each kind, and return all their ids."""
    return {job_id for kind in kinds for job_id in put(engine, jobs, queue=kind.queue)}


def running(engine: Engine) -> int:
    """Return how many jobs are marked as running."""
    with Session(engine) as session:
        return len(session.scalars(select(RunningJob)).all())


def until(condition: Callable[[], T | None], seconds: float) -> T:
    """Wait until ``condition`` is true, and return its value."""
    deadline = monotonic() + seconds
    while not (value := condition()):
        assert monotonic() < deadline, "it did not happen in time"
        sleep(0.01)
    return value


def until_each(
    kinds: Sequence[Kind], condition: Callable[[Kind], object], seconds: float
) -> dict[Kind, float]:
    """Wait until ``condition`` is true of each kind; return after how many seconds it was."""
    started = monotonic()
    taken: dict[Kind, float] = {}

    def all_of_them() -> bool:
        for kind in kinds:
            if kind not in taken and condition(kind):
                taken[kind] = monotonic() - started
        return len(taken) == len(kinds)

    until(all_of_them, seconds)
    return taken


def await_empty(engine: Engine, seconds: float, step: Any = lambda: None) -> float:
    """Wait until no job is queued; return how long that took. ``step`` is done meanwhile."""
    started = monotonic()
    while True:
        step()
        try:
            with Session(engine) as session:
                left = session.scalar(select(func.count()).select_from(Job))
        except DBAPIError:
            left = None  # the server is down
        if left == 0:
            return monotonic() - started
        assert monotonic() - started < seconds, f"{left} jobs are left"
        sleep(0.05)


def attempts(engine: Engine) -> dict[UUID, int]:
    """Return how many attempts each archived job has needed."""
    with Session(engine) as session:
        return dict(session.execute(select(ArchivedJob.job_id, ArchivedJob.attempts)).all())


def audit(
    engine: Engine, ids: set[UUID], effects: Counter[UUID], failures: set[UUID] = frozenset()
) -> None:
    """Assert that nothing was lost and nothing took effect twice.

    :param ids: what was enqueued.
    :param failures: those of them that must have failed.
    """
    with Session(engine) as session:
        queued = set(session.scalars(select(Job.job_id)))
        archived = dict(session.execute(select(ArchivedJob.job_id, ArchivedJob.status)).all())
        ledger = Counter(session.scalars(select(LEDGER.c.job_id)))
        markers = session.scalars(select(RunningJob)).all()
    assert not queued & archived.keys(), "in both tables"
    assert queued | archived.keys() >= ids, "lost"
    assert not queued
    succeeded = {job_id for job_id, status in archived.items() if status == "success"}
    assert ids - succeeded == set(failures)
    assert ledger == Counter(dict.fromkeys(ids & succeeded, 1)), "the ledger is not exact"
    assert succeeded <= effects.keys(), "an external effect is missing"
    assert not markers, "markers are left"
