"""Job tables on other kinds of base: dataclasses, integer ids and several pairs of tables."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Engine, ForeignKey, Identity, select
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    MappedAsDataclass,
    Session,
    mapped_column,
    relationship,
)

from sqlalchemy_proletarian import (
    ArchivedJob,
    ArchivedJobMixin,
    Handlers,
    JobMixin,
    RetryStrategy,
    RunningJobMixin,
    enqueue,
    enqueue_many,
    enqueue_unique,
    manage,
)

from .kinds import Kind
from .support import (
    NUMBER,
    ArchivedEmailJob,
    EmailJob,
    Name,
    archived,
    eventually,
    only_queued,
    put,
    queued,
    rows,
    succeed,
)
from .test_custom_tables import EMAIL, tables

# Dataclasses.


class Dataclasses(MappedAsDataclass, DeclarativeBase, kw_only=True):
    """A declarative base whose classes are dataclasses."""


class Owner(Dataclasses):
    __tablename__ = "dataclass_owner"

    id: Mapped[int] = mapped_column(init=False, primary_key=True)
    name: Mapped[Name]
    jobs: Mapped[list[CallJob]] = relationship(
        back_populates="owner", default_factory=list, repr=False
    )


class CallJob(JobMixin, Dataclasses):
    __tablename__ = "call_job"
    __mapper_args__ = {"polymorphic_on": "job_type"}  # noqa: RUF012 - SQLAlchemy's own spelling

    number: Mapped[Name]
    owner_id: Mapped[int | None] = mapped_column(
        ForeignKey("dataclass_owner.id"), init=False, default=None
    )
    owner: Mapped[Owner | None] = relationship(back_populates="jobs", default=None)


class CallBack(CallJob):
    __mapper_args__ = {"polymorphic_identity": "call-back"}  # noqa: RUF012

    reason: Mapped[Name | None] = mapped_column(default=None)


class ArchivedCallJob(ArchivedJobMixin, Dataclasses):
    __tablename__ = "archived_call_job"

    number: Mapped[Name]


class RunningCallJob(RunningJobMixin, Dataclasses):
    __tablename__ = "running_call_job"


CALLS: Any = {
    "job_model": CallJob,
    "archived_job_model": ArchivedCallJob,
    "running_job_model": RunningCallJob,
}


def test_jobs_may_be_dataclasses(engine: Engine, kind: Kind) -> None:
    """Every function that enqueues fills the library's columns with their defaults."""
    handlers = Handlers()
    seen: list[Any] = []

    @handlers(CallBack)
    def call_back(job: CallBack) -> None:
        seen.append((job.number, job.reason, job.owner.name if job.owner else None))

    with tables(engine, Dataclasses.metadata):
        with Session(engine) as session, session.begin():
            ann = Owner(name="Ann")
            session.add(CallBack(number="1", reason="added", owner=ann))
            enqueue(session, "call-back", job_model=CallBack, number="2", owner=ann)
            enqueue(session, CallBack(number="3"), priority=0)
            rows = [{"number": "4"}, {"number": "5"}]
            enqueue_many(session, rows, job_model=CallBack)
            unique: Any = {"unique_key": "a", "job_model": CallBack, "number": "6"}
            assert enqueue_unique(session, "call-back", **unique).created
            assert not enqueue_unique(session, "call-back", **unique).created
        assert {(job.queue, job.attempts) for job in queued(engine, CallBack)} == {("default", 0)}
        assert kind.run_all(engine, handlers, **CALLS) == 6
        assert sorted(seen, key=lambda entry: entry[0])[:2] == [
            ("1", "added", "Ann"),
            ("2", None, "Ann"),
        ]
        assert sorted(job.number for job in archived(engine, ArchivedCallJob)) == list("123456")


def test_a_dataclass_job_takes_columns_as_keywords() -> None:
    """Each column of the library is a keyword argument and has its default on a new object."""
    job = CallBack(number="1", queue="calls", priority=1, unique_key="a")
    assert (job.queue, job.priority, job.unique_key) == ("calls", 1, "a")
    job = CallBack(number="1")
    assert (job.queue, job.priority, job.attempts) == ("default", 5, 0)
    assert (job.job_type, job.unique_key) == ("call-back", None)


# Ids that the database generates.


class Numbers(DeclarativeBase):
    pass


class NumberedJob(JobMixin, Numbers):
    __tablename__ = "numbered_job"
    __mapper_args__ = {"polymorphic_on": "job_type"}  # noqa: RUF012

    job_id: Mapped[int] = mapped_column(NUMBER, Identity(), primary_key=True)


class Count(NumberedJob):
    __tablename__ = "numbered_count"
    __mapper_args__ = {"polymorphic_identity": "count"}  # noqa: RUF012

    job_id: Mapped[int] = mapped_column(
        ForeignKey("numbered_job.job_id", ondelete="CASCADE"), primary_key=True
    )
    up_to: Mapped[int]


class Ring(NumberedJob):
    __mapper_args__ = {"polymorphic_identity": "ring"}  # noqa: RUF012


class ArchivedNumberedJob(ArchivedJobMixin, Numbers):
    __tablename__ = "archived_numbered_job"

    job_id: Mapped[int] = mapped_column(NUMBER, primary_key=True, autoincrement=False)
    up_to: Mapped[int | None]


