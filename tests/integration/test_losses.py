"""Jobs whose connection is lost repeatedly: five losses in a row count as a failed attempt."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Engine, Text, cast, func, text
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import Handlers, Job

from .kinds import Kind, only, transactions
from .support import SECOND, Note, eventually, notes, only_archived, put, queued

NAME = "loses"
END_OWN_CONNECTION = func.pg_terminate_backend(func.pg_backend_pid())
END_WORKER_CONNECTIONS = text(
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
    f" WHERE application_name LIKE '{NAME} %' AND application_name NOT LIKE '% listening'"
)


def run(engine: Engine, kind: Kind, handlers: Handlers) -> Any:
    """Run one job until it is archived, and return it."""
    put(engine, "job")
    with kind.worker(engine, handlers, name=NAME, polling_interval=SECOND / 20):
        eventually(lambda: not queued(engine), 60)
    return only_archived(engine)


# In lease mode a worker pauses for a second after each loss: the tests skip some kinds.


@only(Kind(), Kind("psycopg"), Kind("asyncpg"), Kind("asyncpg", leased=True))
def test_losing_the_connection_in_each_flush_fails_the_job(shop: Engine, kind: Kind) -> None:
    """A job whose flush always loses the connection fails."""
    handlers = Handlers()
    runs: list[int] = []

    @handlers("job")
    def job(payload: Any, session: Session, job: Job) -> None:
        runs.append(job.attempts)
        session.add(Note(text=cast(END_OWN_CONNECTION, Text)))

    done = run(shop, kind, handlers)
    assert (done.status, done.attempts) == ("failure", 1)
    assert "terminating connection due to administrator command" in done.error
    assert runs == [1] * 5
    assert not notes(shop)


@only(Kind(), Kind("psycopg"), Kind("asyncpg"), Kind(leased=True))
def test_a_failed_attempt_resets_the_number_of_losses(shop: Engine, kind: Kind) -> None:
    """An attempt that ends in another way resets the number of lost connections."""
    handlers = Handlers()
    runs: list[int] = []

    @handlers("job", retry={"retries": 1})
    def job(payload: Any, session: Session, job: Job) -> None:
        runs.append(job.attempts)
        if len(runs) == 5:
            raise ValueError("an attempt that fails")
        if len(runs) < 10:
            session.scalar(END_OWN_CONNECTION)
        session.add(Note(text="once"))

    done = run(shop, kind, handlers)
    assert (done.status, done.attempts) == ("success", 2)
    assert runs == [1] * 5 + [2] * 5
    assert notes(shop) == ["once"]


@transactions
def test_losses_during_a_handler_without_a_session(shop: Engine, kind: Kind) -> None:
    """The same is true if the worker's connection is lost while a handler uses no session."""
    handlers = Handlers()
    runs: list[int] = []

    @handlers("job", retry={"retries": 1})
    def job(payload: Any, job: Job) -> None:
        runs.append(job.attempts)
        if len(runs) == 5:
            raise ValueError("an attempt that fails")
        if len(runs) < 10:
            with shop.begin() as other:
                other.execute(END_WORKER_CONNECTIONS)

    done = run(shop, kind, handlers)
    assert (done.status, done.attempts) == ("success", 2)
    assert runs == [1] * 5 + [2] * 5
