"""When workers are told of jobs: whenever a commit has made them, whatever enqueued them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from threading import Thread
from typing import Any

import pytest
from sqlalchemy import URL, Engine, create_engine, event, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, sessionmaker

from sqlalchemy_proletarian import enqueue, enqueue_many, enqueue_unique

from .support import Note, listening

FLUSH_EVENTS = ["before_flush", "after_flush", "after_flush_postexec", "before_commit"]


def add_note(session: Session) -> None:
    session.add(Note(text="a"))


@pytest.mark.parametrize("name", FLUSH_EVENTS)
@pytest.mark.parametrize("on", ["class", "maker", "instance"])
@pytest.mark.parametrize("known", [False, True], ids=["first-job", "later-job"])
def test_listeners_of_a_session(shop: Engine, url: URL, name: str, on: str, known: bool) -> None:
    """A job that a listener of the session enqueues during the commit is announced, once."""

    class Own(Session):
        pass

    make = sessionmaker(shop, class_=Own)

    def listener(session: Session, *_: Any) -> None:
        if not session.info.get("enqueued"):
            session.info["enqueued"] = True
            enqueue(session, "job", queue=f"{name} {on} {known}")

    with make() as session:
        if known:
            enqueue(session, "job", queue="earlier")
            session.commit()
        target: Any = {"class": Own, "maker": make, "instance": session}[on]
        event.listen(target, name, listener)
        add_note(session)
        with listening(url) as heard:
            session.commit()
            session.commit()  # after_flush_postexec leaves it to the next flush
            assert heard() == [f"{name} {on} {known}"]


@pytest.mark.parametrize("name", ["before_insert", "after_insert"])
def test_listeners_of_a_mapper(shop: Engine, url: URL, name: str) -> None:
    """A job that is inserted by SQL in a listener of a mapper is announced."""

    def listener(_mapper: Any, connection: Any, _target: Any) -> None:
        with Session(connection, join_transaction_mode="create_savepoint") as inner:
            enqueue(inner, "job", queue=name)
            inner.commit()

    event.listen(Note, name, listener)
    try:
        with listening(url) as heard, Session(shop) as session:
            add_note(session)
            session.commit()
            assert heard() == [name]
    finally:
        event.remove(Note, name, listener)


def violate(session: Session) -> None:
    session.add(Note(id=1, text="a"))
    session.flush()


def violate_at_commit(session: Session) -> None:
    session.execute(text("INSERT INTO deferred VALUES (1)"))


@pytest.mark.parametrize("fail", [violate, violate_at_commit])
def test_a_commit_that_fails_and_is_repeated(
    shop: Engine, url: URL, fail: Callable[[Session], None]
) -> None:
    """The announcement of a commit that failed does not count for the one that succeeds."""
    with shop.begin() as connection:
        connection.execute(
            text("CREATE TABLE deferred (a int UNIQUE DEFERRABLE INITIALLY DEFERRED)")
        )
        connection.execute(text("INSERT INTO deferred VALUES (1)"))
    with Session(shop) as session, session.begin():
        session.add(Note(id=1, text="there"))
    try:
        with listening(url) as heard:
            for attempt in (fail, add_note):
                with suppress(IntegrityError), Session(shop) as session:
                    enqueue(session, "job", queue="repeated")
                    attempt(session)
                    session.commit()
            assert heard() == ["repeated"]
    finally:
        with shop.begin() as connection:
            connection.execute(text("DROP TABLE deferred"))


@pytest.mark.parametrize("then", ["rollback", "close", "savepoint"])
def test_what_is_rolled_back(shop: Engine, url: URL, then: str) -> None:
    """A rollback, and that of an enclosing SAVEPOINT, tells nobody; later jobs are told."""
    with listening(url) as heard, Session(shop) as session:
        if then == "savepoint":
            outer = session.begin_nested()
            with session.begin_nested():
                enqueue(session, "job", queue="undone")
            outer.rollback()
        else:
            enqueue(session, "job", queue="undone")
            session.flush()
            getattr(session, then)()
        enqueue(session, "job", queue="done")
        with session.begin_nested():
            enqueue(session, "job", queue="in a savepoint")
        session.commit()
        assert sorted(heard()) == ["done", "in a savepoint"]


def test_a_session_that_routes_to_a_replica(shop: Engine, url: URL) -> None:
    """The NOTIFY is sent where the job is inserted, not where the session reads."""
    options = {"options": "-c default_transaction_read_only=on"}
    replica = create_engine(shop.url, connect_args=options)

    class Routing(Session):
        def get_bind(self, _mapper: Any = None, *, clause: Any = None, **_: Any) -> Engine:
            writes = self._flushing or getattr(clause, "is_dml", False)
            return shop if writes else replica

    with listening(url) as heard, Routing() as session:
        enqueue(session, "job", queue="routed")
        session.commit()
        enqueue_many(session, [("job", 1)], queue="many")
        session.commit()
        enqueue_unique(session, "job", unique_key="a", queue="unique")
        session.commit()
        assert heard() == ["many", "routed", "unique"]
    replica.dispose()


def test_info_is_the_users(shop: Engine, url: URL) -> None:
    """Clearing ``session.info`` between enqueue and commit loses nothing."""
    with listening(url) as heard, Session(shop) as session:
        enqueue(session, "job", queue="cleared")
        session.info.clear()
        session.commit()
        session.info.clear()
        enqueue(session, "job", queue="again")
        session.flush()
        session.info.clear()
        session.commit()
        assert heard() == ["again", "cleared"]


def test_an_outer_transaction(shop: Engine, url: URL) -> None:
    """Jobs of a session that is joined into a transaction are told when that commits."""
    with listening(url) as heard, shop.connect() as connection:
        outer = connection.begin()
        with Session(connection, join_transaction_mode="create_savepoint") as session:
            enqueue(session, "job", queue="joined")
            session.commit()
        assert heard() == []
        outer.commit()
        assert heard() == ["joined"]


def test_a_session_that_lives_long(shop: Engine) -> None:
    """No number of jobs adds listeners to a session or to its engine."""
    with Session(shop) as session:
        counts = set()
        for _ in range(20):
            enqueue(session, "job")
            session.commit()
            listeners = (len(session.dispatch.after_commit), len(shop.dispatch.commit))
            counts.add(listeners)
    assert len(counts) == 1


def test_threads_that_commit_at_the_same_time(shop: Engine, url: URL) -> None:
    """Some of many commits in the same moment announce the queue, and not all of them."""

    def commit() -> None:
        for _ in range(10):
            with Session(shop) as session, session.begin():
                enqueue(session, "job", queue="busy")

    threads = [Thread(target=commit) for _ in range(4)]
    with listening(url) as heard:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert 1 <= len(heard()) <= 40
