"""Jobs for changes of objects, on every database."""

from __future__ import annotations

from sqlalchemy import Engine
from sqlalchemy.orm import Session, sessionmaker

from sqlalchemy_proletarian import Handlers
from tests.integration.support import queued

from .places import Note, Place


def test_jobs_for_changes(producer: Place, engine: Engine) -> None:
    """The jobs have the generated key, and a SAVEPOINT takes them away."""
    maker: sessionmaker[Session] = sessionmaker(engine)
    handlers = Handlers()

    @handlers("index", unique_key=lambda note_id: f"note {note_id}", on_conflict="replace")
    def index(note_id: int) -> None: ...

    handlers.listen(maker)
    handlers.on_insert(Note, index, payload=lambda note: note.id)
    handlers.on_update(Note, "changed", payload=lambda note: note.text, columns=[Note.text])
    handlers.on_delete(Note, "gone", payload=lambda note: note.text)
    with maker() as session:
        note = Note(text="a")
        session.add(note)
        session.flush()
        number = note.id
        with session.begin_nested() as savepoint:
            session.add(Note(text="undone"))
            session.flush()
            savepoint.rollback()
        note.text = "b"
        session.commit()
        session.delete(note)
        session.commit()
    found = sorted((job.job_type, job.payload, job.unique_key) for job in queued(engine))
    assert found == [
        ("changed", '"b"', None),
        ("gone", '"b"', None),
        ("index", str(number), f"note {number}"),
    ]
