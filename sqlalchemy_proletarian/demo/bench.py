"""``proletarian bench``: measures the queue on your database, compared with raw psycopg.

It runs in its own schema, which it creates and drops. The raw statements are the baseline, the
minimum of work without a queue: one INSERT and commit per job; COPY; and batches of 100 jobs that
are locked, moved to the archive and committed. The benchmarks in the repository compare this queue
with other queues.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from statistics import median, quantiles
from threading import Event
from time import perf_counter, sleep
from typing import Any

from rich.console import Console
from rich.table import Table
from sqlalchemy import URL, Engine, create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.schema import CreateSchema, DropSchema

from ..clock import uuid7
from ..database.dialects import driver_connection
from ..handlers.registry import Handlers
from ..models.mixins import ArchivedJobMixin, JobMixin, RunningJobMixin
from ..producer.bulk import enqueue_many
from ..producer.enqueue import enqueue
from ..worker.threaded import QueueWorker

SCHEMA = "proletarian_bench"
_JOB, _ARCHIVE = f"{SCHEMA}.job", f"{SCHEMA}.archived_job"
_COLUMNS = "job_id, queue, job_type, payload, attempts, enqueued_at, process_at"
_INSERT = f"INSERT INTO {_JOB} ({_COLUMNS}) VALUES (%s, 'default', 'noop', '1', 0, now(), now())"  # noqa: S608
_CLAIM = (
    f"SELECT job_id FROM {_JOB} WHERE queue = 'default' AND priority = 5 AND process_at <= now() "  # noqa: S608
    f"ORDER BY process_at LIMIT %s FOR UPDATE SKIP LOCKED"
)
_SETTLE = (
    f"WITH done AS (DELETE FROM {_JOB} WHERE job_id = ANY(%s) RETURNING *) "  # noqa: S608
    f"INSERT INTO {_ARCHIVE} ({_COLUMNS}, status, finished_at) "
    f"SELECT {_COLUMNS}, 'success', now() FROM done"
)


class Base(DeclarativeBase):
    """The declarative base of the benchmark's tables."""


class BenchJob(JobMixin, Base):
    """A queued job."""

    __tablename__ = "job"
    __table_args__ = {"schema": SCHEMA}  # noqa: RUF012


class ArchivedBenchJob(ArchivedJobMixin, Base):
    """A finished job."""

    __tablename__ = "archived_job"
    __table_args__ = {"schema": SCHEMA}  # noqa: RUF012


class RunningBenchJob(RunningJobMixin, Base):
    """The marker of a running job."""

    __tablename__ = "running"
    __table_args__ = {"schema": SCHEMA, "prefixes": ["UNLOGGED"]}  # noqa: RUF012


class BenchRow(Base):
    """A row that a job inserts with its session."""

    __tablename__ = "row"
    __table_args__ = {"schema": SCHEMA}  # noqa: RUF012

    id: Mapped[int] = mapped_column(primary_key=True)
    n: Mapped[int]


