"""Timeouts configured on the server must not affect the worker's own transactions."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from time import sleep
from typing import Any

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import Handlers, RunningJob

from .kinds import Kind, only
from .support import MINUTE, Log, Note, archived, eventually, notes, only_archived, put, rows

Limit = Callable[[str, str], None]


@pytest.fixture
def limit(shop: Engine) -> Iterator[Limit]:
    """Yield a function that sets a limit for all new connections to the database."""
    name = shop.url.database

    def execute(statement: str) -> None:
        with shop.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text(statement))
        shop.dispose()

    with shop.connect() as connection:
        release = connection.dialect.server_version_info

    def limit(setting: str, value: str) -> None:
        if setting == "transaction_timeout" and release < (17,):
            pytest.skip("needs PostgreSQL 17")
        execute(f"ALTER DATABASE {name} SET {setting} = '{value}'")

    yield limit
    execute(f"ALTER DATABASE {name} RESET ALL")


@pytest.mark.parametrize("setting", ["transaction_timeout", "idle_in_transaction_session_timeout"])
def test_a_job_may_exceed_a_transaction_timeout(
    shop: Engine, kind: Kind, limit: Limit, setting: str
) -> None:
    """A job that takes longer than a transaction timeout runs once and succeeds."""
    runs: list[int] = []
    handlers = Handlers()

    @handlers("write")
    def write(payload: Any, session: Session) -> None:
        runs.append(1)
        session.add(Note(text="before"))
        session.flush()
        sleep(1.0)
        session.add(Note(text="after"))

    put(shop, "write")
    limit(setting, "600ms")
    log = Log()
    kind.run_all(shop, handlers, log=log)
    assert (only_archived(shop).status, only_archived(shop).attempts, runs) == ("success", 1, [1])
    assert sorted(notes(shop)) == ["after", "before"]
    assert "polling-error" not in log.events()
    assert not rows(shop, RunningJob)


def test_an_idle_worker_keeps_its_connections(shop: Engine, kind: Kind, limit: Limit) -> None:
    """An ``idle_session_timeout`` does not close the connections of an idle worker."""
    limit("idle_session_timeout", "200ms")
    log = Log()
    ran: list[Any] = []
    with kind.worker(
        shop, lambda _, payload: ran.append(payload), polling_interval=MINUTE, log=log
    ):
        for n in range(2):
            sleep(0.7)
            shop.dispose()  # the producer's connection was idle, too
            put(shop, "job", n)
            eventually(lambda n=n: n in ran)
    assert {"listening-lost", "polling-error"}.isdisjoint(log.events())
    assert {job.attempts for job in archived(shop)} == {1}


@only(Kind(), Kind("psycopg"), Kind("asyncpg"), Kind(leased=True))
def test_a_slow_query_fails_the_attempt(shop: Engine, kind: Kind, limit: Limit) -> None:
    """A ``statement_timeout`` fails the attempt of a handler with a slow query; other jobs run."""
    handlers = Handlers()

    @handlers("slow", retry={"retries": 1})
    def slow(payload: Any, session: Session) -> None:
        session.execute(text("SELECT pg_sleep(5)"))

    @handlers("write")
    def write(payload: Any, session: Session) -> None:
        session.add(Note(text="written"))

    limit("statement_timeout", "300ms")
    put(shop, "slow")
    put(shop, "write")
    log = Log()
    kind.run_all(shop, handlers, log=log)
    ended = {job.job_type: (job.status, job.attempts) for job in archived(shop)}
    assert ended == {"slow": ("failure", 2), "write": ("success", 1)}
    assert "polling-error" not in log.events()
