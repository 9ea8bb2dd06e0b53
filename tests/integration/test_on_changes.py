"""Jobs that are enqueued when a session inserts, updates or deletes objects."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import (
    URL,
    Engine,
    ForeignKey,
    String,
    create_engine,
    event,
    func,
    insert,
    inspect,
    select,
    text,
)
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_scoped_session,
    async_sessionmaker,
)
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    mapped_column,
    relationship,
    scoped_session,
    sessionmaker,
)

from sqlalchemy_proletarian import HandlerError, Handlers, Job, PayloadError, QueueWorker

from .loops import in_a_loop
from .orders import SendInvoice
from .support import MINUTE, EmailJob, archived, listening, only_queued, queued


class Office(DeclarativeBase):
    """A base for tables that the shop does not have."""


class Letter(Office):
    """An object whose changes enqueue jobs."""

    __tablename__ = "changes_letter"

    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(default="letter")
    subject: Mapped[str | None]
    status: Mapped[str] = mapped_column(String(20), server_default="new")
    number: Mapped[int] = mapped_column(server_default=text("7"), server_onupdate=text("8"))
    pages: Mapped[list[Page]] = relationship(cascade="all, delete-orphan")

    __mapper_args__ = {  # noqa: RUF012 - as SQLAlchemy documents
        "polymorphic_on": "kind",
        "polymorphic_identity": "letter",
        "eager_defaults": False,
    }


class Parcel(Letter):
    """A subclass with a table of its own."""

    __tablename__ = "changes_parcel"
    id: Mapped[int] = mapped_column(ForeignKey(Letter.id), primary_key=True)
    weight: Mapped[int]

    __mapper_args__ = {"polymorphic_identity": "parcel"}  # noqa: RUF012


class Page(Office):
    """An object that is deleted with its letter, or when it is removed from it."""

    __tablename__ = "changes_page"
    id: Mapped[int] = mapped_column(primary_key=True)
    letter_id: Mapped[int] = mapped_column(ForeignKey(Letter.id))
    text: Mapped[str]


@pytest.fixture
def office(engine: Engine) -> Iterator[Engine]:
    """Create these tables as well."""
    Office.metadata.create_all(engine)
    yield engine
    Office.metadata.drop_all(engine)


@pytest.fixture
def maker(office: Engine) -> sessionmaker[Session]:
    return sessionmaker(office)


@pytest.fixture
def handlers(maker: sessionmaker[Session]) -> Handlers:
    handlers = Handlers()
    handlers.listen(maker)
    return handlers


def jobs(engine: Engine) -> list[tuple[str, str]]:
    """Return the types and payloads of the queued jobs."""
    return sorted((job.job_type, job.payload) for job in queued(engine))


def by_id(letter: Any) -> int:
    return int(letter.id)


def test_the_job_is_inserted_with_the_object(
    maker: sessionmaker[Session], handlers: Handlers, office: Engine, url: URL
) -> None:
    """The same flush inserts it; it has the primary key, and wakes workers at the commit."""

    @handlers("welcome", queue="mails", priority=2)
    def welcome(letter_id: int) -> None: ...

    handlers.on_insert(Letter, welcome, payload=by_id)
    with listening(url) as announced:
        with maker() as session:
            letter = Letter(subject="a")
            session.add(letter)
            session.flush()
            letter_id = letter.id
            (row,) = session.execute(text("SELECT payload, queue, priority FROM proletarian.job"))
            assert row == (str(letter_id), "mails", 2)
            assert queued(office) == []
            session.commit()
        assert announced() == ["mails"]
    assert jobs(office) == [("welcome", str(letter_id))]


def test_server_defaults_are_known(
    maker: sessionmaker[Session], handlers: Handlers, office: Engine
) -> None:
    """``payload`` and ``when`` may read what the database has made of the row."""
    handlers.on_insert(
        Letter,
        "index",
        payload=lambda letter: [letter.status, letter.number],
        when=lambda letter: letter.status == "new",
    )
    handlers.on_insert(Letter, "index", payload=by_id, when=lambda letter: letter.status == "old")
    handlers.on_update(Letter, "changed", payload=lambda letter: letter.status)
    with maker.begin() as session:
        letter = Letter()
        session.add(letter)
        session.flush()
        letter.subject = "b"
    assert jobs(office) == [("changed", '"new"'), ("index", '["new",7]')]


def test_rollbacks_take_the_job_away(
    maker: sessionmaker[Session], handlers: Handlers, office: Engine, url: URL
) -> None:
    """That applies to a SAVEPOINT as well; no worker is woken."""
    handlers.on_insert(Letter, "welcome", payload=lambda letter: letter.subject)
    with listening(url) as announced:
        with maker() as session:
            session.add(Letter(subject="rolled back"))
            session.flush()
            session.rollback()
            with session.begin_nested() as savepoint:
                session.add(Letter(subject="undone"))
                session.flush()
                savepoint.rollback()
            session.commit()
            assert announced() == []
            with session.begin_nested():
                session.add(Letter(subject="kept"))
            session.commit()
        assert announced() == ["default"]
    assert jobs(office) == [("welcome", '"kept"')]


def test_an_error_fails_the_flush(
    maker: sessionmaker[Session], handlers: Handlers, office: Engine
) -> None:
    """Neither the object nor the job is there."""
    handlers.on_insert(Letter, "welcome", payload=lambda letter: {letter.id})
    with maker() as session:
        session.add(Letter())
        with pytest.raises(PayloadError):
            session.commit()
        session.rollback()
        assert session.scalars(select(Letter)).all() == []
    assert queued(office) == []


def test_updates(maker: sessionmaker[Session], handlers: Handlers, office: Engine) -> None:
    """Only what really changed counts, and only the chosen columns."""
    handlers.on_update(Letter, "any", payload=lambda letter: letter.subject)
    handlers.on_update(
        Letter, "status", payload=lambda letter: letter.status, columns=[Letter.status, "kind"]
    )
    handlers.on_update(
        Letter,
        "sent",
        payload=lambda letter: letter.status,
        when=lambda letter: inspect(letter).attrs.status.history.deleted == ["new"],
    )
    with maker.begin() as session:
        session.add(Letter(id=1, subject="a"))
    assert jobs(office) == []
    with maker.begin() as session:
        same = session.get_one(Letter, 1)
        same.subject = "b"
        same.subject = "a"
        same.pages.append(Page(text="1"))
    assert jobs(office) == []
    with maker.begin() as session:
        session.get_one(Letter, 1).subject = "b"
    assert jobs(office) == [("any", '"b"')]
    with maker.begin() as session:
        found = session.get_one(Letter, 1)
        assert found.status == "new"
        found.status = "sent"
    assert jobs(office) == [
        ("any", '"b"'),
        ("any", '"b"'),
        ("sent", '"sent"'),
        ("status", '"sent"'),
    ]


def test_deletes(maker: sessionmaker[Session], handlers: Handlers, office: Engine) -> None:
    """The object has its values, also if they had expired; cascades and orphans count."""
    handlers.on_delete(Letter, "gone", payload=lambda letter: [letter.id, letter.subject])
    handlers.on_delete(
        Page, "page", payload=lambda page: page.text, when=lambda page: page.text != "3"
    )
    with maker() as session:
        letter = Letter(subject="a", pages=[Page(text=str(n)) for n in range(4)])
        session.add(letter)
        session.commit()
        number = letter.id
        letter.pages.pop(0)
        session.commit()
        assert jobs(office) == [("page", '"0"')]
        session.delete(letter)  # expired by the commit
        session.commit()
    expected = [("gone", f'[{number},"a"]'), ("page", '"0"'), ("page", '"1"'), ("page", '"2"')]
    assert jobs(office) == expected


def test_subclasses_count(maker: sessionmaker[Session], handlers: Handlers, office: Engine) -> None:
    """A trigger for the base class fires once for an object of a subclass."""
    handlers.on_insert(Letter, "letter", payload=by_id)
    handlers.on_insert(Parcel, "parcel", payload=lambda parcel: parcel.weight)
    handlers.on_update(Letter, "changed", payload=lambda letter: letter.kind)
    with maker.begin() as session:
        session.add_all([Letter(id=1), Parcel(id=2, weight=5)])
        session.flush()
        session.get_one(Parcel, 2).weight = 6
    assert jobs(office) == [
        ("changed", '"parcel"'),
        ("letter", "1"),
        ("letter", "2"),
        ("parcel", "5"),
    ]


def test_handlers_by_job_type(
    maker: sessionmaker[Session], handlers: Handlers, office: Engine
) -> None:
    """The handler may be registered later; a type of another program needs no handler."""
    handlers.on_insert(Letter, "later", payload=by_id, process_in=MINUTE, priority=1)
    handlers.on_insert(Letter, "elsewhere", payload=by_id, queue="theirs", notify=False)

    @handlers("later", queue="mails", priority=4)
    def later(letter_id: int) -> None: ...

    with maker.begin() as session:
        session.add(Letter())
    found = {job.job_type: job for job in queued(office)}
    assert (found["later"].queue, found["later"].priority) == ("mails", 1)
    assert found["later"].process_at - found["later"].enqueued_at == MINUTE
    assert found["elsewhere"].queue == "theirs"


def test_the_key_of_a_unique_handler(
    maker: sessionmaker[Session], handlers: Handlers, office: Engine
) -> None:
    """Many changes become one job."""

    @handlers("index", unique_key=lambda kind: f"index {kind}", unique_while="queued")
    def index(kind: str) -> None: ...

    handlers.on_insert(Letter, index, payload=lambda letter: letter.kind)
    for _ in range(2):
        with maker.begin() as session:
            session.add_all([Letter(), Letter()])
    assert only_queued(office).unique_key == "index letter"


def test_other_job_models(
    shop: Engine, maker: sessionmaker[Session], handlers: Handlers, office: Engine
) -> None:
    """The job goes to the table of ``job_model``; a job class is filled by ``payload``."""

    @handlers(SendInvoice)
    def send(job: SendInvoice, session: Session) -> None: ...

    handlers.on_insert(Letter, "mail", payload=by_id, job_model=EmailJob)
    handlers.on_insert(Letter, send, payload=lambda letter: SendInvoice(note=letter.subject))
    with maker.begin() as session:
        session.add(Letter(subject="a"))
    assert only_queued(shop, EmailJob).job_type == "mail"
    assert only_queued(shop, SendInvoice).note == "a"
    assert queued(office) == []


def test_bulk_operations_enqueue_nothing(
    maker: sessionmaker[Session], handlers: Handlers, office: Engine
) -> None:
    """They have no objects."""
    for on in (handlers.on_insert, handlers.on_update, handlers.on_delete):
        on(Letter, "job", payload=by_id)
    with maker.begin() as session:
        session.execute(insert(Letter), [{"subject": "a"}])
        session.bulk_save_objects([Letter(subject="b")])
        session.execute(text("UPDATE changes_letter SET subject = 'c'"))
    assert queued(office) == []


def test_only_the_sessions_that_were_named(office: Engine) -> None:
    """Other sessions and session makers enqueue nothing; nothing is enqueued twice."""

    class Own(Session):
        pass

    handlers = Handlers()
    assert handlers.listen(Own) is Own
    handlers.listen(Own)
    handlers.on_insert(Letter, "job", payload=lambda letter: letter.subject)
    one = Session(office)
    handlers.listen(one)
    scoped = scoped_session(sessionmaker(office))
    handlers.listen(scoped)
    for subject, session in [
        ("own", Own(office)),
        ("made", sessionmaker(office, class_=Own)()),
        ("one", one),
        ("scoped", scoped()),
        ("other", Session(office)),
        ("other", sessionmaker(office)()),
    ]:
        session.add(Letter(subject=subject))
        session.commit()
        session.close()
    assert [json for _, json in jobs(office)] == ['"made"', '"one"', '"own"', '"scoped"']


@pytest.mark.parametrize(
    "target",
    [
        Session,
        AsyncSession,
        async_sessionmaker(),
        create_engine("sqlite://"),
        scoped_session(Session),  # type: ignore[arg-type]
    ],
    ids=lambda target: type(target).__name__,
)
def test_no_listener_is_global(target: Any) -> None:
    """What concerns every session of the process is refused."""
    with pytest.raises(HandlerError, match="a subclass of Session of your own"):
        Handlers().listen(target)


def test_no_events_remain_on_session(handlers: Handlers) -> None:
    """The registry listens to the named class only."""
    handlers.on_insert(Letter, "job", payload=by_id)
    changes: Any = handlers._changes
    for name in ("before_flush", "after_flush", "after_flush_postexec"):
        assert not event.contains(Session, name, getattr(changes, f"_{name}"))


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda h: h.on_insert(int, "a", payload=by_id), r"on_insert\(int\) needs a mapped class"),
        (
            lambda h: h.on_insert(Letter, 7, payload=by_id),
            "registered handler or a job type, not 7",
        ),
        (lambda h: h.on_delete(Letter, "a", payload=7), "payload must be a function.*not 7"),
        (lambda h: h.on_insert(Letter, "a", payload=by_id, when=7), "when must be a function"),
        (
            lambda h: h.on_update(Letter, "a", payload=by_id, columns="status"),
            r"columns must be a collection of attributes, as in \['status'\]",
        ),
        (
            lambda h: h.on_update(Letter, "a", payload=by_id, columns=["stat"]),
            r"on_update\(Letter\): 'stat' is not a mapped attribute",
        ),
    ],
)
def test_arguments_are_checked(call: Any, reason: str) -> None:
    with pytest.raises(HandlerError, match=reason):
        call(Handlers())


@in_a_loop
async def test_in_asyncio(office: Engine, loop_engine: AsyncEngine) -> None:
    """The sync session class of an AsyncSession enqueues; so does its maker."""

    class Own(Session):
        pass

    class OwnAsync(AsyncSession):
        sync_session_class = Own

    handlers = Handlers()
    handlers.on_insert(Letter, "job", payload=lambda letter: [letter.id, letter.status])
    maker = async_sessionmaker(loop_engine, sync_session_class=sessionmaker())
    scoped = async_scoped_session(maker, lambda: None)
    handlers.listen(OwnAsync)
    handlers.listen(scoped)
    for session in (OwnAsync(loop_engine), maker(), AsyncSession(loop_engine)):
        async with session:
            session.add(Letter())
            await session.commit()
    assert [job.payload for job in queued(office)] == ['[1,"new"]', '[2,"new"]']


def test_in_the_session_of_a_handler(
    maker: sessionmaker[Session], handlers: Handlers, office: Engine, held: dict[str, Any]
) -> None:
    """A worker with the session maker enqueues in the transaction of its job."""
    handlers.on_insert(Letter, "second", payload=lambda letter: letter.subject)
    done: list[str] = []

    @handlers("first")
    def first(subject: str, session: Session) -> None:
        session.add(Letter(subject=subject))
        if subject == "fails":
            session.flush()
            raise ValueError("no")

    @handlers("second")
    def second(subject: str) -> None:
        done.append(subject)

    with maker.begin() as session:
        first.enqueue(session, "fails")
        first.enqueue(session, "works")
    QueueWorker(maker, handlers, **held).drain()
    assert done == ["works"]
    assert len(archived(office)) == 3


KILLED = """
import os, signal, sys
from sqlalchemy import create_engine, event
from sqlalchemy.orm import sessionmaker
from sqlalchemy_proletarian import Handlers
from tests.integration.test_on_changes import Letter

