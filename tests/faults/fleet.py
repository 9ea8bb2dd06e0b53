"""Worker processes that tests start, freeze and kill, and checks of the result."""

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
from tests.forked import Forked

from .program import BEGUN, LEDGER, main

T = TypeVar("T")

Process: TypeAlias = "Forked | subprocess.Popen[bytes]"

ROOT = Path(__file__).parents[2]

LEASE = 2.0
"""Seconds; short because the tests wait for leases to expire."""


@dataclass(frozen=True)
class Kind:
    """How a worker runs and holds its jobs."""

    waits: str
    lease: float | None
    driver: str = "psycopg"

    def arguments(self) -> list[str]:
        """Return the arguments for the worker program."""
        held = [] if self.lease is None else ["--lease", str(self.lease)]
        return ["--driver", self.driver, *held]

    def __str__(self) -> str:
        return f"{self.waits}-{self.held}"

    @property
    def held(self) -> str:
        """Return what holds its jobs: a transaction or a lease."""
        return "transaction" if self.lease is None else "lease"

    @property
    def queue(self) -> str:
        """Return the name of its own queue, for tests of all kinds at the same time."""
        return f"{self}-{self.driver}"

    @property
    def patiently(self) -> list[str]:
        """Return arguments for its own queue and for leases that do not expire during a test."""
        return ["--queue", self.queue, *(["--lease", "60"] if self.lease else [])]


KINDS = [
    Kind("threads", None),
    Kind("threads", LEASE),
    Kind("asyncio", None, "asyncpg"),
    Kind("asyncio", LEASE),
]
EACH = [*KINDS, Kind("asyncio", LEASE, "asyncpg")]
"""The kinds above, and asyncpg in lease mode: its connection errors differ from other drivers'."""


@dataclass(frozen=True)
class Begun:
    """A run of a job that has begun."""

    job_id: UUID
    queue: str
    attempt: int
    worker: int
    """The id of the worker process."""


