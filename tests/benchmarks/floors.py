"""The floor: raw psycopg that executes only the statements of the queue.

It has no ORM, no retries, no adaptive batches, no markers and no wake-up except a plain LISTEN, so
it measures the cost of PostgreSQL and the driver. The worker claims batches of 100 jobs in one
transaction, or one job per transaction, one statement after the other.
"""

from __future__ import annotations

import threading
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

if TYPE_CHECKING:
    import psycopg

from . import marks
from .contender import RESULT_INSERT, RESULT_TABLE, Contender, Kind, Role, Settings

COLUMNS = "job_id, queue, job_type, payload, attempts, enqueued_at, process_at"
INSERT = (
    f"INSERT INTO proletarian.job ({COLUMNS}, priority) "
    "VALUES (%s, 'default', %s, %s, 0, %s, %s, 5)"
)
CLAIM = """
    SELECT j.job_id, j.job_type, j.payload, j.attempts
    FROM (VALUES ('default', 0), ('default', 1), ('default', 2), ('default', 3), ('default', 4),
                 ('default', 5), ('default', 6), ('default', 7), ('default', 8), ('default', 9)
         ) AS lane (queue, priority)
    CROSS JOIN LATERAL (
        SELECT * FROM proletarian.job
        WHERE queue = lane.queue AND priority = lane.priority AND process_at <= %s
        ORDER BY process_at LIMIT %s FOR UPDATE SKIP LOCKED
    ) j
    LIMIT %s
"""
SETTLE = f"""
    WITH done AS (DELETE FROM proletarian.job WHERE job_id = ANY(%s) RETURNING *)
    INSERT INTO proletarian.archived_job
        ({COLUMNS}, priority, unique_key, error, status, finished_at)
    SELECT {COLUMNS}, priority, unique_key, error, 'success', %s FROM done
"""
WAKE = "SELECT pg_notify('bench', '')"

FILL = """
    INSERT INTO proletarian.job
        (job_id, queue, job_type, payload, attempts, enqueued_at, process_at, priority)
    SELECT uuidv7(make_interval(secs => (g - :n) / 1000.0)), 'default', 'noop', '{"i": 1}',
           0, now(), PROCESS_AT, 5
    FROM generate_series(1, :n) AS g
"""
# The archive has its rows in the order of their end, and the ids are in the order of their start.
FILL_ARCHIVE = """
    INSERT INTO proletarian.archived_job
        (job_id, queue, job_type, payload, attempts, enqueued_at, process_at, priority,
         status, finished_at)
    SELECT uuidv7(make_interval(secs => (g - :n) / 1000.0)), 'default', 'noop', '{"i": 1}',
           1, now(), now(), 5, 'success', now() + make_interval(secs => (g - :n) / 1000.0)
    FROM generate_series(1, :n) AS g
"""
BACKLOGS = {
    "due": FILL.replace("PROCESS_AT", "now() + make_interval(secs => g - :n)"),
    "future": FILL.replace("PROCESS_AT", "now() + make_interval(days => 1, secs => g)"),
    "archived": FILL_ARCHIVE,
}


def install_schema(contender: Contender) -> None:
    """Create the library's tables, which the floor and the library both use."""
    from sqlalchemy import create_engine, make_url, text

    from sqlalchemy_proletarian.models import SCHEMA, Base

    engine = create_engine(make_url(contender.dsn).set(drivername="postgresql+psycopg"))
    with engine.begin() as connection:
        connection.execute(text(f"CREATE SCHEMA {SCHEMA}"))
        Base.metadata.create_all(connection)
        connection.execute(text(f"ALTER TABLE {SCHEMA}.running SET UNLOGGED"))
    engine.dispose()
    contender.execute(RESULT_TABLE)


