"""Connection state that a handler changes and that a rollback does not restore."""

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


def run(place: Place, engine: Engine, change: str, query: str) -> list[Any]:
    """Run jobs that change the state alternately with jobs that read it; return what they read."""
    seen: list[Any] = []
    handlers = Handlers()

    @handlers("changes")
    def changes(payload: Any, session: Session) -> None:
        session.add(Note(text=str(payload)))
        session.flush()
        session.execute(text(change))
        if payload == "fails":
            raise ValueError("a failed job leaves no change either")

    @handlers("reads")
    def reads(payload: Any, session: Session) -> None:
        seen.append(session.scalar(text(query)))

    for payload in (1, "fails", 2):
        put(engine, "reads")
        put(engine, "changes", payload)
    put(engine, "reads")
    place.run_all(engine, handlers, batch_window=MINUTE)
    assert sorted(job.status for job in archived(engine)) == ["failure"] + ["success"] * 6
    assert sorted(note.text for note in rows(engine, Note)) == ["1", "2"]
    return seen


@only(lambda place: place.is_mysql)
@pytest.mark.parametrize("change", CHANGES)
def test_mysql_variables_and_settings(place: Place, engine: Engine, change: str) -> None:
    """A variable, setting or schema that a job changes does not affect later jobs."""
    seen = run(place, engine, *CHANGES[change])
    assert len(seen) == 4
    assert len(set(seen)) == 1


@only(lambda place: place.server == "sqlite")
def test_sqlite_pragmas(place: Place, engine: Engine) -> None:
    """A pragma that a job changes does not affect later jobs."""
    seen = run(place, engine, "PRAGMA cache_size = 77", "PRAGMA cache_size")
    assert len(seen) == 4
    assert 77 not in seen
