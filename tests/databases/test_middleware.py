"""Middleware writes in the transaction of its job, on every database."""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import Handlers, Job
from tests.integration.support import archived, put

from .places import Note, Place
from .test_life import notes


def test_middleware_writes_with_its_job(place: Place, engine: Engine) -> None:
    """Its writes commit with a success, and are undone with a failure."""
    handlers = Handlers()

    @handlers.middleware
    def audit(session: Session, job: Job) -> Iterator[None]:
        session.add(Note(text=f"before {job.payload}"))
        yield
        count = len(session.scalars(select(Note).where(Note.text == "handler")).all())
        session.add(Note(text=f"after {count}"))

    @handlers("write")
    def write(payload: str, session: Session) -> None:
        session.add(Note(text="handler"))
        if payload == "bad":
            raise ValueError(payload)

    put(engine, "write", "good")
    put(engine, "write", "bad")
    assert place.run_all(engine, handlers) == 2
    assert notes(engine) == ["after 1", 'before "good"', "handler"]
    assert [job.status for job in archived(engine)] == ["success", "failure"]