class RunningNumberedJob(RunningJobMixin, Numbers):
    __tablename__ = "running_numbered_job"

    job_id: Mapped[int] = mapped_column(NUMBER, primary_key=True, autoincrement=False)


NUMBERED: Any = {
    "job_model": NumberedJob,
    "archived_job_model": ArchivedNumberedJob,
    "running_job_model": RunningNumberedJob,
}


def test_job_ids_may_be_generated_by_the_database(engine: Engine, kind: Kind) -> None:
    """All operations on jobs work with integer ids, and so do running markers."""
    handlers = Handlers()
    marked: list[Any] = []
    counted: list[int] = []

    @handlers(Ring, retry=RetryStrategy(retries=1))
    def ring(job: Ring) -> None:
        if job.attempts == 1:
            marked.extend(row.job_id for row in rows(engine, RunningNumberedJob))
            raise ValueError("busy")

    @handlers(Count)
    def count(job: Count, session: Session) -> None:
        assert session.get(NumberedJob, job.job_id) is job
        counted.append(job.up_to)

    with tables(engine, Numbers.metadata):
        with Session(engine) as session, session.begin():
            job = enqueue(session, "ring", job_model=Ring)
            assert job.job_id is None
            session.flush()
            first = job.job_id
        assert kind.run_all(engine, handlers, **NUMBERED) == 2
        # Other databases have no markers.
        assert marked == [first] or engine.dialect.name != "postgresql"
        with Session(engine) as session, session.begin():
            session.add(Count(up_to=3))
            enqueue_many(session, [{"up_to": n} for n in (4, 5)], job_model=Count)
            unique: Any = {"unique_key": "a", "job_model": Ring}
            one = enqueue_unique(session, "ring", **unique)
            assert one.created
            assert not enqueue_unique(session, "ring", **unique).created
            models = {name: NUMBERED[name] for name in ("job_model", "archived_job_model")}
            assert manage.cancel(session, one.job.job_id, **models) == "cancelled"
        assert kind.run_all(engine, handlers, **NUMBERED) == 3
        assert sorted(counted) == [3, 4, 5]
        archived_jobs = archived(engine, ArchivedNumberedJob)
        assert len({job.job_id for job in archived_jobs}) == len(archived_jobs) == 5
        assert sorted(job.up_to for job in archived_jobs if job.job_type == "count") == [3, 4, 5]
        assert rows(engine, RunningNumberedJob) == []
        assert queued(engine, NumberedJob) == rows(engine, Count) == []


# Several pairs of tables.


def test_two_workers_serve_two_pairs_of_tables(shop: Engine, kind: Kind) -> None:
    """A handler enqueues into the other pair, and its commit wakes the other worker."""
    handlers = Handlers()

    @handlers("order")
    def order(payload: str, session: Session) -> None:
        enqueue(session, "mail", payload, job_model=EmailJob, campaign=payload)

    @handlers("mail")
    def mail(payload: str, session: Session, job: EmailJob) -> None:
        enqueue(session, "done", f"{payload} {job.campaign}")

    @handlers("done")
    def done(payload: str) -> None: ...

    with kind.worker(shop, handlers), kind.worker(shop, handlers, **EMAIL):
        for n in range(5):
            put(shop, "order", str(n))
        eventually(lambda: len(archived(shop)) == 10)
    payloads = [job.payload for job in archived(shop) if job.job_type == "done"]
    assert sorted(payloads) == [f'"{n} {n}"' for n in range(5)]
    assert len(archived(shop, ArchivedEmailJob)) == 5
    assert {job.status for job in archived(shop, ArchivedJob)} == {"success"}


def test_jobs_may_have_bidirectional_relationships(engine: Engine, kind: Kind) -> None:
    """The collection of an object contains its new job before either is flushed."""

    class Base(DeclarativeBase):
        pass

    class Customer(Base):
        __tablename__ = "billed_customer"
        id: Mapped[int] = mapped_column(primary_key=True)
        bills: Mapped[list[Any]] = relationship("BillJob", back_populates="customer")

    class BillJob(JobMixin, Base):
        __tablename__ = "bill_job"
        customer_id: Mapped[int] = mapped_column(ForeignKey("billed_customer.id"))
        customer: Mapped[Customer] = relationship(back_populates="bills")

    class ArchivedBillJob(ArchivedJobMixin, Base):
        __tablename__ = "archived_bill_job"
        customer_id: Mapped[int] = mapped_column(ForeignKey("billed_customer.id"))
        customer: Mapped[Customer] = relationship()

    models: Any = {"job_model": BillJob, "archived_job_model": ArchivedBillJob}
    with tables(engine, Base.metadata):
        with Session(engine) as session, session.begin():
            customer = Customer()
            job = enqueue(session, "bill", job_model=BillJob, customer=customer)
            assert customer.bills == [job]
            assert customer in session
        assert only_queued(engine, BillJob).customer_id == 1
        assert kind.run_all(engine, succeed, running_job_model=None, **models) == 1
        with Session(engine) as session:
            customer = session.scalars(select(Customer)).one()
            assert customer.bills == []
            assert session.scalars(select(ArchivedBillJob)).one().customer is customer


@pytest.mark.parametrize("model", [EmailJob, CallBack, NumberedJob])
def test_an_unknown_keyword_is_rejected_by_name(model: type[Any]) -> None:
    with pytest.raises(TypeError, match="colour"):
        model(colour="red")
