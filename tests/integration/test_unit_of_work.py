"""Writes of the handlers of one batch: flushed together if possible, but isolated."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import Engine, event
from sqlalchemy.orm import Session, sessionmaker

from sqlalchemy_proletarian import Handlers, Job, enqueue, enqueue_many

from .kinds import Kind, either_sort_of_handler, transactions
from .support import FAST, MINUTE, Customer, EmailJob, Note, archived, notes, queued, rows

JOBS = 12


def run_together(
    kind: Kind,
    bind: Any,
    handlers: Handlers,
    engine: Engine,
    payloads: list[Any],
    *,
    watch: Callable[[Engine], object] = lambda engine: None,
) -> list[str]:
    """Run one job for each payload, in one batch in transaction mode; return their statuses.

    :param watch: called with the engine of the worker.
    """
    handlers("warm-up")(lambda payload: None)
    with Session(engine) as session, session.begin():
        enqueue_many(session, [("warm-up", None)] * FAST, priority=0)
        enqueue_many(session, [("write", payload) for payload in payloads])
    worker = kind.worker(bind, handlers, batch_window=10 * MINUTE)
    worker._core._assembly._batch_size.record("write", 0.0)  # a type known to be fast joins a batch
    watch(worker._core.settings.engine)
    worker.drain()
    return [job.status for job in archived(engine) if job.job_type == "write"]


@transactions
def test_added_objects_share_a_flush(shop: Engine, kind: Kind) -> None:
    """Objects that handlers only add are written with one SAVEPOINT for the batch."""
    handlers = Handlers()

    @handlers("write")
    def write(payload: int, session: Session) -> None:
        session.add(Note(text=f"note {payload}"))

    statements: Counter[str] = Counter()

    def watch(engine: Engine) -> None:
        @event.listens_for(engine, "before_cursor_execute")
        def count(_c: Any, _cursor: Any, statement: str, *_: Any) -> None:
            statements[statement.split(maxsplit=1)[0]] += 1

        event.listen(
            engine, "savepoint", lambda _connection, _name: statements.update(["savepoint"])
        )

    statuses = run_together(kind, shop, handlers, shop, list(range(JOBS)), watch=watch)
    assert statuses == ["success"] * JOBS
    assert set(notes(shop)) == {f"note {n}" for n in range(JOBS)}
    assert len(notes(shop)) == JOBS
    assert statements["savepoint"] == 1


@either_sort_of_handler
def test_a_failed_flush_fails_only_the_jobs_at_fault(shop: Engine, kind: Kind) -> None:
    """If a flush of several jobs fails, only the jobs at fault fail; no handler runs twice."""
    handlers = Handlers()
    ran: Counter[int] = Counter()

    @handlers("write")
    def write(payload: int, session: Session) -> None:
        ran[payload] += 1
        session.add(Customer(id=min(payload, 5), name=f"customer {payload}"))  # 5 is a duplicate
        session.add(Note(text=f"note {payload}"))

    statuses = run_together(kind, shop, handlers, shop, [0, 1, 5, 6, 2, 7, 3])
    assert Counter(statuses) == {"success": 5, "failure": 2}
    assert set(ran.values()) == {1}
    assert {"note 0", "note 1", "note 2", "note 3"} < set(notes(shop))
    assert len(notes(shop)) == 5
    assert sorted(c.id for c in rows(shop, Customer)) == [0, 1, 2, 3, 5]
    failed = [job for job in archived(shop) if job.status == "failure"]
    assert all("IntegrityError" in job.error for job in failed)


def test_keys_are_correct_after_a_failed_flush(shop: Engine, kind: Kind) -> None:
    """Generated ids and their foreign keys are correct after a failed flush."""
    handlers = Handlers()

    @handlers("write")
    def write(payload: int, session: Session) -> None:
        customer = Customer(name=f"customer {payload}")
        session.add(EmailJob(job_type="later", payload="null", customer=customer))
        if payload == 3:
            session.add(Note(text=None))

    statuses = run_together(kind, shop, handlers, shop, list(range(5)))
    assert Counter(statuses) == {"success": 4, "failure": 1}
    names = {customer.id: customer.name for customer in rows(shop, Customer)}
    found = [names[job.customer_id] for job in queued(shop, EmailJob)]
    assert sorted(found) == ["customer 0", "customer 1", "customer 2", "customer 4"]


def test_objects_of_a_failed_handler_are_not_written(shop: Engine, kind: Kind) -> None:
    """Objects added by a handler that fails are not written."""
    handlers = Handlers()

    @handlers("write")
    def write(payload: int, session: Session) -> None:
        session.add(Note(text=f"note {payload}"))
        if payload % 2:
            raise ValueError(payload)

    run_together(kind, shop, handlers, shop, list(range(6)))
    assert notes(shop) == ["note 0", "note 2", "note 4"]


@pytest.mark.parametrize("query", [False, True])
def test_handlers_do_not_see_each_others_objects(shop: Engine, kind: Kind, query: bool) -> None:
    """The session of a handler contains no objects of earlier handlers of the batch."""
    handlers = Handlers()
    seen: list[int] = []

    @handlers("write")
    def write(payload: int, session: Session) -> None:
        seen.append(len(session.new) + len(session.identity_map))
        session.add(Note(text=f"note {payload}"))
        if query and payload % 3 == 0:
            assert session.query(Note).filter_by(text=f"note {payload}").count() == 1

    run_together(kind, shop, handlers, shop, list(range(9)))
    assert seen == [0] * 9
    assert sorted(notes(shop)) == sorted(f"note {n}" for n in range(9))


def test_session_events_of_the_sessionmaker_fire(shop: Engine, kind: Kind) -> None:
    """Listeners on the user's sessionmaker see the objects that handlers add."""
    handlers = Handlers()

    @handlers("write")
    def write(payload: int, session: Session) -> None:
        session.add(Note(text="plain"))

    maker = sessionmaker(shop)

    @event.listens_for(maker, "before_flush")
    def stamp(session: Session, *_: Any) -> None:
        for note in session.new:
            note.text = "stamped"

    run_together(kind, maker, handlers, shop, list(range(3)))
    assert notes(shop) == ["stamped"] * 3


@either_sort_of_handler
def test_jobs_enqueued_by_handlers_run(shop: Engine, kind: Kind) -> None:
    """Jobs that a handler enqueues in its session run after its own job has completed."""
    handlers = Handlers()

    @handlers("write")
    def write(payload: int, session: Session, job: Job) -> None:
        enqueue(session, "next", payload)

    @handlers("next")
    def follow(payload: int, session: Session) -> None:
        session.add(Note(text=f"followed {payload}"))

    run_together(kind, shop, handlers, shop, list(range(5)))
    assert sorted(notes(shop)) == [f"followed {n}" for n in range(5)]
    assert queued(shop) == []
