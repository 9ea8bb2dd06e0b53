"""Job tables on the bases of other libraries, and models that are rejected."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any
from uuid import UUID

import pytest
from advanced_alchemy.base import BigIntBase, DefaultBase, UUIDAuditBase, UUIDBase
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import Computed, Engine, ForeignKey, MetaData, String, Uuid, select
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    MappedAsDataclass,
    Session,
    column_property,
    mapped_column,
    registry,
    synonym,
)
from sqlmodel import Field, SQLModel

from sqlalchemy_proletarian import (
    ArchivedJobMixin,
    Handlers,
    JobMixin,
    QueueWorker,
    RunningJobMixin,
    enqueue,
    enqueue_many,
    enqueue_unique,
    manage,
)
from sqlalchemy_proletarian.errors import ModelError, SchemaMismatchError

from .kinds import Kind
from .support import Name, archived, only_archived, put, queued, rows, succeed
from .test_custom_tables import tables


def indexes(model: Any) -> list[str]:
    return sorted(str(index.name) for index in model.__table__.indexes)


# Flask-SQLAlchemy.


def test_job_classes_on_flask_sqlalchemy_models(engine: Engine, kind: Kind) -> None:
    """Single and joined table inheritance work as for any Flask-SQLAlchemy model."""

    class Models(DeclarativeBase):
        pass

    db = SQLAlchemy(model_class=Models)

    class FlaskJob(JobMixin, db.Model):  # type: ignore[name-defined,misc]
        __mapper_args__ = {"polymorphic_on": "job_type"}  # noqa: RUF012

    class Mail(FlaskJob):
        __mapper_args__ = {"polymorphic_identity": "mail"}  # noqa: RUF012
        address: Mapped[Name | None]

    class Call(FlaskJob):
        __mapper_args__ = {"polymorphic_identity": "call"}  # noqa: RUF012
        job_id: Mapped[UUID] = mapped_column(
            ForeignKey("flask_job.job_id", ondelete="CASCADE"), primary_key=True
        )
        number: Mapped[Name]

    class FlaskArchive(db.Model, ArchivedJobMixin):  # type: ignore[name-defined,misc]
        address: Mapped[Name | None]
        number: Mapped[Name | None]

    assert Mail.__table__ is FlaskJob.__table__
    assert Call.__table__.name == "call"
    assert indexes(FlaskJob) == [
        "ix_flask_job_claim",
        "ix_flask_job_waits_for",
        "ux_flask_job_unique_key",
    ]
    assert indexes(FlaskArchive) == ["ix_flask_archive_failed", "ix_flask_archive_finished_at"]
    handlers = Handlers()
    seen: list[str | None] = []
    handlers(Mail)(lambda job: seen.append(job.address))
    handlers(Call)(lambda job: seen.append(job.number))
    app = Flask(__name__)
    app.config["SQLALCHEMY_DATABASE_URI"] = engine.url
    db.init_app(app)
    with app.app_context(), ExitStack() as cleanup:
        db.create_all()
        cleanup.callback(db.engine.dispose)
        cleanup.callback(db.drop_all)
        cleanup.callback(db.session.remove)
        db.session.add(Mail(address="a"))
        enqueue(db.session, Call(number="1"))
        enqueue_many(db.session, [{"address": "b"}], job_model=Mail)
        enqueue_many(db.session, [{"number": "2"}], job_model=Call)
        db.session.commit()
        models: Any = {"job_model": FlaskJob, "archived_job_model": FlaskArchive}
        assert kind.run_all(engine, handlers, **models) == 4
        assert sorted(map(str, seen)) == ["1", "2", "a", "b"]
        assert len(db.session.scalars(select(FlaskArchive)).all()) == 4


# advanced-alchemy.


class AdvancedJob(JobMixin, UUIDAuditBase):
    __tablename__ = "advanced_job"

    id = None  # the primary key is job_id
    address: Mapped[str | None] = mapped_column(String(100))


class AdvancedArchive(ArchivedJobMixin, UUIDAuditBase):
    __tablename__ = "advanced_archive"

    id = None
    address: Mapped[str | None] = mapped_column(String(100))


class AdvancedRunning(RunningJobMixin, DefaultBase):
    __tablename__ = "advanced_running"


ADVANCED: Any = {
    "job_model": AdvancedJob,
    "archived_job_model": AdvancedArchive,
    "running_job_model": AdvancedRunning,
}


def test_job_tables_on_advanced_alchemy_bases(engine: Engine, kind: Kind) -> None:
    """The primary key of the base is removed with ``id = None``; its other columns are kept."""
    metadata = MetaData()
    for model in ADVANCED.values():
        model.__table__.to_metadata(metadata)
    with tables(engine, metadata):
        with Session(engine) as session, session.begin():
            enqueue(session, "mail", job_model=AdvancedJob, address="a")
            enqueue_many(
                session,
                [{"job_type": "mail", "address": name} for name in "bc"],
                job_model=AdvancedJob,
            )
            unique_job = enqueue_unique(session, "mail", unique_key="d", job_model=AdvancedJob)
            assert unique_job is not None
        assert kind.run_all(engine, succeed, **ADVANCED) == 4
        archived_jobs = archived(engine, AdvancedArchive)
        assert [job.address for job in archived_jobs] == ["a", "b", "c", None]
        assert all(job.created_at for job in archived_jobs)


@pytest.mark.parametrize("base", [UUIDBase, BigIntBase])
@pytest.mark.parametrize("mixin", [JobMixin, ArchivedJobMixin, RunningJobMixin])
def test_a_base_with_its_own_primary_key_is_rejected(base: type[Any], mixin: type[Any]) -> None:
    """The error is raised at mapping, and says how to remove the key."""
    name = f"refused_{base.__name__}_{mixin.__name__}"
    with pytest.raises(ModelError, match=r"must be job_id.* with `id = None`"):
        type(name, (mixin, base), {"__tablename__": name})
    base.metadata.remove(base.metadata.tables[name])


# SQLModel.


class Sqlmodel(DeclarativeBase):
    """A base that puts job tables in the MetaData of SQLModel."""

    metadata = SQLModel.metadata


class SqlmodelJob(JobMixin, Sqlmodel):
    __tablename__ = "sqlmodel_job"

    hero_id: Mapped[int | None] = mapped_column(ForeignKey("sqlmodel_hero.id"))


class SqlmodelArchive(ArchivedJobMixin, Sqlmodel):
    __tablename__ = "sqlmodel_archive"

    hero_id: Mapped[int | None]


class Hero(SQLModel, table=True):
    __tablename__ = "sqlmodel_hero"

    id: int | None = Field(default=None, primary_key=True)
    name: str
    saved: bool = False


def test_job_tables_share_the_metadata_of_sqlmodel(engine: Engine, kind: Kind) -> None:
    """Foreign keys of job tables may refer to tables of SQLModel."""
    metadata = MetaData()
    for name in ("sqlmodel_hero", "sqlmodel_job", "sqlmodel_archive"):
        SQLModel.metadata.tables[name].to_metadata(metadata)
    handlers = Handlers()

    @handlers("save")
    def save(payload: Any, job: SqlmodelJob, session: Session) -> None:
        session.get_one(Hero, job.hero_id).saved = True

    with tables(engine, metadata):
        with Session(engine) as session, session.begin():
            hero = Hero(name="Ann")
            session.add(hero)
            session.flush()
            enqueue(session, "save", job_model=SqlmodelJob, hero_id=hero.id)
        models: Any = {"job_model": SqlmodelJob, "archived_job_model": SqlmodelArchive}
        assert kind.run_all(engine, handlers, **models) == 1
        assert only_archived(engine, SqlmodelArchive).hero_id == 1
        assert [hero.saved for hero in rows(engine, Hero)] == [True]


@pytest.mark.parametrize("mixin", [JobMixin, ArchivedJobMixin, RunningJobMixin])
@pytest.mark.parametrize("first", [True, False])
def test_a_sqlmodel_class_cannot_use_the_mixins(mixin: type[Any], first: bool) -> None:
    """The error says which base to use instead."""
    bases: Any = (mixin, SQLModel) if first else (SQLModel, mixin)
    with pytest.raises(ModelError, match=r"metadata = SQLModel\.metadata"):
        type(SQLModel)("No", bases, {"__module__": __name__, "__qualname__": "No"}, table=True)


# Ways to declare models.


def test_the_mixin_may_be_the_second_base(engine: Engine, kind: Kind) -> None:
    """Abstract classes in between make no difference."""

    class Base(DeclarativeBase):
        pass

    class Tenant(Base):
        __abstract__ = True
        tenant: Mapped[Name | None]

    class SecondJob(Tenant, JobMixin):
        __tablename__ = "second_job"

    class SecondArchive(Tenant, ArchivedJobMixin):
        __tablename__ = "second_archive"

    class SecondRunning(Base, RunningJobMixin):
        __tablename__ = "second_running"

    assert indexes(SecondJob) == [
        "ix_second_job_claim",
        "ix_second_job_waits_for",
        "ux_second_job_unique_key",
    ]
    models: Any = {
        "job_model": SecondJob,
        "archived_job_model": SecondArchive,
        "running_job_model": SecondRunning,
    }
    with tables(engine, Base.metadata):
        with Session(engine) as session, session.begin():
            session.add(SecondJob(job_type="mail", tenant="a"))
        assert kind.run_all(engine, succeed, **models) == 1
        assert only_archived(engine, SecondArchive).tenant == "a"


def test_the_mixin_may_follow_a_dataclass_base() -> None:
    class Base(MappedAsDataclass, DeclarativeBase, kw_only=True):
        pass

    class DataclassJob(Base, JobMixin):
        __tablename__ = "dataclass_job"

    assert DataclassJob(job_type="mail").queue == "default"
    assert len(indexes(DataclassJob)) == 3


def test_a_class_mapped_by_a_decorator_has_the_indexes() -> None:
    mappers = registry()

    @mappers.mapped
    class DecoratedJob(JobMixin):
        __tablename__ = "decorated_job"

    assert len(indexes(DecoratedJob)) == 3


def test_all_kinds_of_columns_are_supported(engine: Engine, kind: Kind) -> None:
    """Computed columns, renamed columns, synonyms, column properties and version ids all work."""

    class Base(DeclarativeBase):
        pass

    class SortJob(JobMixin, Base):
        __tablename__ = "Sort Job"
        address: Mapped[Name] = mapped_column("mail_address")
        length: Mapped[int] = mapped_column(Computed("length(mail_address)", persisted=True))
        same: Mapped[int] = mapped_column(Computed("2 * length(mail_address)", persisted=True))
        version: Mapped[int] = mapped_column()
        mailbox: Mapped[str] = synonym("address")
        __mapper_args__ = {"version_id_col": version}  # noqa: RUF012

    SortJob.twice = column_property(SortJob.__table__.c.length * 2)  # type: ignore[attr-defined]

    class SortArchive(ArchivedJobMixin, Base):
        __tablename__ = "Archived Sort Job"
        address: Mapped[Name] = mapped_column("mail_address")
        length: Mapped[int] = mapped_column(Computed("length(mail_address)", persisted=True))
        same: Mapped[int]
        version: Mapped[int]

    handlers = Handlers()

    @handlers("mail")
    def mail(payload: Any, job: SortJob, session: Session) -> None:
        job.address += "!"
        session.flush()

    models: Any = {"job_model": SortJob, "archived_job_model": SortArchive}
    with tables(engine, Base.metadata):
        with Session(engine) as session, session.begin():
            enqueue(session, "mail", job_model=SortJob, address="a")
            row = {"job_type": "mail", "address": "bb"}
            assert enqueue_many(session, [row], job_model=SortJob) == 1
            unique: Any = {"job_model": SortJob, "address": "ccc", "unique_key": "c"}
            assert enqueue_unique(session, "mail", **unique).created
            cancelled = enqueue(session, "mail", job_model=SortJob, address="dddd")
            session.flush()
            assert manage.cancel(session, cancelled.job_id, **models) == "cancelled"
        assert kind.run_all(engine, handlers, **models) == 3
        archived_jobs = {
            job.address: (job.length, job.same) for job in archived(engine, SortArchive)
        }
        assert archived_jobs == {"a!": (2, 4), "bb!": (3, 6), "ccc!": (4, 8), "dddd": (4, 8)}
        assert queued(engine, SortJob) == []


@pytest.mark.parametrize("mixin", [JobMixin, ArchivedJobMixin, RunningJobMixin])
def test_a_library_column_with_another_name_is_rejected(mixin: type[Any]) -> None:
    """Every worker relies on the names of these columns."""

    class Base(DeclarativeBase):
        pass

    namespace = {
        "__tablename__": "renamed",
        "__annotations__": {"job_id": Mapped[UUID]},
        "job_id": mapped_column("id", Uuid, primary_key=True),
    }
    with pytest.raises(ModelError, match=r"renamed\.job_id must be called job_id.*not id"):
        type("renamed", (mixin, Base), namespace)


def test_a_model_without_a_library_column_is_rejected() -> None:
    class Base(DeclarativeBase):
        pass

    with pytest.raises(ModelError, match="without has no column priority"):
        type("without", (JobMixin, Base), {"__tablename__": "without", "priority": None})


# Foreign keys to a job.


@pytest.mark.parametrize(
    ("ondelete", "optional", "message"),
    [
        ("CASCADE", False, None),
        ("SET NULL", True, None),
        (None, True, r'receipt\.job_id refers to referred_job.*ondelete="CASCADE"'),
        ("RESTRICT", True, "ondelete"),
        ("SET NULL", False, "is NOT NULL"),
    ],
)
def test_a_foreign_key_to_a_job_must_allow_its_deletion(
    engine: Engine, ondelete: str | None, optional: bool, message: str | None
) -> None:
    """A worker checks the foreign keys of the models when it is constructed."""

    class Base(DeclarativeBase):
        pass

    class ReferredJob(JobMixin, Base):
        __tablename__ = "referred_job"

    class ReferredArchive(ArchivedJobMixin, Base):
        __tablename__ = "referred_archive"

    class Receipt(Base):
        __tablename__ = "receipt"
        id: Mapped[int] = mapped_column(primary_key=True)
        job_id: Mapped[UUID | None] = mapped_column(
            ForeignKey("referred_job.job_id", ondelete=ondelete), nullable=optional
        )

    models: Any = {"job_model": ReferredJob, "archived_job_model": ReferredArchive}
    if message is not None:
        with pytest.raises(ModelError, match=message):
            QueueWorker(engine, succeed, **models)
        return
    with tables(engine, Base.metadata):
        job_id = put(engine, "mail", job_model=ReferredJob)
        with Session(engine) as session, session.begin():
            session.add(Receipt(job_id=job_id))
        assert QueueWorker(engine, succeed, **models).drain() == 1
        job_ids = [receipt.job_id for receipt in rows(engine, Receipt)]
        assert job_ids == ([None] if optional else [])


@pytest.mark.parametrize("mixin", [ArchivedJobMixin, RunningJobMixin])
def test_archive_and_running_models_cannot_refer_to_the_job(
    engine: Engine, mixin: type[Any]
) -> None:
    """Their rows outlive the job."""

    class Base(DeclarativeBase):
        pass

    class LinkedJob(JobMixin, Base):
        __tablename__ = "linked_job"

    def make_model(model_mixin: type[Any], name: str) -> Any:
        namespace: dict[str, Any] = {"__tablename__": name}
        if model_mixin is mixin:
            key = ForeignKey("linked_job.job_id", ondelete="CASCADE")
            namespace["job_id"] = mapped_column(Uuid, key, primary_key=True)
            namespace["__annotations__"] = {"job_id": Mapped[UUID]}
        return type(name, (model_mixin, Base), namespace)

    models: Any = {
        "job_model": LinkedJob,
        "archived_job_model": make_model(ArchivedJobMixin, "linked_archive"),
        "running_job_model": make_model(RunningJobMixin, "linked_running"),
    }
    with pytest.raises(ModelError, match="cannot be a foreign key to linked_job"):
        QueueWorker(engine, succeed, **models)


def test_an_archive_column_without_a_value_is_rejected(engine: Engine) -> None:
    """A worker rejects a NOT NULL column that gets no value before it runs any job."""

    class Base(DeclarativeBase):
        pass

    class BareJob(JobMixin, Base):
        __tablename__ = "bare_job"

    class BareArchive(ArchivedJobMixin, Base):
        __tablename__ = "bare_archive"
        reviewer: Mapped[Name]

    with pytest.raises(ModelError, match=r"column reviewer of bare_archive.*make it nullable"):
        QueueWorker(engine, succeed, job_model=BareJob, archived_job_model=BareArchive)


def test_a_foreign_key_in_the_database_is_checked_at_startup(engine: Engine, kind: Kind) -> None:
    """A starting worker also finds foreign keys of tables in another MetaData."""
    key = 'job_id uuid CONSTRAINT "to job" REFERENCES proletarian.job'
    with ExitStack() as cleanup, engine.connect() as connection:
        for name, ondelete in (("receipt", ""), ("copy", "ON DELETE CASCADE")):
            connection.exec_driver_sql(f'CREATE TABLE "{name} of job" ({key} {ondelete})')
            cleanup.callback(drop, engine, f"{name} of job")
        connection.commit()
        with pytest.raises(SchemaMismatchError, match=r'to job of "receipt of job" refers to'):
            kind.run_all(engine, succeed)
        drop(engine, "receipt of job")
        put(engine, "mail")
        assert kind.run_all(engine, succeed) == 1


def drop(engine: Engine, table: str) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql(f'DROP TABLE IF EXISTS "{table}"')
