"""State of a connection that a handler changes, where no rollback undoes it."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import Handlers
from tests.integration.support import MINUTE, archived, put, rows

from .places import Note, Place, only

CHANGES = {
    "a variable": ("SET @tenant = 'acme'", "SELECT @tenant"),
    "a setting": ("SET SESSION max_sort_length = 77", "SELECT @@max_sort_length"),
    "a schema": ("USE mysql", "SELECT DATABASE()"),
}


def run(place: Place, engine: Engine, change: str, look: str) -> list[Any]:
    """Run jobs that change something in turn with jobs that look; return what these have seen."""
    seen: list[Any] = []
    handlers = Handlers()

    @handlers("changes")
    def changes(payload: Any, session: Session) -> None:
        session.add(Note(text=str(payload)))
        session.flush()
        session.execute(text(change))
        if payload == "fails":
            raise ValueError("it leaves nothing either")

    @handlers("looks")
    def looks(payload: Any, session: Session) -> None:
        seen.append(session.scalar(text(look)))

    for payload in (1, "fails", 2):
        put(engine, "looks")
        put(engine, "changes", payload)
    put(engine, "looks")
    place.run_all(engine, handlers, batch_window=MINUTE)
    assert sorted(job.status for job in archived(engine)) == ["failure"] + ["success"] * 6
    assert sorted(note.text for note in rows(engine, Note)) == ["1", "2"]
    return seen


@only(lambda place: place.is_mysql)
@pytest.mark.parametrize("change", CHANGES)
def test_mysql(place: Place, engine: Engine, change: str) -> None:
    """No later job sees a variable, a setting or the schema that a job has changed."""
    seen = run(place, engine, *CHANGES[change])
    assert len(seen) == 4
    assert len(set(seen)) == 1


@only(lambda place: place.server == "sqlite")
def test_sqlite(place: Place, engine: Engine) -> None:
    """No later job sees a pragma that a job has changed."""
    seen = run(place, engine, "PRAGMA cache_size = 77", "PRAGMA cache_size")
    assert len(seen) == 4
    assert 77 not in seen
