"""500 jobs wait for a partner service at the same time, with a pool of five connections."""

import asyncio
import os
from datetime import timedelta
from math import ceil
from time import monotonic

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from sqlalchemy_proletarian import Handlers, migrate
from sqlalchemy_proletarian.asyncio import AsyncQueueWorker, enqueue_many

url = os.environ["DATABASE_URL"]
engine = create_async_engine(url, pool_size=5, max_overflow=0)
handlers = Handlers()


class Base(DeclarativeBase):
    """Your own declarative base."""


class Answer(Base):
    """The answer of the partner service."""

    __tablename__ = "answer"

    id: Mapped[int] = mapped_column(primary_key=True)
    question: Mapped[int]


@handlers("ask")
async def ask(question: int, session: AsyncSession) -> None:
    """Wait first and write afterwards: the session takes a connection when it is used."""
    await asyncio.sleep(1)  # a slow partner service
    session.add(Answer(question=question))  # commits when the job completes


async def main() -> None:
    """Enqueue the jobs, run them all, and count the answers."""
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    async with AsyncSession(engine) as session, session.begin():
        await enqueue_many(session, [("ask", number) for number in range(500)])

    # In lease mode, a job that waits needs no transaction, and so no connection.
    worker = AsyncQueueWorker(engine, handlers, concurrency=500, lease=timedelta(seconds=30))
    started = monotonic()
    await worker.drain()
    seconds = monotonic() - started

    async with AsyncSession(engine) as session:
        answers = await session.scalar(select(func.count()).select_from(Answer))
    print(f"{answers} jobs waited 1 second each and finished")
    print(f"together they took less than {ceil(seconds / 30) * 30} seconds")
    await engine.dispose()


if __name__ == "__main__":
    migrate.upgrade(url)
    asyncio.run(main())
