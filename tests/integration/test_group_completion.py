"""Leased jobs whose handlers only add objects complete together, and fail one by one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from threading import Barrier
from typing import Any

import pytest
from sqlalchemy import URL, Engine, ForeignKey, create_engine, event, select, text
from sqlalchemy.orm import Mapped, Session, mapped_column

from sqlalchemy_proletarian import Handlers, QueueWorker, manage

from .support import Log, Note, Shop, archived, eventually, notes, put

TOGETHER = 8
LEASE = timedelta(seconds=30)


class Tag(Shop):
    """A row with a unique name."""

    __tablename__ = "tag"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    note_id: Mapped[int | None] = mapped_column(ForeignKey("note.id"))


@pytest.fixture
def commits(url: URL) -> Iterator[tuple[Engine, list[Any]]]:
    """Yield an engine, and a list with an item for each commit on its pooled connections."""
    engine = create_engine(url, pool_size=TOGETHER)
    seen: list[Any] = []

    @event.listens_for(engine, "commit")
    def committed(connection: Any) -> None:
        if "note" in connection.info.pop("wrote", ()):
            seen.append(connection)

    @event.listens_for(engine, "before_cursor_execute")
    def executed(connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("INSERT INTO note"):
            connection.info["wrote"] = {"note"}

    yield engine, seen
    engine.dispose()


def handlers_that_end_together(count: int = TOGETHER) -> Handlers:
    """Return handlers that add a note, and end when ``count`` of them have added theirs."""
    handlers = Handlers()
    together = Barrier(count)

    @handlers("note")
    def add_note(payload: str, session: Session) -> None:
        session.add(Note(text=payload))
        together.wait(timeout=30)

    @handlers("tag")
    def add_tag(payload: str, session: Session) -> None:
        session.add(Tag(name=payload))
        together.wait(timeout=30)

    return handlers


def run(engine: Engine, handlers: Handlers, **options: Any) -> int:
    return QueueWorker(engine, handlers, threads=TOGETHER, lease=LEASE, **options).drain()


def statuses(engine: Engine) -> list[str]:
    return sorted(job.status for job in archived(engine))


def test_jobs_that_end_together_share_a_commit(
    shop: Engine, commits: tuple[Engine, list[Any]]
) -> None:
    engine, seen = commits
    for n in range(TOGETHER):
        put(shop, "note", str(n))
    assert run(engine, handlers_that_end_together()) == TOGETHER
    assert sorted(notes(shop)) == [str(n) for n in range(TOGETHER)]
    assert statuses(shop) == ["success"] * TOGETHER
    assert len(seen) < TOGETHER


def test_a_job_whose_objects_are_rejected_fails_alone(
    shop: Engine, commits: tuple[Engine, list[Any]]
) -> None:
    """The other jobs of its group complete, and its error is that of its own flush."""
    with Session(shop) as session, session.begin():
        session.add(Tag(name="taken"))
    for n in range(TOGETHER - 2):
        put(shop, "note", str(n))
    put(shop, "tag", "taken")
    put(shop, "tag", "free")
    log = Log()
    assert run(commits[0], handlers_that_end_together(), log=log) == TOGETHER
    assert statuses(shop) == ["failure"] + ["success"] * (TOGETHER - 1)
    (failed,) = [job for job in archived(shop) if job.status == "failure"]
    assert failed.payload == '"taken"'
    assert "UniqueViolation" in failed.error
    assert len(notes(shop)) == TOGETHER - 2
    with Session(shop) as session:
        assert sorted(session.scalars(select(Tag.name))) == ["free", "taken"]
    assert "lease-lost" not in log.events()


def test_a_job_that_is_cancelled_writes_nothing_and_the_others_complete(
    shop: Engine, commits: tuple[Engine, list[Any]]
) -> None:
    ids = [put(shop, "note", str(n)) for n in range(TOGETHER)]
    handlers = Handlers()
    started, end = Barrier(TOGETHER + 1), Barrier(TOGETHER + 1)

    @handlers("note")
    def add_note(payload: str, session: Session) -> None:
        session.add(Note(text=payload))
        started.wait(timeout=30)
        end.wait(timeout=30)

    options: Any = {"notify": False, "lease": LEASE}
    with QueueWorker(commits[0], handlers, threads=TOGETHER, **options):
        started.wait(timeout=30)
        with Session(shop) as session, session.begin():
            assert manage.cancel(session, ids[3]) == "cancelled"
        end.wait(timeout=30)
        eventually(lambda: len(archived(shop)) == TOGETHER)
    assert sorted(notes(shop)) == [str(n) for n in range(TOGETHER) if n != 3]
    assert statuses(shop) == ["cancelled"] + ["success"] * (TOGETHER - 1)


@contextmanager
def uncommitted_tag(engine: Engine, name: str) -> Iterator[None]:
    """Hold a lock for which another session waits that inserts a tag of that name."""
    with Session(engine) as session:
        session.add(Tag(name=name))
        session.flush()
        yield
        session.rollback()


def test_a_lock_delays_only_the_job_that_waits_for_it(
    shop: Engine, commits: tuple[Engine, list[Any]]
) -> None:
    for n in range(TOGETHER - 1):
        put(shop, "note", str(n))
    put(shop, "tag", "locked")
    worker = QueueWorker(commits[0], handlers_that_end_together(), threads=TOGETHER, lease=LEASE)
    with worker:
        with uncommitted_tag(shop, "locked"):
            eventually(lambda: len(archived(shop)) == TOGETHER - 1)
        eventually(lambda: len(archived(shop)) == TOGETHER)
    assert statuses(shop) == ["success"] * TOGETHER
    with Session(shop) as session:
        assert list(session.scalars(select(Tag.name))) == ["locked"]


def test_a_slow_statement_delays_only_its_own_job(
    shop: Engine, commits: tuple[Engine, list[Any]]
) -> None:
    slow = (
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS"
        " 'BEGIN PERFORM pg_sleep(3); RETURN NEW; END'"
    )
    trigger = "CREATE TRIGGER slow BEFORE INSERT ON tag FOR EACH ROW EXECUTE FUNCTION slow()"
    with shop.begin() as connection:
        connection.execute(text(slow))
        connection.execute(text(trigger))
    try:
        for n in range(TOGETHER - 1):
            put(shop, "note", str(n))
        put(shop, "tag", "slow")
        handlers = handlers_that_end_together()
        with QueueWorker(commits[0], handlers, threads=TOGETHER, lease=LEASE):
            eventually(lambda: len(archived(shop)) == TOGETHER - 1)
            with Session(shop) as session:
                assert session.scalars(select(Tag)).all() == [], "it is not done yet"
            eventually(lambda: len(archived(shop)) == TOGETHER)
    finally:
        with shop.begin() as connection:
            connection.execute(text("DROP FUNCTION slow CASCADE"))
    assert statuses(shop) == ["success"] * TOGETHER


def test_a_listener_for_the_commit_of_the_handlers_session_is_called(
    shop: Engine, commits: tuple[Engine, list[Any]]
) -> None:
    handlers, called = Handlers(), []

    @handlers("note")
    def add_note(payload: str, session: Session) -> None:
        session.add(Note(text=payload))
        event.listen(session, "after_commit", lambda _: called.append(notes(shop)))

    put(shop, "note", "heard")
    assert run(commits[0], handlers) == 1
    assert called == [["heard"]]


def test_no_lock_of_a_session_is_left_on_a_pooled_connection(
    shop: Engine, commits: tuple[Engine, list[Any]]
) -> None:
    """A connection whose state a listener has changed is closed, not returned to the pool."""
    inserts: list[Tag] = []

    @event.listens_for(Tag, "before_insert")
    def lock(_mapper: Any, connection: Any, tag: Tag) -> None:
        if not inserts:  # in the group, and not when the job completes on its own
            connection.execute(text("SELECT pg_advisory_lock(42)"))
        inserts.append(tag)

    put(shop, "tag", "locks")
    try:
        assert run(commits[0], handlers_that_end_together(1)) == 1
    finally:
        event.remove(Tag, "before_insert", lock)
    assert statuses(shop) == ["success"]
    assert len(inserts) == 2
    with shop.connect() as connection:
        locks = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'"
        assert connection.scalar(text(locks)) == 0
