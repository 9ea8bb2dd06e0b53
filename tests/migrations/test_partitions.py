"""Migrations of an archive that is partitioned by month."""

from __future__ import annotations

import importlib
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL, Engine, create_engine, inspect, text

from sqlalchemy_proletarian import ArchivedJob, manage, migrations
from sqlalchemy_proletarian.migrate import check, sql, upgrade
from tests.acceptance.cli_runs import fails, printed_json, succeeds

from .conftest import Project, make_project
from .test_versions import operations

MODELS = """\
from sqlalchemy import MetaData
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy_proletarian import ArchivedJobMixin, JobMixin

metadata = MetaData()


class Base(DeclarativeBase):
    metadata = metadata


class CallJob(JobMixin, Base):
    __tablename__ = "call_job"


class ArchivedCallJob(ArchivedJobMixin, Base):
    __tablename__ = "archived_call_job"
    __table_args__ = {"postgresql_partition_by": "RANGE (finished_at)"}
"""


@pytest.fixture
def project(tmp_path: Path, empty_database: URL) -> Project:
    """A project on an empty PostgreSQL database."""
    return make_project(tmp_path / "project", empty_database)


def test_a_mapped_archive_is_created_by_autogenerate(
    project: Project, empty_engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The revision needs a line for the partitions, and autogenerate a filter that hides them."""
    (project.path / "models.py").write_text(MODELS)
    project.succeed("revision", "-m", "calls", "--autogenerate")
    (revision,) = project.versions.glob("*_calls.py")
    source = revision.read_text()
    assert "postgresql_partition_by='RANGE (finished_at)'" in source
    line = "    migrations.create_partitions('archived_call_job', schema=None)\n\n\ndef downgrade"
    source = source.replace("\n\ndef downgrade", line, 1)
    revision.write_text("from sqlalchemy_proletarian import migrations\n" + source)
    project.succeed("upgrade", "head")
    monkeypatch.syspath_prepend(project.path)
    models = importlib.import_module("models")
    monkeypatch.delitem(sys.modules, "models")
    options = {"include_name": migrations.without_partitions(models.metadata)}
    assert "No new upgrade operations" in project.succeed("check", options=options)
    assert "archived_call_job_default" in project.alembic("check").stdout
    assert manage.make_partitions(empty_engine, archived_job_model=models.ArchivedCallJob) == []
    project.succeed("downgrade", "base")
    assert inspect(empty_engine).get_table_names() == ["alembic_version"]


def test_the_filter_of_other_tables_hides_the_partitions(project: Project) -> None:
    """As it hides the archive."""
    project.revision('schema="mail", table="mail_job", partition_archive="month"')
    project.succeed("upgrade", "head")
    options = {"include_schemas": True}
    hiding = migrations.include_name_for(table="mail_job", schema="mail", partition_archive="month")
    hidden = project.succeed("check", options=options | {"include_name": hiding})
    assert "No new upgrade operations" in hidden
    assert "archived_mail_job_default" in project.alembic("check", options=options).stdout
    project.succeed("downgrade", "base")


@pytest.mark.parametrize("table", ["j" * 50, 'Od"d % :Mail'])
def test_unusual_names(empty_engine: Engine, table: str) -> None:
    """The names of partitions are shortened, and quoted."""
    with operations(empty_engine) as connection:
        migrations.upgrade(1, table=table, schema=None, partition_archive="month")
        found = inspect(connection).get_table_names()
        assert len([name for name in found if name.startswith("archived_")]) == 6
        migrations.downgrade(0, table=table, schema=None, partition_archive="month")
        assert inspect(connection).get_table_names() == []


def test_other_databases_and_other_values() -> None:
    """An error says what is possible."""
    engine = create_engine("sqlite://")
    with operations(engine):
        with pytest.raises(NotImplementedError, match="for PostgreSQL only, not for sqlite"):
            migrations.upgrade(1, partition_archive="month")
        with pytest.raises(ValueError, match="must be 'month' or None, not 'week'"):
            migrations.upgrade(1, partition_archive="week")
    assert inspect(engine).get_table_names() == []
    engine.dispose()


def test_the_commands(empty_database: URL, empty_engine: Engine) -> None:
    """``migrate upgrade``, ``migrate sql`` and ``partitions``."""
    month = "--partition-archive", "month"
    assert "PARTITION BY RANGE (finished_at)" in succeeds("migrate", "sql", *month)
    assert "archived_job_default" in sql(partition_archive="month")
    succeeds("migrate", "upgrade", *month, url=empty_database)
    assert check(empty_database).differences == ()
    assert succeeds("partitions", url=empty_database).strip() == "No partition was missing."
    made = printed_json("partitions", "--months", "5", url=empty_database)
    assert len(made["made"]) == 2
    with empty_engine.begin() as connection:
        connection.execute(text("DROP TABLE proletarian.archived_job"))
    assert "is not partitioned by month" in fails(1, "partitions", url=empty_database)


CONVERT = """
ALTER TABLE proletarian.archived_job RENAME TO archived_job_old;
ALTER INDEX proletarian.ix_archived_job_finished_at RENAME TO ix_archived_job_old_finished_at;
ALTER INDEX proletarian.ix_archived_job_failed RENAME TO ix_archived_job_old_failed;
ALTER TABLE proletarian.archived_job_old DROP CONSTRAINT archived_job_pkey;
ALTER TABLE proletarian.archived_job_old
    ADD CONSTRAINT archived_job_old_pkey PRIMARY KEY USING INDEX archived_job_old_key;
CREATE TABLE proletarian.archived_job (
    LIKE proletarian.archived_job_old INCLUDING DEFAULTS,
    PRIMARY KEY (job_id, finished_at)
) PARTITION BY RANGE (finished_at);
CREATE INDEX ix_archived_job_finished_at ON proletarian.archived_job (finished_at);
CREATE INDEX ix_archived_job_failed ON proletarian.archived_job (status, finished_at)
    WHERE status = 'failure';
CREATE TABLE proletarian.archived_job_default PARTITION OF proletarian.archived_job DEFAULT;
ALTER TABLE proletarian.archived_job
    ATTACH PARTITION proletarian.archived_job_old FOR VALUES FROM (MINVALUE) TO ('{month}');
"""
PREPARE = """
CREATE UNIQUE INDEX CONCURRENTLY archived_job_old_key
    ON proletarian.archived_job (job_id, finished_at);
ALTER TABLE proletarian.archived_job
    ADD CONSTRAINT archived_job_old CHECK (finished_at < '{month}') NOT VALID;
ALTER TABLE proletarian.archived_job VALIDATE CONSTRAINT archived_job_old;
"""
"""The statements of the documentation, with the first day of the month after next."""


def test_an_archive_is_converted(empty_database: URL, empty_engine: Engine) -> None:
    """By the statements that the documentation lists: the old table is the first partition."""
    upgrade(empty_database)
    next_month = datetime.now(UTC).replace(day=1) + timedelta(days=32)
    month = f"{next_month:%Y-%m}-01 00:00+00"
    page = Path(__file__).parents[2] / "docs" / "scaling" / "partitions.md"
    for each in (PREPARE + CONVERT).format(month="2027-01-01 00:00+00").strip().split(";\n"):
        assert each.strip() in page.read_text()
    values = "'x', 'x', 'null', 1, now(), now(), 'success', now() - interval '1 day'"
    with empty_engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(
            text(
                "INSERT INTO proletarian.archived_job (job_id, queue, job_type, payload, attempts,"
                f" enqueued_at, process_at, status, finished_at) SELECT uuidv7(), {values}"
                " FROM generate_series(1, 9)"
            )
        )
        for each in PREPARE.format(month=month).strip().split(";\n"):
            connection.exec_driver_sql(each)
    with empty_engine.begin() as connection:
        connection.exec_driver_sql(CONVERT.format(month=month))
    assert check(empty_database).differences == ()
    indexes = inspect(empty_engine).get_indexes("archived_job_old", "proletarian")
    assert len(indexes) == 2, "those of the old table serve as those of the partition"
    made = manage.make_partitions(empty_engine, archived_job_model=ArchivedJob)
    assert len(made) == 3
    now = datetime.now(UTC) + timedelta(days=70)
    assert manage.prune(empty_engine, older_than=timedelta(0), clock=lambda: now) == 9
    assert not [n for n in inspect(empty_engine).get_table_names("proletarian") if "old" in n]


def test_the_types_of_the_filters() -> None:
    """A filter of no archive hides nothing."""
    hide: Any = migrations.without_partitions()
    assert hide("archived_job_2026_01", "table", {"schema_name": None})
    assert hide("archived_job_2026_01", "column", {"schema_name": None})
