"""Tests of a user's own models whose tables autogenerate creates."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL, create_engine
from sqlalchemy.orm import Session
from sqlalchemy.schema import CreateSchema

from sqlalchemy_proletarian import QueueWorker
from tests.integration.support import archived, succeed

from .conftest import DATABASES, Project, make_project

MODELS = """\
from sqlalchemy import BigInteger, Integer, MetaData
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy_proletarian import ArchivedJobMixin, JobMixin

NUMBER = BigInteger().with_variant(Integer, "sqlite")
metadata = MetaData(schema={schema!r})


class Base(DeclarativeBase):
    metadata = metadata


class CallJob(JobMixin, Base):
    __tablename__ = "call_job"
    job_id: Mapped[int] = mapped_column(NUMBER, primary_key=True)


class ArchivedCallJob(ArchivedJobMixin, Base):
    __tablename__ = "archived_call_job"
    job_id: Mapped[int] = mapped_column(NUMBER, primary_key=True, autoincrement=False)
"""


@pytest.fixture
def project(tmp_path: Path, empty: URL) -> Project:
    """A project on an empty database."""
    return make_project(tmp_path / "project", empty)


@pytest.mark.parametrize("database", DATABASES)
def test_tables_with_integer_ids_are_created_by_autogenerate(
    project: Project, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The generated revision needs no edits, and each job gets its own id."""
    (project.path / "models.py").write_text(MODELS.format(schema=None))
    project.succeed("revision", "-m", "calls", "--autogenerate")
    project.succeed("upgrade", "head")
    assert "No new upgrade operations" in project.succeed("check")
    monkeypatch.syspath_prepend(project.path)
    models = importlib.import_module("models")
    monkeypatch.delitem(sys.modules, "models")
    worker_models: Any = {"job_model": models.CallJob, "archived_job_model": models.ArchivedCallJob}
    engine = create_engine(project.url)
    for _ in range(2):
        with Session(engine) as session, session.begin():
            session.add(models.CallJob(job_type="call"))
        QueueWorker(engine, succeed, **worker_models).drain()
    assert len({job.job_id for job in archived(engine, models.ArchivedCallJob)}) == 2
    engine.dispose()


@pytest.mark.parametrize("database", ["postgresql"])
def test_tables_in_a_schema_need_include_schemas(project: Project, database: str) -> None:
    """Autogenerate finds mapped tables in a schema only with ``include_schemas=True``."""
    (project.path / "models.py").write_text(MODELS.format(schema="calls"))
    engine = create_engine(project.url)
    with engine.begin() as connection:
        connection.execute(CreateSchema("calls"))
    engine.dispose()
    attributes: Any = {"options": {"include_schemas": True}}
    project.succeed("revision", "-m", "calls", "--autogenerate", **attributes)
    project.succeed("upgrade", "head", **attributes)
    assert "No new upgrade operations" in project.succeed("check", **attributes)
    assert "New upgrade operations detected" in project.alembic("check").stdout
