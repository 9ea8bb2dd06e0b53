"""Limits that the server puts on transactions and sessions: not on the worker's own."""

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
    """Return a function that sets a limit for all new connections to the database."""
    name = shop.url.database

    def execute(statement: str) -> None:
        with shop.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text(statement))
        shop.dispose()

    with shop.connect() as connection:
        release = connection.dialect.server_version_info

    def limit(setting: str, value: str) -> None:
        if setting == "transaction_timeout" and release < (17,):
            pytest.skip("PostgreSQL has this limit since 17")
        execute(f"ALTER DATABASE {name} SET {setting} = '{value}'")

    yield limit
    execute(f"ALTER DATABASE {name} RESET ALL")


@pytest.mark.parametrize("setting", ["transaction_timeout", "idle_in_transaction_session_timeout"])
def test_a_job_that_takes_longer(shop: Engine, kind: Kind, limit: Limit, setting: str) -> None:
    """A job that takes longer than a transaction may runs once, and succeeds."""
    runs: list[int] = []
    handlers = Handlers()

    @handlers("write")
    def write(payload: Any, session: Session) -> None:
        runs.append(1)
        session.add(Note(text="before"))
        session.flush()
        sleep(0.6)
        session.add(Note(text="after"))

    limit(setting, "300ms")
    put(shop, "write")
    log = Log()
    kind.run_all(shop, handlers, log=log)
    assert (only_archived(shop).status, only_archived(shop).attempts, runs) == ("success", 1, [1])
    assert sorted(notes(shop)) == ["after", "before"]
    assert "polling-error" not in log.events()
    assert not rows(shop, RunningJob)


def test_a_worker_that_is_idle(shop: Engine, kind: Kind, limit: Limit) -> None:
    """Its connections may be idle for as long as there is nothing to do."""
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
def test_a_query_that_takes_too_long(shop: Engine, kind: Kind, limit: Limit) -> None:
    """A ``statement_timeout`` ends a query of a handler, whose attempt has failed; others run."""
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
