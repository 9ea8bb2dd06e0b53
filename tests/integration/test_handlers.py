"""What a handler may be, and which arguments it gets."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Engine
from sqlalchemy.orm import Session, sessionmaker

from sqlalchemy_proletarian import Handlers, Job, JSONSerializer, enqueue

from .kinds import Kind, either_sort_of_handler
from .support import Note, archived, notes, put


@either_sort_of_handler
def test_a_plain_callable_runs_jobs_of_every_type(engine: Engine, kind: Kind) -> None:
    put(engine, "a", {"x": [1, None]})
    put(engine, "b")
    seen: list[tuple[str, Any]] = []
    assert kind.run_all(engine, lambda job_type, payload: seen.append((job_type, payload))) == 2
    assert seen == [("a", {"x": [1, None]}), ("b", None)]


def test_a_worker_may_have_its_own_serializer(engine: Engine, kind: Kind) -> None:
    """The producer must use the same serializer."""

    class Plain(JSONSerializer):
        def encode(self, payload: Any, annotation: Any = None) -> str:
            return str(payload) if annotation is None else ""

        def decode(self, text: str, annotation: Any = None) -> Any:
            return text if annotation is None else None

    put(engine, "a", "no json", serializer=Plain())
    seen: list[Any] = []
    kind.run_all(engine, lambda _, payload: seen.append(payload), serializer=Plain())
    assert seen == ["no json"]


@either_sort_of_handler
def test_a_handler_gets_its_job(engine: Engine, kind: Kind) -> None:
    """The job has all its columns, and ``attempts`` includes the current run."""
    handlers = Handlers()
    seen: list[Any] = []

    @handlers("mail")
    def mail(payload: Any, job: Job) -> None:
        seen.append((job.job_id, job.queue, job.priority, job.attempts, job.payload))

    @handlers("both")
    def both(payload: Any, job: Job, session: Session) -> None:
        assert job in session
        assert session.get(Job, job.job_id) is job
        seen.append((job.job_id, job.queue, job.priority, job.attempts, job.payload))

    first = put(engine, "mail", 1, priority=3)
    second = put(engine, "both", 2)
    kind.run_all(engine, handlers)
    assert seen == [(first, "default", 3, 1, "1"), (second, "default", 5, 1, "2")]
    assert [job.attempts for job in archived(engine)] == [1, 1]


@either_sort_of_handler
def test_handlers_get_the_sessions_of_the_sessionmaker(shop: Engine, kind: Kind) -> None:
    """The session joins the job's transaction."""

    class TenantSession(Session):
        pass

    maker = sessionmaker(shop, class_=TenantSession, info={"tenant": 7}, expire_on_commit=False)
    handlers = Handlers()
    seen: list[Any] = []

    @handlers("mail")
    def mail(payload: Any, session: TenantSession) -> None:
        seen.append((isinstance(session, TenantSession), session.info["tenant"]))
        session.add(Note(text="kept"))

    put(shop, "mail")
    kind.run_all(maker, handlers)
    assert seen == [(True, 7)]
    assert notes(shop) == ["kept"]


@either_sort_of_handler
def test_a_handler_may_enqueue_jobs(engine: Engine, kind: Kind) -> None:
    """A job enqueued in the handler's session exists only if the handler's own job succeeds."""
    handlers = Handlers()

    @handlers("parent")
    def parent(payload: Any, session: Session) -> None:
        enqueue(session, "child", payload)
        if payload == "fails":
            raise ValueError

    handlers("child")(lambda payload: None)
    put(engine, "parent", "works")
    put(engine, "parent", "fails")
    assert kind.run_all(engine, handlers) == 3
    assert [(job.job_type, job.payload, job.status) for job in archived(engine)] == [
        ("parent", '"works"', "success"),
        ("parent", '"fails"', "failure"),
        ("child", '"works"', "success"),
    ]
