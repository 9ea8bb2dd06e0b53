"""Custom job tables: names, schema, base, extra columns and several pairs of tables."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import pytest
from sqlalchemy import (
    Engine,
    ForeignKey,
    Identity,
    Index,
    MetaData,
    Sequence,
    create_engine,
    func,
    inspect,
    select,
    text,
)
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    mapped_column,
    relationship,
)

from sqlalchemy_proletarian import (
    ArchivedJob,
    ArchivedJobMixin,
    Handlers,
    Job,
    JobMixin,
    RunningJobMixin,
    enqueue,
    enqueue_many,
)

from .kinds import Kind
from .support import (
    NUMBER,
    ArchivedEmailJob,
    Customer,
    EmailJob,
    ManualClock,
    Name,
    archived,
    only_archived,
    only_queued,
    put,
    queued,
    succeed,
)

EMAIL: Any = {"job_model": EmailJob, "archived_job_model": ArchivedEmailJob}


@contextmanager
def tables(engine: Engine, metadata: MetaData, *schemas: str) -> Iterator[None]:
    """Create the tables of a MetaData, and drop them on exit."""
    with engine.begin() as connection:
        for schema in schemas:
            connection.execute(text(f'CREATE SCHEMA "{schema}"'))
        metadata.create_all(connection)
    try:
        yield
    finally:
        with engine.begin() as connection:
            metadata.drop_all(connection)
            for schema in schemas:
                connection.execute(text(f'DROP SCHEMA "{schema}" CASCADE'))


def test_extra_columns_are_copied_to_the_archive(shop: Engine, kind: Kind) -> None:
    """A column on both models is copied; a column only on the job model is dropped."""
    with Session(shop) as session, session.begin():
        customer = Customer(name="Ann")
        enqueue(
            session, "mail", job_model=EmailJob, customer=customer, campaign="spring", internal="x"
        )
    assert kind.run_all(shop, succeed, **EMAIL) == 1
    job = only_archived(shop, ArchivedEmailJob)
    with Session(shop) as session:
        assert job.customer_id == session.scalars(select(Customer.id)).one()
    assert (job.campaign, job.status, job.attempts) == ("spring", "success", 1)
    assert job.reviewed is False
    assert queued(shop, EmailJob) == []


def test_archive_columns_get_their_defaults(engine: Engine, kind: Kind) -> None:
    """Defaults of columns only on the archive may be a value, a function or a SQL expression."""

    class Base(DeclarativeBase):
        pass

    class PlainJob(JobMixin, Base):
        __tablename__ = "plain_job"

    class ArchivedPlainJob(ArchivedJobMixin, Base):
        __tablename__ = "archived_plain_job"
        reviewed: Mapped[bool] = mapped_column(default=False)
        label: Mapped[Name] = mapped_column(default=lambda: "new")
        shelf: Mapped[Name] = mapped_column(default=func.lower("TOP"))

    with tables(engine, Base.metadata):
        put(engine, "mail", job_model=PlainJob)
        models: Any = {"job_model": PlainJob, "archived_job_model": ArchivedPlainJob}
        assert kind.run_all(engine, succeed, **models) == 1
        job = only_archived(engine, ArchivedPlainJob)
        assert (job.reviewed, job.label, job.shelf) == (False, "new", "top")


def test_an_archive_column_may_use_a_sequence(engine: Engine, kind: Kind) -> None:
    class Base(DeclarativeBase):
        pass

    class CountedJob(JobMixin, Base):
        __tablename__ = "counted_job"

    class ArchivedCountedJob(ArchivedJobMixin, Base):
        __tablename__ = "archived_counted_job"
        number: Mapped[int] = mapped_column(Sequence("archive_number", start=7))

    with tables(engine, Base.metadata):
        put(engine, "mail", job_model=CountedJob)
        models: Any = {"job_model": CountedJob, "archived_job_model": ArchivedCountedJob}
        assert kind.run_all(engine, succeed, **models) == 1
        assert only_archived(engine, ArchivedCountedJob).number == 7


def test_jobs_in_custom_tables_are_retried_and_fail(
    shop: Engine, kind: Kind, clock: ManualClock
) -> None:
    def fail(job_type: str, payload: Any) -> None:
        raise ValueError("no")

    put(shop, "mail", job_model=EmailJob, campaign="spring", clock=clock)
    retry = {"retries": 1, "delays": [1000]}
    kind.run_all(shop, fail, retry_strategy=retry, clock=clock, **EMAIL)
    assert only_queued(shop, EmailJob).attempts == 1
    clock.now = only_queued(shop, EmailJob).process_at
    kind.run_all(shop, fail, retry_strategy=retry, clock=clock, **EMAIL)
    job = only_archived(shop, ArchivedEmailJob)
    assert (job.status, job.attempts, job.campaign) == ("failure", 2, "spring")


def test_a_worker_runs_only_the_jobs_of_its_own_tables(shop: Engine, kind: Kind) -> None:
    put(shop, "mail", job_model=EmailJob)
    put(shop, "mail")
    assert kind.run_all(shop, succeed) == 1
    assert archived(shop, ArchivedEmailJob) == []
    assert kind.run_all(shop, succeed, **EMAIL) == 1
    assert len(archived(shop, ArchivedJob)) == len(archived(shop, ArchivedEmailJob)) == 1


def test_a_handler_gets_its_job_model(shop: Engine, kind: Kind) -> None:
    """Extra columns and relationships can be read and changed."""
    handlers = Handlers()
    seen: list[Any] = []

    @handlers("mail")
    def mail(payload: Any, job: EmailJob, session: Session) -> None:
        assert job.customer is not None
        seen.append((job.campaign, job.customer.name))
        job.campaign = "autumn"
        job.customer.name = "Bea"

    with Session(shop) as session, session.begin():
        enqueue(
            session, "mail", job_model=EmailJob, customer=Customer(name="Ann"), campaign="spring"
        )
    kind.run_all(shop, handlers, **EMAIL)
    assert seen == [("spring", "Ann")]
    assert only_archived(shop, ArchivedEmailJob).campaign == "autumn"
    with Session(shop) as session:
        assert session.scalars(select(Customer.name)).one() == "Bea"


class Convention(DeclarativeBase):
    """A base with its own schema and naming convention."""

    metadata = MetaData(
        schema="my jobs",
        naming_convention={
            "ix": "my_ix_%(table_name)s_%(column_0_name)s",
            "pk": "my_pk_%(table_name)s",
            "fk": "my_fk_%(table_name)s_%(column_0_name)s",
            "uq": "my_uq_%(table_name)s_%(column_0_name)s",
        },
    )


class MailJob(JobMixin, Convention):
    __tablename__ = "Mail Job"
    __table_args__ = (Index(None, "job_type"), {"comment": "mails to send"})


class ArchivedMailJob(ArchivedJobMixin, Convention):
    __tablename__ = "Archived Mail"


class SmsJob(JobMixin, Convention):
    __tablename__ = "sms"
    __table_args__ = ({"schema": "other"},)


class ArchivedSmsJob(ArchivedJobMixin, Convention):
    __tablename__ = "archived_sms"
    __table_args__ = ({"schema": "other"},)


class Running(RunningJobMixin, Convention):
    __tablename__ = "running"


def test_names_schemas_and_naming_conventions_are_respected(engine: Engine, kind: Kind) -> None:
    """Two pairs in two schemas share a MetaData, and each table has its own indexes."""
    with tables(engine, Convention.metadata, "my jobs", "other"):
        inspector = inspect(engine)
        names = {index["name"] for index in inspector.get_indexes("Mail Job", "my jobs")}
        assert names == {
            "ix_Mail Job_claim",
            "ix_Mail Job_waits_for",
            "ux_Mail Job_unique_key",
            "my_ix_Mail Job_job_type",
        }
        assert {index["name"] for index in inspector.get_indexes("sms", "other")} == {
            "ix_sms_claim",
            "ix_sms_waits_for",
            "ux_sms_unique_key",
        }
        names = {index["name"] for index in inspector.get_indexes("Archived Mail", "my jobs")}
        assert names == {"ix_Archived Mail_failed", "ix_Archived Mail_finished_at"}
        assert inspector.get_pk_constraint("sms", "other")["name"] == "my_pk_sms"
        assert inspector.get_table_comment("Mail Job", "my jobs")["text"] == "mails to send"
        for job_model, archive in ((MailJob, ArchivedMailJob), (SmsJob, ArchivedSmsJob)):
            job_id = put(engine, "send", [1], job_model=job_model)
            with Session(engine) as session, session.begin():
                enqueue_many(session, [("send", n) for n in range(30)], job_model=job_model)
            models = {"job_model": job_model, "archived_job_model": archive}
            assert kind.run_all(engine, succeed, running_job_model=Running, **models) == 31
            assert job_id in {job.job_id for job in archived(engine, archive)}
            assert queued(engine, job_model) == []


def test_a_unique_key_is_unique_among_queued_jobs(engine: Engine, kind: Kind) -> None:
    """A queue holds one job per key; the archive may hold several."""
    put(engine, "mail", unique_key="a")
    put(engine, "mail", unique_key="a", queue="other")
    put(engine, "mail")
    put(engine, "mail")
    with pytest.raises(IntegrityError, match="ux_job_unique_key"):
        put(engine, "mail", unique_key="a")
    kind.run_all(engine, succeed)
    put(engine, "mail", unique_key="a")
    kind.run_all(engine, succeed)
    assert [job.unique_key for job in archived(engine)].count("a") == 2


def test_the_job_id_may_be_an_identity_column(engine: Engine, kind: Kind) -> None:
    class Base(DeclarativeBase):
        pass

    class NumberedJob(JobMixin, Base):
        __tablename__ = "numbered_job"
        job_id: Mapped[int] = mapped_column(NUMBER, Identity(), primary_key=True)

    class ArchivedNumberedJob(ArchivedJobMixin, Base):
        __tablename__ = "archived_numbered_job"
        job_id: Mapped[int] = mapped_column(NUMBER, primary_key=True, autoincrement=False)

    handlers = Handlers()
    seen: list[int] = []

    @handlers("mail")
    def mail(payload: Any, job: NumberedJob) -> None:
        seen.append(job.job_id)

    with tables(engine, Base.metadata):
        with Session(engine) as session, session.begin():
            job = enqueue(session, "mail", job_model=NumberedJob)
            assert job.job_id is None
            session.flush()
            first = job.job_id
            enqueue_many(session, [("mail", None)] * 2, job_model=NumberedJob)
        models: Any = {"job_model": NumberedJob, "archived_job_model": ArchivedNumberedJob}
        assert kind.run_all(engine, handlers, running_job_model=None, **models) == 3
        assert sorted(seen) == [first, first + 1, first + 2]
        assert {job.job_id for job in archived(engine, ArchivedNumberedJob)} == set(seen)


def test_the_columns_of_the_original_come_first() -> None:
    """Tables begin with the columns of the original Proletarian in the same order."""
    original = ["job_id", "queue", "job_type", "payload", "attempts", "enqueued_at", "process_at"]
    assert Job.__table__.columns.keys()[:7] == original
    assert ArchivedJob.__table__.columns.keys()[:9] == [*original, "status", "finished_at"]
    assert EmailJob.__table__.columns.keys()[:7] == original
    assert str(Job.__table__) == "proletarian.job"
    assert str(ArchivedJob.__table__) == "proletarian.archived_job"


def test_job_models_support_inheritance(engine: Engine, kind: Kind) -> None:
    """Jobs of subclasses, with single or joined table inheritance, run in the same queue."""

    class Base(DeclarativeBase):
        pass

    class BaseJob(JobMixin, Base):
        __tablename__ = "base_job"
        kind: Mapped[Name]
        __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "base"}  # noqa: RUF012

    class NightJob(BaseJob):
        __mapper_args__ = {"polymorphic_identity": "night"}  # noqa: RUF012

    class BigJob(BaseJob):
        __tablename__ = "big_job"
        job_id: Mapped[Any] = mapped_column(
            ForeignKey("base_job.job_id", ondelete="CASCADE"), primary_key=True
        )
        size: Mapped[int]
        __mapper_args__ = {"polymorphic_identity": "big"}  # noqa: RUF012

    class ArchivedBaseJob(ArchivedJobMixin, Base):
        __tablename__ = "archived_base_job"
        kind: Mapped[Name]

    class ArchivedBigJob(ArchivedBaseJob):
        __tablename__ = "archived_big_job"
        job_id: Mapped[Any] = mapped_column(
            ForeignKey("archived_base_job.job_id"), primary_key=True
        )

    assert inspect(ArchivedBigJob).local_table.columns.keys() == ["job_id"]
    with tables(engine, Base.metadata):
        put(engine, "a", job_model=BaseJob)
        put(engine, "b", job_model=NightJob)
        put(engine, "c", job_model=BigJob, size=3)
        models: Any = {"job_model": BaseJob, "archived_job_model": ArchivedBaseJob}
        assert kind.run_all(engine, succeed, running_job_model=None, **models) == 3
        kinds = {job.job_type: job.kind for job in archived(engine, ArchivedBaseJob)}
        assert kinds == {"a": "base", "b": "night", "c": "big"}


def test_job_models_reject_naive_datetimes() -> None:
    for model, column in ((Job, "process_at"), (EmailJob, "enqueued_at")):
        with pytest.raises(ValueError, match=f"{column} is a naive datetime"):
            model(**{column: datetime(2024, 1, 1)})  # noqa: DTZ001


def test_repr_shows_type_id_queue_and_attempts() -> None:
    job = Job(job_type="mail", queue="mails", attempts=2)
    assert repr(job) == "<Job 'mail' None in 'mails', attempts 2>"


def test_a_job_model_may_load_relationships_eagerly(engine: Engine, kind: Kind) -> None:
    """A handler can get such a job together with the session."""

    class Base(DeclarativeBase):
        pass

    class Owner(Base):
        __tablename__ = "owner"
        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[Name]
        jobs: Mapped[list[Any]] = relationship("OwnedJob", back_populates="owner")

    class OwnedJob(JobMixin, Base):
        __tablename__ = "owned_job"
        owner_id: Mapped[int] = mapped_column(ForeignKey("owner.id"))
        owner: Mapped[Any] = relationship(Owner, back_populates="jobs", lazy="selectin")

    class ArchivedOwnedJob(ArchivedJobMixin, Base):
        __tablename__ = "archived_owned_job"
        owner_id: Mapped[int]

    handlers = Handlers()
    seen: list[str] = []

    @handlers("mail")
    def mail(payload: Any, job: OwnedJob, session: Session) -> None:
        seen.append(job.owner.name)

    with tables(engine, Base.metadata):
        with Session(engine) as session, session.begin():
            enqueue(session, "mail", job_model=OwnedJob, owner=Owner(name="Ann"))
        kind.run_all(
            engine,
            handlers,
            job_model=OwnedJob,
            archived_job_model=ArchivedOwnedJob,
            running_job_model=None,
        )
        assert seen == ["Ann"]
        assert only_archived(engine, ArchivedOwnedJob).status == "success"


def test_schema_translate_map_selects_the_schema_of_the_jobs(
    url: Any, engine: Engine, kind: Kind
) -> None:
    """An engine with one schema per tenant reads and writes jobs in the tenant's schema."""
    tenant = create_engine(url).execution_options(schema_translate_map={"proletarian": "tenant"})
    with engine.begin() as connection:
        connection.execute(text("CREATE SCHEMA tenant"))
    try:
        with tenant.begin() as connection:
            Job.metadata.create_all(connection)
        put(tenant, "mail")
        assert kind.run_all(tenant, succeed) == 1
        assert only_archived(tenant).status == "success"
        assert archived(engine) == []
    finally:
        with engine.begin() as connection:
            connection.execute(text("DROP SCHEMA tenant CASCADE"))
        tenant.dispose()