class Bench:
    """The measurements, in jobs per second.

    :param size: number of jobs of a drain; slow measurements use a tenth of it.
    """

    def __init__(self, engine: Engine, size: int) -> None:
        self._engine = engine
        self._size = size
        self._started = 0.0
        self._latencies: list[float] = []
        self._ran = Event()
        self.handlers = Handlers()
        self.handlers("noop")(lambda payload: None)  # noqa: ARG005

        @self.handlers("write")
        def write(payload: int, session: Session) -> None:
            session.add(BenchRow(n=payload))

        @self.handlers("stamp")
        def stamp(payload: Any) -> None:  # noqa: ARG001
            self._latencies.append(perf_counter() - self._started)
            self._ran.set()

    def rows(self) -> list[tuple[str, Callable[[], float], Callable[[], float] | None]]:
        """Return for each measurement a name, the function to measure, and its baseline if any."""
        return [
            ("enqueue, one per commit", self._enqueue, self._raw_insert),
            ("enqueue_many", self._enqueue_many, self._raw_copy),
            ("drain, no-op", lambda: self._drain("noop"), lambda: self._raw_drain(100)),
            ("drain, each job adds a row", lambda: self._drain("write", 10), None),
            (
                "drain, one job per transaction",
                lambda: self._drain("noop", 10, batch_size=1),
                lambda: self._raw_drain(1, 10),
            ),
        ]

    def _enqueue(self) -> float:
        def work(count: int) -> None:
            with Session(self._engine) as session:
                for n in range(count):
                    enqueue(session, "noop", n, job_model=BenchJob)
                    session.commit()

        return self._rate(work, self._size // 10)

    def _raw_insert(self) -> float:
        def work(count: int) -> None:
            with self._engine.connect() as connection:
                driver = driver_connection(connection)
                for _ in range(count):
                    driver.execute(_INSERT, [uuid7()])
                    driver.commit()

        return self._rate(work, self._size // 10)

    def _enqueue_many(self) -> float:
        return self._rate(lambda count: self._fill("noop", count), self._size)

    def _raw_copy(self) -> float:
        def work(count: int) -> None:
            with self._engine.connect() as connection:
                driver = driver_connection(connection)
                with driver.cursor().copy(f"COPY {_JOB} ({_COLUMNS}) FROM STDIN") as copy:
                    for n in range(count):
                        now = datetime.now(UTC)
                        copy.write_row((uuid7(), "default", "noop", str(n), 0, now, now))
                driver.commit()

        return self._rate(work, self._size)

    def _drain(self, kind: str, share: int = 1, **options: Any) -> float:
        def work(_: int) -> None:
            self._worker(**options).drain()

        return self._rate(work, self._size // share, fill=kind)

    def _raw_drain(self, batch_size: int, share: int = 1) -> float:
        def work(_: int) -> None:
            with self._engine.connect() as connection:
                driver = driver_connection(connection)
                while ids := [row[0] for row in driver.execute(_CLAIM, [batch_size])]:
                    driver.execute(_SETTLE, [ids])
                    driver.commit()
                driver.rollback()

        return self._rate(work, self._size // share, fill="noop")

    def latency(self, times: int = 100) -> tuple[float, float]:
        """Return the median and 99th percentile of commit → handler start, in milliseconds."""
        with self._worker(), Session(self._engine) as session:
            sleep(0.5)
            for _ in range(times):
                sleep(0.02)
                self._ran.clear()
                enqueue(session, "stamp", job_model=BenchJob)
                session.commit()
                self._started = perf_counter()
                self._ran.wait(10)
        found = [1000 * seconds for seconds in self._latencies]
        return median(found), quantiles(found, n=100)[98]

    def _worker(self, **options: Any) -> QueueWorker:
        return QueueWorker(
            self._engine,
            self.handlers,
            job_model=BenchJob,
            archived_job_model=ArchivedBenchJob,
            running_job_model=RunningBenchJob,
            **options,
        )

    def _fill(self, kind: str, count: int) -> None:
        with Session(self._engine) as session:
            enqueue_many(session, [(kind, n) for n in range(count)], job_model=BenchJob)
            session.commit()

    def _rate(self, work: Callable[[int], object], count: int, fill: str | None = None) -> float:
        with self._engine.begin() as connection:
            for table in reversed(Base.metadata.sorted_tables):
                connection.exec_driver_sql(f"TRUNCATE {table}")
        if fill:
            self._fill(fill, count)
        started = perf_counter()
        work(count)
        return count / (perf_counter() - started)


def run_bench(
    url: URL, console: Console, *, size: int = 20_000, repetitions: int = 3, json_file: str | None
) -> None:
    """Run the measurements and print a table.

    :param size: number of jobs of one drain.
    :param repetitions: how often each measurement is repeated; the median is reported.
    :param json_file: a file for the results as JSON; None to write no file.

    .. versionadded:: 0.1
    """
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(CreateSchema(SCHEMA))
        Base.metadata.create_all(connection)
        version = connection.exec_driver_sql("SHOW server_version").scalar_one()
    try:
        found = _measure(Bench(engine, size), repetitions, console)
    finally:
        with engine.begin() as connection:
            connection.execute(DropSchema(SCHEMA, cascade=True))
        engine.dispose()
    console.print(_table(found, version))
    if json_file:
        facts = {"postgresql": version, "python": platform.python_version(), "rows": found}
        Path(json_file).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def _measure(bench: Bench, repetitions: int, console: Console) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    with console.status("Measuring") as status:
        for name, ours, floor in bench.rows():
            status.update(f"Measuring: {name}")
            pairs = [(ours(), floor() if floor else None) for _ in range(repetitions)]
            raw = [pair[1] for pair in pairs if pair[1] is not None]
            found.append(
                {
                    "name": name,
                    "unit": "jobs/s",
                    "value": median(pair[0] for pair in pairs),
                    "floor": median(raw) if raw else None,
                }
            )
        status.update("Measuring: latency")
        middle, late = bench.latency()
    for name, value in (("p50", middle), ("p99", late)):
        row = {"name": f"commit → handler, {name}", "unit": "ms", "value": value}
        found.append(row | {"floor": None})
    return found


def _table(found: list[dict[str, Any]], version: str) -> Table:
    table = Table(title=f"PostgreSQL {version}, Python {platform.python_version()}")
    table.add_column("")
    for name in ("the queue", "raw psycopg", "ratio"):
        table.add_column(name, justify="right")
    for row in found:
        value, floor = row["value"], row["floor"]
        digits = 1 if row["unit"] == "ms" else 0
        table.add_row(
            row["name"],
            f"{value:,.{digits}f} {row['unit']}",
            f"{floor:,.0f}" if floor else "",
            f"{value / floor:.2f}" if floor else "",
        )
    return table
