"""A batch handler: one INSERT for many jobs, of which some fail."""

import os
from dataclasses import dataclass

from sqlalchemy import create_engine, func, insert, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqlalchemy_proletarian import (
    ArchivedJob,
    BatchFailed,
    Discard,
    Handlers,
    QueueWorker,
    migrate,
)

url = os.environ["DATABASE_URL"]
engine = create_engine(url)
handlers = Handlers()


class Base(DeclarativeBase):
    """The application's tables."""


class Entry(Base):
    """An entry of the search index."""

    __tablename__ = "entry"

    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str]


@dataclass
class Doc:
    """The payload of one job."""

    title: str


@handlers.batch("index", size=500, retry={"retries": 1})
def index(docs: list[Doc], session: Session) -> None:
    """Write an entry for each document that has a title."""
    titles = [{"title": doc.title} for doc in docs if doc.title]
    if titles:
        session.execute(insert(Entry), titles)
    untitled = {n: Discard("no title") for n, doc in enumerate(docs) if not doc.title}
    if untitled:
        raise BatchFailed(untitled)


def main() -> None:
    """Index 1,000 documents, one of which has no title."""
    migrate.upgrade(url)
    Base.metadata.create_all(engine)
    with Session(engine) as session, session.begin():
        for n in range(999):
            index.enqueue(session, Doc(f"document {n}"))
        index.enqueue(session, Doc(""))
    runs = QueueWorker(engine, handlers).drain()
    print(f"{runs} jobs ran")
    with Session(engine) as session:
        print(f"entries: {session.scalar(select(func.count(Entry.id)))}")
        for job in session.scalars(select(ArchivedJob).where(ArchivedJob.status == "failure")):
            print(f"failed: {job.payload}: {(job.error or '').splitlines()[-1]}")


if __name__ == "__main__":
    main()
