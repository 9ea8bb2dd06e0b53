"""Tests of the checks that mapped job classes, handlers and workers fit together."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import BigInteger, ForeignKey, Identity, create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqlalchemy_proletarian import (
    ArchivedJob,
    ArchivedJobMixin,
    HandlerError,
    Handlers,
    Job,
    JobMixin,
    ModelError,
    QueueWorker,
    RunningJob,
    RunningJobMixin,
    process_next_job,
)


class Base(DeclarativeBase):
    pass


class Queued(JobMixin, Base):
    __tablename__ = "queued"
    __mapper_args__ = {"polymorphic_on": "job_type"}  # noqa: RUF012 - SQLAlchemy's API


class Mail(Queued):
    __mapper_args__ = {"polymorphic_identity": "mail"}  # noqa: RUF012


class Archive(ArchivedJobMixin, Base):
    __tablename__ = "archive"


class Plain(JobMixin, Base):
    __tablename__ = "plain"


class Numbered(JobMixin, Base):
    __tablename__ = "numbered"
    job_id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)


class NumberedArchive(ArchivedJobMixin, Base):
    __tablename__ = "numbered_archive"
    job_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)


class NumberedRunning(RunningJobMixin, Base):
    __tablename__ = "numbered_running"
    job_id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)


class NotMapped(JobMixin):
    pass


@pytest.mark.parametrize("job_class", [Queued, Plain, Job, NotMapped, Base, int])
def test_a_class_without_a_single_job_type_is_rejected(job_class: Any) -> None:
    """A handler can only be registered for a mapped class of exactly one job type."""
    reason = f"{job_class.__name__} is not the class of one job type: such a class is mapped"
    with pytest.raises(HandlerError, match=reason):
        Handlers()(job_class)
    with pytest.raises(HandlerError, match=reason):
        Handlers().retry_strategy(job_class)


def test_the_first_parameter_of_a_class_handler_is_the_job() -> None:
    """Its annotation is the class, one of its base classes, or missing."""
    handlers = Handlers()
    for annotation in (Mail, Queued, JobMixin, Any, None):

        def handle(job, session):
            pass

        handle.__annotations__ = {"session": Session}
        if annotation is not None:
            handle.__annotations__["job"] = annotation
        handler: Any = Handlers()(Mail)(handle)
        assert handler.needs_job and handler.needs_session
        assert (handler.job_type, handler.job_class) == ("mail", Mail)
    for wrong in (Plain, dict, Session):
        handle.__annotations__["job"] = wrong
        with pytest.raises(HandlerError, match="the first parameter is the Mail, but 'job' is"):
            handlers(Mail)(handle)
    with pytest.raises(HandlerError, match="needs a first positional parameter for the Mail"):
        handlers(Mail)(lambda: None)  # type: ignore[arg-type]


def test_a_job_class_as_payload_annotation_is_rejected() -> None:
    """The message says how to register a handler for the class."""
    with pytest.raises(HandlerError, match=r"for a job class, register it with @handlers\(Mail\)"):

        @Handlers()("mail")
        def handle(job: Mail) -> None: ...


@pytest.mark.parametrize("options", [{"queue": "a"}, {"priority": 1}, {"serializer": object()}])
def test_options_of_enqueue_are_rejected_for_a_class(options: dict[str, Any]) -> None:
    """Only ``handler.enqueue`` applies these options, and a job class does not use it."""
    with pytest.raises(HandlerError, match="Mail declares its queue and priority itself"):
        Handlers()(Mail, **options)


def test_a_class_and_a_string_of_one_type_cannot_both_have_a_handler() -> None:
    handlers = Handlers()
    handlers("mail")(lambda payload: None)
    with pytest.raises(HandlerError, match="'mail' already has a handler"):
        handlers(Mail)(lambda job: None)


def test_a_class_handler_can_be_called_like_its_function() -> None:
    """A test of the handler can call it with an object."""

    @Handlers()(Mail)
    def handle(job: Mail) -> str:
        return job.job_type

    assert handle(Mail()) == "mail"


def create_worker(handlers: Any = print, **models: Any) -> None:
    QueueWorker(create_engine("postgresql+psycopg://"), handlers, **models)


def test_a_worker_for_a_subclass_is_rejected() -> None:
    """A worker processes the whole table; the message names the base class to use."""
    models: Any = {"job_model": Mail, "archived_job_model": Archive}
    with pytest.raises(ModelError, match=r"so pass their base class, job_model=Queued"):
        create_worker(**models)
    with Session() as session, pytest.raises(ModelError, match="job_model=Queued"):
        process_next_job(session, print, **models)


def test_a_worker_without_a_handler_for_its_table_is_rejected() -> None:
    """A worker is rejected if all its handlers are for job classes of another table."""
    handlers = Handlers()
    handlers(Mail)(lambda job: None)
    reason = "jobs of Job: the handler of Mail needs a worker with job_model=Queued"
    with pytest.raises(HandlerError, match=reason):
        create_worker(handlers)
    with Session() as session, pytest.raises(HandlerError, match=reason):
        process_next_job(session, handlers)
    handlers("other")(lambda payload: None)
    create_worker(handlers)


@pytest.mark.parametrize(
    ("models", "reason"),
    [
        (
            {"job_model": Numbered, "archived_job_model": ArchivedJob},
            "archived_job_model=ArchivedJob has a job_id of type Uuid",
        ),
        (
            {
                "job_model": Numbered,
                "archived_job_model": NumberedArchive,
                "running_job_model": RunningJob,
            },
            "running_job_model=RunningJob has a job_id of type Uuid",
        ),
        ({"running_job_model": NumberedRunning}, "running_job_model=NumberedRunning has a job_id"),
    ],
)
def test_different_id_types_of_the_tables_are_rejected(models: dict[str, Any], reason: str) -> None:
    """The archive and the markers must have the ``job_id`` type of the jobs."""
    with pytest.raises(ModelError, match=reason):
        create_worker(**models)


@pytest.mark.parametrize("ondelete", [None, "SET NULL"])
def test_a_joined_table_without_on_delete_cascade_is_rejected(ondelete: str | None) -> None:
    """Without the cascade, finished jobs could not be moved to the archive."""

    class Own(DeclarativeBase):
        pass

    class Parent(JobMixin, Own):
        __tablename__ = "parent"
        __mapper_args__ = {"polymorphic_on": "job_type"}  # noqa: RUF012

    class Child(Parent):
        __tablename__ = "child"
        __mapper_args__ = {"polymorphic_identity": "child"}  # noqa: RUF012
        job_id: Mapped[Any] = mapped_column(
            ForeignKey("parent.job_id", ondelete=ondelete), primary_key=True
        )

    class OwnArchive(ArchivedJobMixin, Own):
        __tablename__ = "own_archive"

    with pytest.raises(ModelError, match=r'ForeignKey\("parent.job_id", ondelete="CASCADE"\)'):
        create_worker(job_model=Parent, archived_job_model=OwnArchive)
