"""Job tables in another database than the business data: what commits together."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import URL, Engine, create_engine, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from sqlalchemy_proletarian import Base, Handlers, Job, enqueue
from sqlalchemy_proletarian.asyncio import AsyncQueueWorker
from sqlalchemy_proletarian.models import SCHEMA
from tests.faults.server import own_server

from .kinds import KINDS, Kind, only
from .support import archived, put, queued


class ShopBase(DeclarativeBase):
    """The base of the tables in the other database."""


class Order(ShopBase):
    """A row whose constraint is checked at the commit."""

    __tablename__ = "customer_order"

    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str]


def only_checked_at_commit(shop: Engine) -> None:
    """Create the table; a row with the text "refused" makes its transaction's commit fail."""
    ShopBase.metadata.create_all(shop)
    with shop.begin() as connection:
        connection.execute(
            text(
                "ALTER TABLE customer_order ADD CONSTRAINT twice UNIQUE (text)"
                " DEFERRABLE INITIALLY DEFERRED"
            )
        )
        connection.execute(text("INSERT INTO customer_order (text) VALUES ('refused')"))


def orders(shop: Engine) -> list[str]:
    with Session(shop) as session:
        return sorted(session.scalars(select(Order.text)))


@pytest.fixture
def shop(empty_database: URL) -> Iterator[Engine]:
    """Yield an engine on a database without job tables."""
    engine = create_engine(empty_database)
    only_checked_at_commit(engine)
    yield engine
    engine.dispose()


@only(*(kind for kind in KINDS if kind.driver is None))
def test_a_job_succeeds_only_after_the_commit_in_the_other_database(
    engine: Engine, shop: Engine, kind: Kind
) -> None:
    """If the other database rejects what a handler wrote, the job has failed."""
    handlers = Handlers()

    @handlers("order")
    def order(payload: Any, session: Session) -> None:
        session.add(Order(text=payload))

    for n in range(5):  # SQLAlchemy commits the databases in any order
        put(engine, "order", f"accepted {n}")
        put(engine, "order", "refused")
    kind.run_all(sessionmaker(binds={Order: shop}, bind=engine), handlers)
    ended = [(job.payload.startswith('"accepted'), job.status) for job in archived(engine)]
    assert Counter(ended) == {(True, "success"): 5, (False, "failure"): 5}
    assert orders(shop) == [*(f"accepted {n}" for n in range(5)), "refused"]


@pytest.mark.parametrize("lease", [None, timedelta(minutes=1)])
def test_the_same_in_an_event_loop(
    engine: Engine, shop: Engine, lease: timedelta | None, empty_database: URL
) -> None:
    handlers = Handlers()

    @handlers("order")
    async def order(payload: Any, session: AsyncSession) -> None:
        session.add(Order(text=payload))

    async def drain() -> None:
        jobs, others = (
            create_async_engine(found.url.set(drivername="postgresql+asyncpg"))
            for found in (engine, shop)
        )
        make = async_sessionmaker(binds={Order: others}, bind=jobs)
        await AsyncQueueWorker(make, handlers, lease=lease).drain()
        await jobs.dispose()
        await others.dispose()

    for n in range(5):
        put(engine, "order", f"accepted {n}")
        put(engine, "order", "refused")
    asyncio.run(drain())
    ended = [(job.payload.startswith('"accepted'), job.status) for job in archived(engine)]
    assert Counter(ended) == {(True, "success"): 5, (False, "failure"): 5}
    assert orders(shop) == [*(f"accepted {n}" for n in range(5)), "refused"]


@pytest.fixture(scope="module")
def two_databases() -> Iterator[tuple[Engine, Engine]]:
    """Yield engines for jobs and for business data, with prepared transactions."""
    with own_server(max_prepared_transactions="5") as server:
        jobs = create_engine(server.url())
        with jobs.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("CREATE DATABASE shop"))
        with jobs.begin() as connection:
            connection.execute(text(f"CREATE SCHEMA {SCHEMA}"))
            Base.metadata.create_all(connection)
        shop = create_engine(server.url(database="shop"))
        only_checked_at_commit(shop)
        yield jobs, shop
        jobs.dispose()
        shop.dispose()


def test_twophase_commits_jobs_and_business_data_together(
    two_databases: tuple[Engine, Engine],
) -> None:
    """With ``twophase=True`` both databases commit or neither does."""
    jobs, shop = two_databases
    make = sessionmaker(binds={Base: jobs, ShopBase: shop}, twophase=True)

    def order_and_enqueue(what: str) -> None:
        with make() as session, session.begin():
            session.add(Order(text=what))
            enqueue(session, "pack", what)

    order_and_enqueue("table")
    for _ in range(5):
        with pytest.raises(DBAPIError):
            order_and_enqueue("refused")
    assert [job.payload for job in queued(jobs)] == ['"table"']
    assert orders(shop) == ["refused", "table"]
    with jobs.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM pg_prepared_xacts")) == 0
    with Session(jobs) as session, session.begin():
        session.execute(Job.__table__.delete())