@dataclass
class Fleet:
    """The workers of one test.

    :param kinds: the kinds of workers for this database.
    :param effects: the file of external effects.
    """

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

        :param url: another URL of the server.
        :param within: a prefix of the command, to run it on another host.
        """
        url_text = (url or self.url).render_as_string(hide_password=False)
        log = self.logs / f"worker-{len(self.workers)}.log"
        given = [url_text, kind.waits, str(self.effects), *kind.arguments(), *arguments]
        worker: Process
        if within:
            with log.open("wb") as output:
                worker = subprocess.Popen(
                    [
                        *within,
                        sys.executable,
                        "-X",
                        "faulthandler",
                        "-m",
                        "tests.faults.program",
                        *given,
                    ],
                    cwd=ROOT,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
        else:
            worker = Forked(main, given, output=log)
        self.workers.append(worker)
        return worker

    def alive(self) -> list[Process]:
        """Return the running workers."""
        return [worker for worker in self.workers if worker.poll() is None]

    def kill(self, worker: Process | None = None) -> None:
        """Kill a worker without warning, by default a random one."""
        alive = self.alive()
        if victim := worker or (self.random.choice(alive) if alive else None):
            victim.kill()
            victim.wait()

    def freeze(self, worker: Process) -> None:
        """Freeze a worker."""
        worker.send_signal(signal.SIGSTOP)

    def thaw(self, worker: Process) -> None:
        """Resume a frozen worker."""
        worker.send_signal(signal.SIGCONT)

    def stop(self, timeout: float = 30) -> list[int]:
        """Terminate all workers; return their exit codes."""
        alive = self.alive()
        for worker in alive:
            worker.terminate()
        return [worker.wait(timeout) for worker in alive]

    def said(self, number: int | None = None) -> str:
        """Return the log of all workers, or of one of them."""
        logs = sorted(self.logs.glob(f"worker-{'*' if number is None else number}.log"))
        return "".join(log.read_text(errors="replace") for log in logs)

    def progress(self) -> int:
        """Return a number that grows with each external effect."""
        return self.effects.stat().st_size if self.effects.exists() else 0

    def begun(self) -> list[Begun]:
        """Return the runs that have begun, in that order."""
        file = self.effects.with_name(self.effects.name + BEGUN)
        lines = file.read_text().splitlines() if file.exists() else []
        words = [line.split() for line in lines]
        return [Begun(UUID(job), queue, int(n), int(pid)) for job, queue, n, pid in words]

    def running(self, kind: Kind) -> list[Begun]:
        """Return the runs of one kind of worker whose jobs have had no external effect yet."""
        ended = self.effects_by_job()
        return [run for run in self.begun() if run.queue == kind.queue and run.job_id not in ended]

    def until_idle(self, since: int = 0) -> None:
        """Wait until the workers from number ``since`` on, started with ``--verbose``, poll."""
        numbers = range(since, len(self.workers))
        until(lambda: all("polling-for-jobs" in self.said(n) for n in numbers), 30)

    def effects_by_job(self) -> Counter[UUID]:
        """Return the number of external effects by job."""
        lines = self.effects.read_text().split() if self.effects.exists() else []
        return Counter(UUID(line) for line in lines)


@contextmanager
def fleet(url: URL, kinds: Sequence[Kind], directory: Path, seed: int) -> Iterator[Fleet]:
    """Yield a fleet; kill its remaining workers afterwards."""
    logs = directory / "logs"
    logs.mkdir()
    chance = random.Random(seed)  # noqa: S311
    workers = Fleet(url, kinds, directory / "effects", logs, chance)
    try:
        yield workers
    finally:
        for worker in workers.alive():
            worker.kill()
            worker.wait()


def put(engine: Engine, jobs: list[tuple[str, Any]], *, queue: str = "default") -> set[UUID]:
    """Enqueue jobs; return their ids."""
    with Session(engine) as session, session.begin():
        before = set(session.scalars(select(Job.job_id)))
        enqueue_many(session, jobs, queue=queue)
        return set(session.scalars(select(Job.job_id))) - before


def put_for_each(kinds: Iterable[Kind], engine: Engine, jobs: list[tuple[str, Any]]) -> set[UUID]:
    """Enqueue the same jobs for each kind; return all ids."""
    return {job_id for kind in kinds for job_id in put(engine, jobs, queue=kind.queue)}


def running(engine: Engine) -> int:
    """Return the number of jobs marked as running."""
    with Session(engine) as session:
        return len(session.scalars(select(RunningJob)).all())


def until(condition: Callable[[], T | None], seconds: float) -> T:
    """Wait until ``condition`` returns a true value; return the value."""
    deadline = monotonic() + seconds
    while not (value := condition()):
        assert monotonic() < deadline, "the condition did not become true in time"
        sleep(0.01)
    return value


def until_each(
    kinds: Sequence[Kind], condition: Callable[[Kind], object], seconds: float
) -> dict[Kind, float]:
    """Wait until ``condition`` is true for each kind; return the seconds that each took."""
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
    """Wait until no job is queued, calling ``step`` in a loop; return the seconds that it took."""
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
    """Return the attempts of each archived job."""
    with Session(engine) as session:
        return dict(session.execute(select(ArchivedJob.job_id, ArchivedJob.attempts)).all())


def _errors(engine: Engine, ids: set[UUID]) -> dict[UUID, str | None]:
    """Return the errors of archived jobs."""
    model = ArchivedJob
    with Session(engine) as session:
        found = select(model.job_id, model.error).where(model.job_id.in_(ids))
        return dict(session.execute(found).all())


def audit(
    engine: Engine, ids: set[UUID], effects: Counter[UUID], failures: set[UUID] = frozenset()
) -> None:
    """Assert that no job was lost and no job took effect twice.

    :param ids: the enqueued jobs.
    :param failures: those of them that must have failed.
    """
    with Session(engine) as session:
        queued = set(session.scalars(select(Job.job_id)))
        archived = dict(session.execute(select(ArchivedJob.job_id, ArchivedJob.status)).all())
        ledger = Counter(session.scalars(select(LEDGER.c.job_id)))
        markers = session.scalars(select(RunningJob)).all()
    assert not queued & archived.keys(), "jobs are in both tables"
    assert queued | archived.keys() >= ids, "jobs were lost"
    assert not queued
    succeeded = {job_id for job_id, status in archived.items() if status == "success"}
    failed = ids - succeeded
    assert failed == set(failures), f"other jobs failed: {_errors(engine, failed ^ failures)}"
    assert ledger == Counter(dict.fromkeys(ids & succeeded, 1)), "the ledger is not exact"
    assert succeeded <= effects.keys(), "an external effect is missing"
    assert not markers, "markers are left"