handlers = Handlers()
maker = sessionmaker(create_engine(sys.argv[1]))
handlers.on_insert(Letter, "job", payload=lambda letter: letter.id)
handlers.listen(maker)
with maker() as session:
    session.add(Letter(subject="killed"))
    session.flush()
    print("flushed", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_process_that_is_killed_after_the_flush(office: Engine, url: URL) -> None:
    """Neither the object nor the job is there."""
    program = [sys.executable, "-c", KILLED, url.render_as_string(hide_password=False)]
    done = subprocess.run(program, stdout=subprocess.PIPE, text=True, check=False)
    assert (done.stdout, done.returncode) == ("flushed\n", -9)
    with Session(office) as session:
        assert session.scalar(select(func.count()).select_from(Letter)) == 0
        assert session.scalar(select(func.count()).select_from(Job)) == 0


def test_objects_without_triggers_send_nothing(
    maker: sessionmaker[Session], handlers: Handlers, office: Engine
) -> None:
    """Objects of other classes enqueue nothing, and send no statements."""
    handlers.on_insert(Page, "page", payload=by_id)
    statements: list[str] = []
    with maker() as session:
        event.listen(
            session.connection(), "before_cursor_execute", lambda *args: statements.append(args[2])
        )
        session.add(Letter(subject="a"))
        session.flush()
        assert len(statements) == 1
