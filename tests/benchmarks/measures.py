"""The measurements: each function runs one contender once, in a fresh copy of its database."""

# ruff: noqa: S311 - random pauses, no cryptography
from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from .contender import Backlog, Contender, FailedError, Kind, NotOfferedError, Role, Settings
from .drive import Workers
from .server import Server

Values = dict[str, float]


@dataclass(frozen=True)
class Metric:
    """A number that a measurement returns."""

    key: str
    label: str
    unit: str
    higher_is_better: bool = False
    share_of: str | None = None
    """The key of the metric of which this one is a part, and is shown as a share."""


@dataclass(frozen=True)
class Scale:
    """The size of each measurement."""

    seconds: float
    enqueue_each: int
    enqueue_many: int
    latency: int
    scheduled: int
    idle: float
    first_guess: int
    steps: int
    backlog_drain: int
    backlogs: tuple[int, ...]
    """The numbers of rows in the full tables; the peers have the largest up to a million."""


MILLION = 1_000_000
FULL = Scale(
    4.0,
    1_000,
    10_000,
    150,
    150,
    30.0,
    2_000,
    1_000,
    10_000,
    (10_000, 100_000, MILLION, 10 * MILLION),
)
QUICK = Scale(1.0, 300, 10_000, 40, 40, 3.0, 1_000, 300, 10_000, (10_000, 100_000))


@dataclass
class Bench:
    """The server, the marks and the scale of a measurement, and the rates so far."""

    server: Server
    marks: Path
    scale: Scale
    paces: dict[tuple[str, str], float] = field(default_factory=dict)
    """Jobs per second of the previous run, which determine the number of jobs of the next run."""


Run = Callable[[Bench, Contender], Values]


@dataclass(frozen=True)
class Measurement:
    """One or more rows of the report that come from the same run."""

    name: str
    metrics: tuple[Metric, ...]
    run: Run
    roles: frozenset[Role] = frozenset({Role.FLOOR, Role.OURS, Role.PEER})
    variants: frozenset[str] = frozenset()
    """The names of the variants that take part."""
    repetitions: int | None = None

    def includes(self, contender: type[Contender]) -> bool:
        """Return whether a contender takes part."""
        return contender.role in self.roles or contender.name in self.variants


def _counted(
    bench: Bench, contender: Contender, work: Callable[[], tuple[float, int, int]]
) -> Values:
    """Return a rate, and the WAL bytes and transactions per job.

    :param work: returns the rate, the number of jobs and the number of our own transactions.
    """
    before = bench.server.counters(contender.database)
    rate, n, own = work()
    bench.server.evict(contender.database)
    after = bench.server.counters(contender.database)
    return {
        "rate": rate,
        "wal": (after.wal - before.wal) / n,
        "commits": (after.transactions - before.transactions - own) / n,
    }


def enqueue_each(bench: Bench, contender: Contender) -> Values:
    """Measure jobs enqueued one after the other, each with its own commit."""
    n = bench.scale.enqueue_each

    def work() -> tuple[float, int, int]:
        contender.open()
        contender.enqueue_each("noop", 20)
        start = time.monotonic()
        contender.enqueue_each("noop", n)
        rate = n / (time.monotonic() - start)
        contender.close()
        return rate, n + 20, 0

    bench.server.checkpoint()
    return _counted(bench, contender, work)


def enqueue_many(bench: Bench, contender: Contender) -> Values:
    """Measure many jobs enqueued together, in the contender's fastest way."""
    n = bench.scale.enqueue_many
    contender.open()
    contender.enqueue_many("noop", 100)
    bench.server.checkpoint()
    start = time.monotonic()
    contender.enqueue_many("noop", n)
    rate = n / (time.monotonic() - start)
    contender.close()
    return {"rate": rate}


def drain(
    bench: Bench,
    contender: Contender,
    *,
    name: str,
    kind: Kind = "noop",
    settings: Settings | None = None,
    processes: int = 1,
) -> Values:
    """Measure how fast a backlog is drained; its size is chosen to take some seconds."""
    settings = settings or Settings()
    if not contender.offers(kind, settings):
        raise NotOfferedError
    seconds = bench.scale.seconds
    pace = bench.paces.get((name, contender.name))
    n = max(200, min(200_000, int(pace * seconds))) if pace else bench.scale.first_guess
    # The checkpoint is before the jobs are enqueued: PostgreSQL does not log full images of pages
    # that are new since the checkpoint, so the WAL bytes are the contender's changes only.
    bench.server.checkpoint()
    fill(contender, kind, n)
    memory = 0.0

    def work() -> tuple[float, int, int]:
        nonlocal memory
        with Workers(
            contender,
            bench.server,
            bench.marks,
            settings=settings,
            processes=processes,
        ) as workers:
            rate, done = workers.rate(n, 2 * seconds)
            memory = workers.peak_memory()
        return rate, done, workers.own_transactions

    values = _counted(bench, contender, work)
    bench.paces[name, contender.name] = values["rate"]
    return {**values, "memory": memory}


