"""Jobs under which the connection is lost again and again: five times in a row is a failure."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Engine, Text, cast, func, text
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import Handlers, Job

from .kinds import Kind, only, transactions
from .support import SECOND, Note, eventually, notes, only_archived, put, queued

NAME = "loses"
MINE_GONE = func.pg_terminate_backend(func.pg_backend_pid())
ALL_GONE = text(
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
    f" WHERE application_name LIKE '{NAME} %' AND application_name NOT LIKE '% listening'"
)


def run(engine: Engine, kind: Kind, handlers: Handlers) -> Any:
    """Run one job to its end, and return it."""
    put(engine, "job")
    with kind.worker(engine, handlers, name=NAME, polling_interval=SECOND / 20):
        eventually(lambda: not queued(engine), 60)
    return only_archived(engine)


# By leases there is a pause of a second after each loss: not all kinds.


@only(Kind(), Kind("psycopg"), Kind("asyncpg"), Kind("asyncpg", leased=True))
def test_in_each_flush(shop: Engine, kind: Kind) -> None:
    """A job whose objects cost the connection when they are flushed uses up its attempts."""
    handlers = Handlers()
    runs: list[int] = []

    @handlers("job")
    def job(payload: Any, session: Session, job: Job) -> None:
        runs.append(job.attempts)
        session.add(Note(text=cast(MINE_GONE, Text)))

    done = run(shop, kind, handlers)
    assert (done.status, done.attempts) == ("failure", 1)
    assert "terminating connection due to administrator command" in done.error
    assert runs == [1] * 5
    assert not notes(shop)


@only(Kind(), Kind("psycopg"), Kind("asyncpg"), Kind(leased=True))
def test_with_a_failure_between(shop: Engine, kind: Kind) -> None:
    """What has ended in another way begins anew to lose connections."""
    handlers = Handlers()
    runs: list[int] = []

    @handlers("job", retry={"retries": 1})
    def job(payload: Any, session: Session, job: Job) -> None:
        runs.append(job.attempts)
        if len(runs) == 5:
            raise ValueError("an attempt that fails")
        if len(runs) < 10:
            session.scalar(MINE_GONE)
        session.add(Note(text="once"))

    done = run(shop, kind, handlers)
    assert (done.status, done.attempts) == ("success", 2)
    assert runs == [1] * 5 + [2] * 5
    assert notes(shop) == ["once"]


@transactions
def test_beside_a_handler_without_a_session(shop: Engine, kind: Kind) -> None:
    """It is the same where the connection is lost under a handler that takes no session."""
    handlers = Handlers()
    runs: list[int] = []

    @handlers("job", retry={"retries": 1})
    def job(payload: Any, job: Job) -> None:
        runs.append(job.attempts)
        if len(runs) == 5:
            raise ValueError("an attempt that fails")
        if len(runs) < 10:
            with shop.begin() as other:
                other.execute(ALL_GONE)

    done = run(shop, kind, handlers)
    assert (done.status, done.attempts) == ("success", 2)
    assert runs == [1] * 5 + [2] * 5
