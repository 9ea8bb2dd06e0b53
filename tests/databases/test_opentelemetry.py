"""A trace goes on from the call that enqueues to the run, on every database."""

from __future__ import annotations

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from sqlalchemy_proletarian import enqueue, enqueue_many, enqueue_unique
from tests.integration.spans import Seen, attributes, id_of, linked, parent_of, seen, trace_of
from tests.integration.support import succeed

from .places import Place

__all__ = ["seen"]


def test_a_run_belongs_to_the_trace_of_its_producer(
    place: Place, engine: Engine, seen: Seen
) -> None:
    with seen.tracer.start_as_current_span("request"), Session(engine) as session, session.begin():
        enqueue(session, "mail")
        enqueue(session.connection(), "mail")
        enqueue_unique(session, "mail", unique_key="k")
        enqueue_many(session, [("mail", 1), ("mail", 2)])
    assert place.run_all(engine, succeed) == 5
    parents = [id_of(span) for span in seen.sent]
    assert sorted(map(str, map(parent_of, seen.processed))) == sorted(
        map(str, [*parents, parents[-1]])
    )
    assert len({trace_of(span) for span in seen.spans()}) == 1
    for run in seen.processed:
        assert linked(run) == {parent_of(run)}
        assert attributes(run)["messaging.destination.name"] == "default"
        assert attributes(run)["proletarian.job.outcome"] == "success"
