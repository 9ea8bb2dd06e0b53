"""What a mapped class, a handler and a worker must be to go together."""

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
    __mapper_args__ = {"polymorphic_on": "job_type"}  # noqa: RUF012 - as SQLAlchemy spells it


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
def test_classes_that_no_handler_takes(job_class: Any) -> None:
    """A handler is registered for the mapped class of one type, and for no other class."""
    reason = f"{job_class.__name__} is not the class of one job type: such a class is mapped"
    with pytest.raises(HandlerError, match=reason):
        Handlers()(job_class)
    with pytest.raises(HandlerError, match=reason):
        Handlers().retry_strategy(job_class)


def test_the_first_parameter_is_the_job() -> None:
    """It is annotated with the class, one that it inherits from, or nothing."""
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


def test_a_class_where_a_payload_belongs() -> None:
    """Who takes a class for a payload is told how to register it."""
    with pytest.raises(HandlerError, match=r"for a job class, register it with @handlers\(Mail\)"):

        @Handlers()("mail")
        def handle(job: Mail) -> None: ...


@pytest.mark.parametrize("options", [{"queue": "a"}, {"priority": 1}, {"serializer": object()}])
def test_a_class_says_itself_where_its_jobs_go(options: dict[str, Any]) -> None:
    """Options that only ``handler.enqueue`` would heed are refused for a class."""
    with pytest.raises(HandlerError, match="Mail declares its queue and priority itself"):
        Handlers()(Mail, **options)


def test_one_handler_for_a_type() -> None:
    """A class and a string that are the same type cannot have a handler each."""
    handlers = Handlers()
    handlers("mail")(lambda payload: None)
    with pytest.raises(HandlerError, match="'mail' already has a handler"):
        handlers(Mail)(lambda job: None)


def test_a_handler_is_still_the_function() -> None:
    """It can be called with an object, as in a test of it."""

    @Handlers()(Mail)
    def handle(job: Mail) -> str:
        return job.job_type

    assert handle(Mail()) == "mail"


def serve(handlers: Any = print, **models: Any) -> None:
    QueueWorker(create_engine("postgresql+psycopg://"), handlers, **models)


def test_a_worker_serves_the_whole_table() -> None:
    """A worker given one class of a table is refused, with the model to give it."""
    models: Any = {"job_model": Mail, "archived_job_model": Archive}
    with pytest.raises(ModelError, match=r"so pass their base class, job_model=Queued"):
        serve(**models)
    with Session() as session, pytest.raises(ModelError, match="job_model=Queued"):
        process_next_job(session, print, **models)


def test_a_worker_without_a_handler_for_its_table() -> None:
    """A worker all of whose handlers are for classes of another table is refused."""
    handlers = Handlers()
    handlers(Mail)(lambda job: None)
    reason = "jobs of Job: the handler of Mail needs a worker with job_model=Queued"
    with pytest.raises(HandlerError, match=reason):
        serve(handlers)
    with Session() as session, pytest.raises(HandlerError, match=reason):
        process_next_job(session, handlers)
    handlers("other")(lambda payload: None)
    serve(handlers)


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
def test_ids_of_different_types(models: dict[str, Any], reason: str) -> None:
    """Archive and markers whose ids are not those of the jobs are refused, with what to declare."""
    with pytest.raises(ModelError, match=reason):
        serve(**models)


@pytest.mark.parametrize("ondelete", [None, "SET NULL"])
def test_a_table_of_its_own_must_cascade(ondelete: str | None) -> None:
    """The row of a joined table must go with its job: else finished jobs could not be archived."""

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
        serve(job_model=Parent, archived_job_model=OwnArchive)
