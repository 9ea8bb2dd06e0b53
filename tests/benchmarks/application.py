"""The application that the library's workers run: its handlers and a model."""

from __future__ import annotations

import asyncio

from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqlalchemy_proletarian import Handlers, Job

from . import marks
from .contender import WAIT


class Base(DeclarativeBase):
    """The declarative base of the application."""


class Result(Base):
    """The row that a job of the kind "write" inserts."""

    __tablename__ = "bench_result"

    id: Mapped[int] = mapped_column(primary_key=True)
    job: Mapped[int]


class Plain(Base):
    """A row with the columns and the indexes of a job, which is no job."""

    __table__ = Job.__table__.to_metadata(  # type: ignore[attr-defined]
        Base.metadata, name="bench_plain", schema=None
    )


handlers = Handlers()
in_a_loop = Handlers()
"""The same handlers, and "wait", for a worker in an event loop."""


@handlers("noop")
def noop(payload: dict[str, int]) -> None:
    """Do nothing."""
    marks.noop(payload["i"])


@handlers("stamp")
def stamp(payload: dict[str, int]) -> None:
    """Record its start."""
    marks.stamp(payload["i"])


@handlers("write")
def write(payload: dict[str, int], session: Session) -> None:
    """Insert a row in the transaction in which the job completes."""
    session.add(Result(job=payload["i"]))
    marks.noop(payload["i"])


@in_a_loop("noop")
async def noop_in_a_loop(payload: dict[str, int]) -> None:
    """Do nothing."""
    marks.noop(payload["i"])


@in_a_loop("stamp")
async def stamp_in_a_loop(payload: dict[str, int]) -> None:
    """Record its start."""
    marks.stamp(payload["i"])


@in_a_loop("write")
async def write_in_a_loop(payload: dict[str, int], session: AsyncSession) -> None:
    """Insert a row in the transaction in which the job completes."""
    session.add(Result(job=payload["i"]))
    marks.noop(payload["i"])


@in_a_loop("wait")
async def wait_in_a_loop(payload: dict[str, int]) -> None:
    """Wait."""
    marks.noop(payload["i"])
    await asyncio.sleep(WAIT)
