"""Every commit that inserts jobs notifies workers, however the jobs were enqueued."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from threading import Thread
from typing import Any

import pytest
from sqlalchemy import URL, Engine, create_engine, event, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, sessionmaker

from sqlalchemy_proletarian import Job, enqueue, enqueue_many, enqueue_unique

from .support import Note, listening

FLUSH_EVENTS = ["before_flush", "after_flush", "after_flush_postexec", "before_commit"]


def add_note(session: Session) -> None:
    session.add(Note(text="a"))


@pytest.mark.parametrize("name", FLUSH_EVENTS)
@pytest.mark.parametrize("on", ["class", "maker", "instance"])
@pytest.mark.parametrize("enqueued_before", [False, True], ids=["first-job", "later-job"])
def test_a_job_enqueued_by_a_session_listener_is_announced_once(
    shop: Engine, url: URL, name: str, on: str, enqueued_before: bool
) -> None:
    """A job that a session event listener enqueues during the commit is announced once."""

    class CustomSession(Session):
        pass

    make = sessionmaker(shop, class_=CustomSession)

    def listener(session: Session, *_: Any) -> None:
        if not session.info.get("enqueued"):
            session.info["enqueued"] = True
            enqueue(session, "job", queue=f"{name} {on} {enqueued_before}")

    with make() as session:
        if enqueued_before:
            enqueue(session, "job", queue="earlier")
            session.commit()
        target: Any = {"class": CustomSession, "maker": make, "instance": session}[on]
        event.listen(target, name, listener)
        add_note(session)
        with listening(url) as announced:
            session.commit()
            session.commit()  # a job added in after_flush_postexec is inserted by the next flush
            assert announced() == [f"{name} {on} {enqueued_before}"]


@pytest.mark.parametrize("name", ["before_insert", "after_insert"])
def test_a_job_enqueued_by_a_mapper_listener_is_announced(
    shop: Engine, url: URL, name: str
) -> None:
    """A job that a mapper event listener inserts through the connection is announced."""

    def listener(_mapper: Any, connection: Any, _target: Any) -> None:
        with Session(connection, join_transaction_mode="create_savepoint") as inner:
            enqueue(inner, "job", queue=name)
            inner.commit()

    event.listen(Note, name, listener)
    try:
        with listening(url) as announced, Session(shop) as session:
            add_note(session)
            session.commit()
            assert announced() == [name]
    finally:
        event.remove(Note, name, listener)


def test_a_queue_that_a_listener_sets_is_announced(shop: Engine, url: URL) -> None:
    """A "before_insert" listener of the application may set the queue of a job."""

    def set_queue(_mapper: Any, _connection: Any, job: Job) -> None:
        job.queue = "changed"

    event.listen(Job, "before_insert", set_queue)
    try:
        with listening(url) as announced, Session(shop) as session:
            session.add(Job(job_type="job"))
            session.commit()
            assert announced() == ["changed"]
    finally:
        event.remove(Job, "before_insert", set_queue)


def violate_a_constraint(session: Session) -> None:
    session.add(Note(id=1, text="a"))
    session.flush()


def violate_a_deferred_constraint(session: Session) -> None:
    session.execute(text("INSERT INTO deferred VALUES (1)"))


@pytest.mark.parametrize("fail", [violate_a_constraint, violate_a_deferred_constraint])
def test_a_repeated_commit_is_announced_once(
    shop: Engine, url: URL, fail: Callable[[Session], None]
) -> None:
    """A failed commit announces nothing; the commit that repeats it does."""
    with shop.begin() as connection:
        connection.execute(
            text("CREATE TABLE deferred (a int UNIQUE DEFERRABLE INITIALLY DEFERRED)")
        )
        connection.execute(text("INSERT INTO deferred VALUES (1)"))
    with Session(shop) as session, session.begin():
        session.add(Note(id=1, text="there"))
    try:
        with listening(url) as announced:
            for attempt in (fail, add_note):
                with suppress(IntegrityError), Session(shop) as session:
                    enqueue(session, "job", queue="repeated")
                    attempt(session)
                    session.commit()
            assert announced() == ["repeated"]
    finally:
        with shop.begin() as connection:
            connection.execute(text("DROP TABLE deferred"))


@pytest.mark.parametrize("undo", ["rollback", "close", "savepoint"])
def test_rolled_back_jobs_are_not_announced(shop: Engine, url: URL, undo: str) -> None:
    """Jobs enqueued after a rollback, also of an enclosing SAVEPOINT, are still announced."""
    with listening(url) as announced, Session(shop) as session:
        if undo == "savepoint":
            outer = session.begin_nested()
            with session.begin_nested():
                enqueue(session, "job", queue="undone")
            outer.rollback()
        else:
            enqueue(session, "job", queue="undone")
            session.flush()
            getattr(session, undo)()
        enqueue(session, "job", queue="done")
        with session.begin_nested():
            enqueue(session, "job", queue="in a savepoint")
        session.commit()
        assert sorted(announced()) == ["done", "in a savepoint"]


def test_jobs_are_announced_on_the_primary(shop: Engine, url: URL) -> None:
    """A session that reads from a replica sends NOTIFY where it inserts the job."""
    options = {"options": "-c default_transaction_read_only=on"}
    replica = create_engine(shop.url, connect_args=options)

    class Routing(Session):
        def get_bind(self, _mapper: Any = None, *, clause: Any = None, **_: Any) -> Engine:
            writes = self._flushing or getattr(clause, "is_dml", False)
            return shop if writes else replica

    with listening(url) as announced, Routing() as session:
        enqueue(session, "job", queue="routed")
        session.commit()
        enqueue_many(session, [("job", 1)], queue="many")
        session.commit()
        enqueue_unique(session, "job", unique_key="a", queue="unique")
        session.commit()
        assert announced() == ["many", "routed", "unique"]
    replica.dispose()


def test_clearing_session_info_loses_no_announcement(shop: Engine, url: URL) -> None:
    """``session.info`` may be cleared between enqueue and commit."""
    with listening(url) as announced, Session(shop) as session:
        enqueue(session, "job", queue="cleared")
        session.info.clear()
        session.commit()
        session.info.clear()
        enqueue(session, "job", queue="again")
        session.flush()
        session.info.clear()
        session.commit()
        assert announced() == ["again", "cleared"]


def test_jobs_of_a_joined_session_are_announced_when_the_outer_transaction_commits(
    shop: Engine, url: URL
) -> None:
    with listening(url) as announced, shop.connect() as connection:
        outer = connection.begin()
        with Session(connection, join_transaction_mode="create_savepoint") as session:
            enqueue(session, "job", queue="joined")
            session.commit()
        assert announced() == []
        outer.commit()
        assert announced() == ["joined"]


def test_enqueueing_adds_no_listeners(shop: Engine) -> None:
    """Listeners of a session or an engine would make each of its transactions slower."""
    with Session(shop) as session:
        ends = set()
        for _ in range(20):
            enqueue(session, "job")
            session.commit()
            ends.add(shop.dialect.do_commit)
        assert not session.dispatch.after_commit
    assert not shop.dispatch.commit
    assert len(ends) == 1


def test_concurrent_commits_announce_the_queue(shop: Engine, url: URL) -> None:
    """Each commit announces the queue at most once, and some commit announces it."""

    def commit() -> None:
        for _ in range(10):
            with Session(shop) as session, session.begin():
                enqueue(session, "job", queue="busy")

    threads = [Thread(target=commit) for _ in range(4)]
    with listening(url) as announced:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert 1 <= len(announced()) <= 40