def fill(contender: Contender, kind: Kind, n: int) -> None:
    """Enqueue ``n`` jobs, and vacuum and analyse the tables as autovacuum would have done."""
    contender.open()
    for start in range(0, n, 20_000):
        contender.enqueue_many(kind, min(20_000, n - start))
    contender.close()
    contender.execute("VACUUM ANALYZE")


def latency(bench: Bench, contender: Contender) -> Values:
    """Measure the time from the commit of a job to the start of its handler, on an idle worker."""
    n = bench.scale.latency
    contender.open()
    committed: list[float] = []
    with Workers(contender, bench.server, bench.marks, settings=Settings()) as workers:
        _warm_up(contender, workers, n)
        for i in range(n):
            time.sleep(random.uniform(0.02, 0.06))
            contender.enqueue_one("stamp", i)
            committed.append(time.time())
        missed = not workers.wait(lambda: workers.marks.total > n, 10.0)
        started = workers.marks.stamps(n)
    _close_quietly(contender)
    delays = [(b or time.time()) - a for a, b in zip(committed, started, strict=True)]
    if missed and not any(started):
        raise FailedError("no job started in 10 s")
    return _percentiles(delays)


def lateness(bench: Bench, contender: Contender) -> Values:
    """Measure the time from the scheduled time of a job to the start of its handler."""
    n = bench.scale.scheduled
    contender.open()
    with Workers(contender, bench.server, bench.marks, settings=Settings()) as workers:
        _warm_up(contender, workers, n)
        spread = n * 0.03
        start = datetime.now(UTC) + timedelta(seconds=2)
        due = [start + timedelta(seconds=random.uniform(0, spread)) for _ in range(n)]
        for i, at in enumerate(due):
            contender.enqueue_one("stamp", i, at)
        workers.wait(lambda: workers.marks.total > n, spread + 15.0)
        started = workers.marks.stamps(n)
    _close_quietly(contender)
    now = time.time()
    delays = [(b or now) - a.timestamp() for a, b in zip(due, started, strict=True)]
    return _percentiles(delays)


def idle(bench: Bench, contender: Contender, *, threads: int = 1) -> Values:
    """Measure the queries and the CPU time of an idle worker."""
    contender.open()
    settings = Settings(threads=threads)
    with Workers(contender, bench.server, bench.marks, settings=settings) as workers:
        _warm_up(contender, workers, bench.scale.latency)
        _close_quietly(contender)
        time.sleep(min(3.0, bench.scale.idle))
        statements, transactions = _query_counts(bench.server, contender)
        cpu, start = workers.cpu(), time.monotonic()
        time.sleep(bench.scale.idle)
        cpu, seconds = workers.cpu() - cpu, time.monotonic() - start
        more_statements, more_transactions = _query_counts(bench.server, contender)
        if statements is not None and more_statements is not None:
            queries = more_statements - statements
        else:
            queries = more_transactions - transactions
    return {"queries": queries / seconds, "cpu": 100 * cpu / seconds}


def _query_counts(server: Server, contender: Contender) -> tuple[int | None, int]:
    return server.statements(contender.database), server.counters(contender.database).transactions


def backlog(bench: Bench, contender: Contender, *, kind: Backlog, n: int) -> Values:
    """Compare the jobs handled per second before and after the tables are filled."""
    statement = contender.backlogs.get(kind)
    if statement is None:
        raise NotOfferedError
    fill(contender, "noop", bench.scale.backlog_drain)
    before = _handled_rate(bench, contender)
    contender.execute(statement.replace(":n", str(n)))
    if kind == "due":
        contender.execute("VACUUM ANALYZE")
    else:
        fill(contender, "noop", bench.scale.backlog_drain)
    after = _handled_rate(bench, contender)
    return {"rate": after, "share": after / before}


def _handled_rate(bench: Bench, contender: Contender) -> float:
    bench.server.checkpoint()
    with Workers(contender, bench.server, bench.marks, settings=Settings()) as workers:
        return workers.handled_rate(bench.scale.backlog_drain, 3 * bench.scale.seconds)


def _warm_up(contender: Contender, workers: Workers, index: int) -> None:
    """Run one job, so that the worker has started and is warm, and wait until it is idle."""
    contender.enqueue_one("stamp", index)
    workers.wait_first()
    time.sleep(0.5)


def _close_quietly(contender: Contender) -> None:
    """Disconnect a producer whose connection was terminated together with the workers'."""
    try:
        contender.close()
    except Exception:
        return


def _percentiles(seconds: list[float]) -> Values:
    cuts = statistics.quantiles(seconds, n=100, method="inclusive")
    return {"p50": 1000 * cuts[49], "p99": 1000 * cuts[98]}
