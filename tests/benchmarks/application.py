"""The application that our worker runs: three handlers, and the model that one of them writes."""

from __future__ import annotations

from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqlalchemy_proletarian import Handlers

from . import marks


class Base(DeclarativeBase):
    """The application's own base."""


class Result(Base):
    """The row that a job of the "write" kind leaves behind."""

    __tablename__ = "bench_result"

    id: Mapped[int] = mapped_column(primary_key=True)
    job: Mapped[int]


handlers = Handlers()


@handlers("noop")
def noop(payload: dict[str, int]) -> None:
    """Do nothing."""
    marks.noop(payload["i"])


@handlers("stamp")
def stamp(payload: dict[str, int]) -> None:
    """Note when it starts."""
    marks.stamp(payload["i"])


@handlers("write")
def write(payload: dict[str, int], session: Session) -> None:
    """Write a row in the transaction in which the job completes."""
    session.add(Result(job=payload["i"]))
    marks.noop(payload["i"])
