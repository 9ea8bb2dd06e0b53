"""Claims while a long transaction is open, which keeps the rows and index entries of ended jobs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import URL, Engine, create_engine, event, text
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import Handlers, Job, QueueWorker, enqueue, enqueue_many, utcnow
from sqlalchemy_proletarian.migrate import upgrade
from sqlalchemy_proletarian.store import claim_filter

from .support import MINUTE, SECOND, archived, eventually, queued, succeed

DEAD = 150_000


@pytest.fixture(scope="module")
def crowded(server_url: URL) -> Iterator[Engine]:
    """Yield an engine on a job table with many dead rows, which a transaction keeps."""
    admin = create_engine(server_url, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text("CREATE DATABASE proletarian_dead_rows"))
    url = server_url.set(database="proletarian_dead_rows")
    upgrade(url)
    engine = create_engine(url)
    with engine.connect().execution_options(isolation_level="REPEATABLE READ") as reader:
        reader.execute(text("SELECT count(*) FROM proletarian.job"))
        with engine.begin() as connection:
            connection.execute(
                text(
                    "INSERT INTO proletarian.job (job_id, queue, job_type, payload, attempts,"
                    " enqueued_at, process_at) SELECT gen_random_uuid(), 'default', 'job', 'null',"
                    " 0, now(), now() - interval '1 day' + n * interval '0.5 seconds'"
                    " FROM generate_series(1, :dead) n"
                ),
                {"dead": DEAD},
            )
        with engine.begin() as connection:
            connection.execute(text("DELETE FROM proletarian.job"))
        yield engine
    engine.dispose()
    with admin.connect() as connection:
        connection.execute(text("DROP DATABASE proletarian_dead_rows WITH (FORCE)"))
    admin.dispose()


@pytest.fixture(params=["handlers", "callable"])
def handlers(request: pytest.FixtureRequest) -> Any:
    """Return handlers of job types, and a function for all types."""
    if request.param == "callable":
        return succeed
    made = Handlers()
    made("job")(lambda _payload: None)
    return made


def buffers(engine: Engine, statement: str, parameters: Any) -> int:
    """Return how many pages a statement reads."""
    with engine.connect() as connection:
        explain = f"EXPLAIN (ANALYZE, BUFFERS) {statement}"
        plan = "\n".join(connection.exec_driver_sql(explain, parameters).scalars())
    return sum(map(int, re.findall(r"(?:hit|read)=(\d+)", plan.partition("\n")[2][:300])))


@contextmanager
def claims_of(engine: Engine) -> Iterator[list[tuple[str, Any]]]:
    """Yield a list of the claims that workers execute in the block."""
    claims: list[tuple[str, Any]] = []

    def keep(_c: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if statement.startswith("SELECT due."):
            claims.append((statement, parameters))

    event.listen(engine, "before_cursor_execute", keep)
    yield claims
    event.remove(engine, "before_cursor_execute", keep)


@pytest.mark.parametrize("lease", [None, MINUTE], ids=["transaction", "lease"])
def test_claims_do_not_read_them_again_and_again(
    crowded: Engine, handlers: Any, lease: timedelta | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first claim does; those after it start behind them."""
    monkeypatch.setattr(claim_filter, "START_LASTS", 0.5)  # a busy machine may search once more
    options: dict[str, Any] = {"batch_size": 1} if lease is None else {"lease": lease}
    worker = QueueWorker(crowded, handlers, **options)
    with claims_of(crowded) as claims:

        def is_short() -> bool:
            with Session(crowded) as session, session.begin():
                enqueue_many(session, [("job", n) for n in range(5)])
            assert worker.drain() == 5
            return buffers(crowded, *claims[-1]) < 200

        eventually(is_short)
    assert buffers(crowded, *claims[0]) > 1000


def test_jobs_that_are_due_earlier_are_found(
    crowded: Engine, handlers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job that is committed late, and is due long before the others, waits a moment only."""
    monkeypatch.setattr(claim_filter, "START_LASTS", 1.0)
    before = len(archived(crowded))
    with (
        claims_of(crowded) as claims,
        QueueWorker(crowded, handlers, polling_interval=SECOND / 5),
    ):
        with Session(crowded) as session, session.begin():
            enqueue(session, "job")
        eventually(lambda: len(archived(crowded)) == before + 1)
        eventually(lambda: any(claims[-1][1]["since"]))
        with Session(crowded) as session, session.begin():
            old = enqueue(session, "job")
            old.process_at = utcnow() - timedelta(hours=20)
        eventually(lambda: len(archived(crowded)) == before + 2)
    assert queued(crowded) == []


def test_jobs_by_clocks_that_are_behind_do_not_wait(crowded: Engine, handlers: Any) -> None:
    """An idle worker looks for jobs that are due some seconds before its last search."""
    before = len(archived(crowded))
    with (
        claims_of(crowded) as claims,
        QueueWorker(crowded, handlers, polling_interval=SECOND / 5),
    ):
        for n in range(3):
            eventually(lambda: claims and any(claims[-1][1]["since"]))
            with Session(crowded) as session, session.begin():
                session.add(Job(job_type="job", process_at=utcnow() - timedelta(seconds=8)))
            eventually(lambda n=n: len(archived(crowded)) == before + n + 1, seconds=3)
