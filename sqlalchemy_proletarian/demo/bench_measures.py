"""The measurements of ``proletarian bench``, and their baselines.

The raw statements are the baseline, the minimum of work without a queue: one INSERT and commit per
job; COPY; and batches of 100 jobs that are locked, moved to the archive and committed.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from statistics import median, quantiles
from threading import Event
from time import perf_counter, sleep
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from ..clock import uuid7
from ..database.dialects import driver_connection
from ..handlers.registry import Handlers
from ..producer.bulk import enqueue_many
from ..producer.enqueue import enqueue
from ..worker.threaded import QueueWorker
from .bench_tables import SCHEMA, ArchivedBenchJob, Base, BenchJob, BenchRow, RunningBenchJob

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
        self.handlers: Handlers = Handlers()
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
