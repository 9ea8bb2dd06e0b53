"""The tables of ``proletarian bench``, in a schema of their own."""

from __future__ import annotations

from typing import Any

from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from ..models.mixins import ArchivedJobMixin, JobMixin, RunningJobMixin

SCHEMA = "proletarian_bench"


class Base(DeclarativeBase):
    """The declarative base of the benchmark's tables."""


class BenchJob(JobMixin, Base):
    """A queued job."""

    __tablename__ = "job"
    __table_args__: Any = {"schema": SCHEMA}  # noqa: RUF012


class ArchivedBenchJob(ArchivedJobMixin, Base):
    """A finished job."""

    __tablename__ = "archived_job"
    __table_args__: Any = {"schema": SCHEMA}  # noqa: RUF012


class RunningBenchJob(RunningJobMixin, Base):
    """The marker of a running job."""

    __tablename__ = "running"
    __table_args__: Any = {"schema": SCHEMA, "prefixes": ["UNLOGGED"]}  # noqa: RUF012


class BenchRow(Base):
    """A row that a job inserts with its session."""

    __tablename__ = "row"
    __table_args__: Any = {"schema": SCHEMA}  # noqa: RUF012

    id: Mapped[int] = mapped_column(primary_key=True)
    n: Mapped[int]
