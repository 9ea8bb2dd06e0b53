"""What handlers of one batch write through their session: together where it can be, never mixed."""

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
    """Run one job for each payload, in one batch if there are batches; return how they ended.

    :param watch: called with the engine of the worker.
    """
    handlers("warm-up")(lambda payload: None)
    with Session(engine) as session, session.begin():
        enqueue_many(session, [("warm-up", None)] * FAST, priority=0)
        enqueue_many(session, [("write", payload) for payload in payloads])
    worker = kind.worker(bind, handlers, batch_window=10 * MINUTE)
    worker._core._pace.record("write", 0.0)  # known to be fast: it need not run alone first
    watch(worker._core._engine)
    worker.drain()
    return [job.status for job in archived(engine) if job.job_type == "write"]


@transactions
def test_added_objects_share_a_flush(shop: Engine, kind: Kind) -> None:
    """What the handlers of a batch only add is written in few statements and one SAVEPOINT."""
    handlers = Handlers()

    @handlers("write")
    def write(payload: int, session: Session) -> None:
        session.add(Note(text=f"note {payload}"))

    sent: Counter[str] = Counter()

    def watch(engine: Engine) -> None:
        @event.listens_for(engine, "before_cursor_execute")
        def count(_c: Any, _cursor: Any, statement: str, *_: Any) -> None:
            sent[statement.split(maxsplit=1)[0]] += 1

        event.listen(engine, "savepoint", lambda _connection, _name: sent.update(["savepoint"]))

    ended = run_together(kind, shop, handlers, shop, list(range(JOBS)), watch=watch)
    assert ended == ["success"] * JOBS
    assert set(notes(shop)) == {f"note {n}" for n in range(JOBS)}
    assert len(notes(shop)) == JOBS
    assert sent["savepoint"] == 1


@either_sort_of_handler
def test_a_flush_that_fails_costs_one_job(shop: Engine, kind: Kind) -> None:
    """Of objects flushed together one is refused: its job fails, no handler runs twice."""
    handlers = Handlers()
    ran: Counter[int] = Counter()

    @handlers("write")
    def write(payload: int, session: Session) -> None:
        ran[payload] += 1
        session.add(Customer(id=min(payload, 5), name=f"customer {payload}"))  # the 5 comes often
        session.add(Note(text=f"note {payload}"))

    ended = run_together(kind, shop, handlers, shop, [0, 1, 5, 6, 2, 7, 3])
    assert Counter(ended) == {"success": 5, "failure": 2}
    assert set(ran.values()) == {1}
    assert {"note 0", "note 1", "note 2", "note 3"} < set(notes(shop))
    assert len(notes(shop)) == 5
    assert sorted(c.id for c in rows(shop, Customer)) == [0, 1, 2, 3, 5]
    failed = [job for job in archived(shop) if job.status == "failure"]
    assert all("IntegrityError" in job.error for job in failed)


def test_keys_are_made_anew_when_a_flush_is_repeated(shop: Engine, kind: Kind) -> None:
    """Generated ids and the foreign keys that follow them are right after a failed flush too."""
    handlers = Handlers()

    @handlers("write")
    def write(payload: int, session: Session) -> None:
        customer = Customer(name=f"customer {payload}")
        session.add(EmailJob(job_type="later", payload="null", customer=customer))
        if payload == 3:
            session.add(Note(text=None))

    ended = run_together(kind, shop, handlers, shop, list(range(5)))
    assert Counter(ended) == {"success": 4, "failure": 1}
    names = {customer.id: customer.name for customer in rows(shop, Customer)}
    found = [names[job.customer_id] for job in queued(shop, EmailJob)]
    assert sorted(found) == ["customer 0", "customer 1", "customer 2", "customer 4"]


def test_a_handler_that_raises_leaves_nothing_it_added(shop: Engine, kind: Kind) -> None:
    """Objects of a handler that fails after adding them are not written with the others'."""
    handlers = Handlers()

    @handlers("write")
    def write(payload: int, session: Session) -> None:
        session.add(Note(text=f"note {payload}"))
        if payload % 2:
            raise ValueError(payload)

    run_together(kind, shop, handlers, shop, list(range(6)))
    assert notes(shop) == ["note 0", "note 2", "note 4"]


@pytest.mark.parametrize("looks", [False, True])
def test_handlers_do_not_see_each_others_objects(shop: Engine, kind: Kind, looks: bool) -> None:
    """A handler finds its session empty, whatever those before it in the batch have added."""
    handlers = Handlers()
    seen: list[int] = []

    @handlers("write")
    def write(payload: int, session: Session) -> None:
        seen.append(len(session.new) + len(session.identity_map))
        session.add(Note(text=f"note {payload}"))
        if looks and payload % 3 == 0:
            assert session.query(Note).filter_by(text=f"note {payload}").count() == 1

    run_together(kind, shop, handlers, shop, list(range(9)))
    assert seen == [0] * 9
    assert sorted(notes(shop)) == sorted(f"note {n}" for n in range(9))


def test_session_events_of_the_users_sessionmaker_fire(shop: Engine, kind: Kind) -> None:
    """Listeners on the user's sessionmaker see what handlers add before it is written."""
    handlers = Handlers()

    @handlers("write")
    def write(payload: int, session: Session) -> None:
        session.add(Note(text="plain"))

    maker = sessionmaker(shop)

    @event.listens_for(maker, "before_flush")
    def stamp(session: Session, *_: Any) -> None:
        for thing in session.new:
            thing.text = "stamped"

    run_together(kind, maker, handlers, shop, list(range(3)))
    assert notes(shop) == ["stamped"] * 3


@either_sort_of_handler
def test_jobs_enqueued_by_handlers_run(shop: Engine, kind: Kind) -> None:
    """A handler enqueues through its session: the new job exists when its own has completed."""
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