class RawPsycopg(Contender):
    """Raw psycopg that executes the statements of the queue."""

    name = "raw"
    label = "raw psycopg"
    role = Role.FLOOR
    settings = "the same statements; batches of 100 per transaction unless noted otherwise"
    atomic = True
    requires = ("psycopg",)
    unfinished = "SELECT count(*) FROM proletarian.job"
    backlogs = BACKLOGS

    _connection: psycopg.Connection[Any]

    def install(self) -> None:
        """Create the library's tables."""
        install_schema(self)

    def open(self) -> None:
        """Connect the producer."""
        import psycopg

        self._connection = psycopg.connect(self.dsn, prepare_threshold=1)

    def close(self) -> None:
        """Disconnect the producer."""
        self._connection.close()

    def enqueue_one(self, kind: Kind, i: int, at: datetime | None = None) -> None:
        """INSERT and COMMIT; if latency is measured, notify the worker as the library does."""
        from sqlalchemy_proletarian.clock import uuid7

        now = datetime.now(UTC)
        row = [uuid7(), kind, f'{{"i": {i}}}', now, at or now]
        self._connection.execute(INSERT, row)
        if kind == "stamp" and at is None:
            self._connection.execute(WAKE)
        self._connection.commit()

    def enqueue_many(self, kind: Kind, n: int) -> None:
        """Enqueue ``n`` jobs with COPY and commit."""
        from sqlalchemy_proletarian.clock import uuid7

        with (
            self._connection.cursor() as cursor,
            cursor.copy(f"COPY proletarian.job ({COLUMNS}, priority) FROM STDIN") as copy,
        ):
            for i in range(n):
                now = datetime.now(UTC)
                copy.write_row((uuid7(), "default", kind, f'{{"i": {i}}}', 0, now, now, 5))
        self._connection.commit()

    def steps(self, n: int) -> dict[str, float]:
        """Run ``n`` jobs in this process, and return the microseconds of each step of one job."""
        from .steps import run_floor

        return run_floor(self, n)

    def work(self, settings: Settings) -> None:
        """Claim, run and archive jobs and commit; if there are none, wait for a notification."""
        threads = [
            threading.Thread(target=self._loop, args=[settings.batch_size or 100])
            for _ in range(settings.threads)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _loop(self, batch_size: int) -> None:
        import psycopg

        with (
            psycopg.connect(self.dsn, prepare_threshold=1) as connection,
            psycopg.connect(self.dsn, autocommit=True) as listener,
        ):
            listener.execute("LISTEN bench")
            while True:
                while self.run_batch(connection, batch_size):
                    pass
                wait = self._next_due(connection)
                for _ in listener.notifies(timeout=wait, stop_after=1):
                    pass

    def run_batch(self, connection: psycopg.Connection[Any], batch_size: int) -> int:
        """Run due jobs in one transaction, and return how many there were."""
        now = datetime.now(UTC)
        rows = connection.execute(CLAIM, [now, batch_size, batch_size]).fetchall()
        done: list[UUID] = []
        for job_id, job_type, payload, _attempts in rows:
            i = int(payload[6:-1])
            if job_type == "stamp":
                marks.stamp(i)
            elif job_type == "write":
                connection.execute("SAVEPOINT job")
                connection.execute(RESULT_INSERT, [i])
                connection.execute("RELEASE SAVEPOINT job")
                marks.noop(i)
            else:
                marks.noop(i)
            done.append(job_id)
        if done:
            connection.execute(SETTLE, [done, datetime.now(UTC)])
        connection.commit()
        return len(done)

    @staticmethod
    def _next_due(connection: psycopg.Connection[Any]) -> float:
        """Return the seconds until the next job is due, at most one."""
        cursor = connection.execute(
            "SELECT extract(epoch FROM min(process_at) - clock_timestamp()) FROM proletarian.job "
            "WHERE queue = 'default' AND priority = 5"
        )
        row = cursor.fetchone()
        connection.commit()
        return max(0.0, min(1.0, float(row[0]))) if row and row[0] is not None else 1.0
