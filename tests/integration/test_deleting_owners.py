"""What happens to jobs when the user deletes the object that they belong to."""

from __future__ import annotations

from threading import Event, Thread
from typing import Any

import pytest
from sqlalchemy import Engine, ForeignKey
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship
from sqlalchemy.orm.exc import StaleDataError

from sqlalchemy_proletarian import ArchivedJobMixin, JobMixin, enqueue

from .kinds import Kind, transactions
from .support import archived, eventually, queued, rows, succeed
from .test_custom_tables import tables
from .test_job_classes import waits_for_a_lock


class Owners(DeclarativeBase):
    pass


class Owner(Owners):
    """As the documentation recommends, SQLAlchemy leaves the jobs to the database."""

    __tablename__ = "job_owner"

    id: Mapped[int] = mapped_column(primary_key=True)
    jobs: Mapped[list[OwnedJob]] = relationship(back_populates="owner", passive_deletes="all")


class OwnedJob(JobMixin, Owners):
    __tablename__ = "owned_job"

    owner_id: Mapped[int | None] = mapped_column(
        ForeignKey("job_owner.id", ondelete="CASCADE"), index=True
    )
    owner: Mapped[Owner | None] = relationship(back_populates="jobs")


class OwnedArchive(ArchivedJobMixin, Owners):
    __tablename__ = "owned_archive"

    owner_id: Mapped[int | None]


OWNED: Any = {"job_model": OwnedJob, "archived_job_model": OwnedArchive}


def enqueue_owned(session: Session) -> Owner:
    owner = Owner()
    session.add(owner)
    enqueue(session, "mail", job_model=OwnedJob, owner=owner)
    session.commit()
    return owner


def test_an_owner_is_deleted_after_its_jobs_ran(engine: Engine, kind: Kind) -> None:
    """The owner's collection still contains a job that a worker has run since."""
    with tables(engine, Owners.metadata), Session(engine) as session:
        owner = enqueue_owned(session)
        assert len(owner.jobs) == 1
        session.expire_on_commit = False
        session.commit()
        assert kind.run_all(engine, succeed, **OWNED) == 1
        session.delete(owner)
        session.commit()
        assert rows(engine, Owner) == []
        assert len(archived(engine, OwnedArchive)) == 1


def test_a_queued_job_is_deleted_with_its_owner(engine: Engine) -> None:
    with tables(engine, Owners.metadata), Session(engine) as session:
        owner = enqueue_owned(session)
        assert len(owner.jobs) == 1
        session.delete(owner)
        session.commit()
        assert queued(engine, OwnedJob) == rows(engine, Owner) == []


@transactions
def test_deleting_an_owner_waits_for_a_running_job(engine: Engine, kind: Kind) -> None:
    """In transaction mode, the deletion waits for the job, and both take effect."""
    started, release = Event(), Event()
    raised: list[BaseException] = []

    def wait(job_type: str, payload: Any) -> None:
        started.set()
        assert release.wait(30)

    with tables(engine, Owners.metadata), Session(engine) as session:
        owner = enqueue_owned(session)
        assert len(owner.jobs) == 1

        def delete_owner() -> None:
            try:
                session.delete(owner)
                session.commit()
            except BaseException as error:
                raised.append(error)

        deleting = Thread(target=delete_owner)
        with kind.worker(engine, wait, **OWNED):
            try:
                assert started.wait(30)
                deleting.start()
                eventually(lambda: waits_for_a_lock(engine))
            finally:
                release.set()
            deleting.join(30)
            eventually(lambda: len(archived(engine, OwnedArchive)) == 1)
        assert raised == []
        assert rows(engine, Owner) == queued(engine, OwnedJob) == []


@pytest.mark.parametrize("passive", [False, True])
def test_other_values_of_passive_deletes_fail(engine: Engine, passive: bool) -> None:
    """SQLAlchemy updates the loaded jobs, and fails when a worker has archived one of them."""

    class Base(DeclarativeBase):
        pass

    class Parent(Base):
        __tablename__ = "parent"
        id: Mapped[int] = mapped_column(primary_key=True)
        jobs: Mapped[list[Any]] = relationship("ChildJob", passive_deletes=passive)

    class ChildJob(JobMixin, Base):
        __tablename__ = "child_job"
        parent_id: Mapped[int | None] = mapped_column(ForeignKey("parent.id", ondelete="CASCADE"))

    class ChildArchive(ArchivedJobMixin, Base):
        __tablename__ = "child_archive"

    models: Any = {"job_model": ChildJob, "archived_job_model": ChildArchive}
    with tables(engine, Base.metadata), Session(engine, expire_on_commit=False) as session:
        parent = Parent(jobs=[ChildJob(job_type="mail")])
        session.add(parent)
        session.commit()
        assert Kind().run_all(engine, succeed, **models) == 1
        session.delete(parent)
        with pytest.raises(StaleDataError):
            session.commit()
        session.rollback()
