"""Results: what handlers return, stored in the archive."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from math import inf
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import Engine, Integer, event, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqlalchemy_proletarian import (
    ArchivedJob,
    ArchivedJobMixin,
    Handlers,
    Job,
    JobFailedError,
    JobMixin,
    JobNotFinishedError,
    JobNotFoundError,
    ModelError,
    NoResultError,
    PayloadError,
    QueueWorker,
    ResultError,
    TransitSerializer,
    enqueue,
    manage,
    process_next_job,
)
from sqlalchemy_proletarian.asyncio import result as async_result
from sqlalchemy_proletarian.errors import HandlerError
from sqlalchemy_proletarian.store import claim_filter
from sqlalchemy_proletarian.testing import perform

from .kinds import Kind, either_sort_of_handler
from .loops import in_a_loop
from .orders import ArchivedShopJob, SendInvoice, ShopJob
from .support import (
    FAST,
    ArchivedEmailJob,
    EmailJob,
    Note,
    archived,
    notes,
    only_archived,
    put,
    queued,
    run_all,
)


def results(engine: Engine) -> list[str | None]:
    return [job.result for job in archived(engine)]


def the_result(engine: Engine, job_id: Any, **options: Any) -> Any:
    with Session(engine) as session:
        return manage.result(session, job_id, **options).value


@dataclass
class Total:
    amount: int
    day: date


def registered() -> Handlers:
    """Return handlers whose results are kept: with a session, without one, and with the job."""
    handlers = Handlers()

    @handlers("without", keep_result=True)
    def without(payload: int) -> Total:
        return Total(payload, date(2026, 5, 1))

    @handlers("session", keep_result=True)
    def with_session(payload: int, session: Session) -> Total:
        session.add(Note(text=str(payload)))
        return Total(payload, date(2026, 5, 1))

    @handlers("flushing", keep_result=True)
    def flushing(payload: int, session: Session) -> Total:
        session.add(Note(text=str(payload)))
        session.flush()
        return Total(payload, date(2026, 5, 1))

    @handlers("job", keep_result=True)
    def with_job(payload: int, job: Job) -> Total:
        return Total(payload + job.attempts, date(2026, 5, 1))

    return handlers


@either_sort_of_handler
def test_what_a_handler_returns_is_in_the_archive(shop: Engine, kind: Kind) -> None:
    """It is decoded to the type that the handler declares; without that, to plain values."""
    handlers = registered()
    ids = {name: put(shop, name, 1) for name in ("without", "session", "flushing", "job")}
    assert kind.run_all(shop, handlers) == 4
    for name, job_id in ids.items():
        expected = Total(2 if name == "job" else 1, date(2026, 5, 1))
        handler = handlers.find(name)
        assert the_result(shop, job_id, handler=handler) == expected
        assert the_result(shop, job_id, annotation=Total) == expected
        assert the_result(shop, job_id) == {"amount": expected.amount, "day": "2026-05-01"}
    assert notes(shop) == ["1", "1"]


@either_sort_of_handler
def test_middleware_passes_the_result_on(shop: Engine, kind: Kind) -> None:
    """Around plain and ``async`` handlers."""
    handlers = registered()

    @handlers.middleware
    def scope() -> Iterator[None]:
        yield

    job_id = put(shop, "without", 1)
    assert kind.run_all(shop, handlers) == 1
    assert the_result(shop, job_id, annotation=Total) == Total(1, date(2026, 5, 1))


def test_a_result_says_which_job_it_is_of(shop: Engine) -> None:
    handlers = Handlers()

    @handlers("once", keep_result=True, retry={"retries": 1})
    def once(payload: None, job: Job) -> str:
        if job.attempts == 1:
            raise ValueError
        return "again"

    job_id = put(shop, "once")
    run_all(shop, handlers)
    job = only_archived(shop)
    with Session(shop) as session:
        found = manage.result(session, job_id, handler=once)
    assert found == manage.JobResult(job_id, "once", "again", 2, job.enqueued_at, job.finished_at)


def test_none_is_a_result(shop: Engine, kind: Kind) -> None:
    """The result of a handler without ``keep_result`` is not kept, and is not None."""
    handlers = Handlers()

    @handlers("kept", keep_result=True)
    def kept(payload: None) -> None: ...

    @handlers("not-kept")
    def not_kept(payload: None) -> int:
        return 1

    one, other = put(shop, "kept"), put(shop, "not-kept")
    kind.run_all(shop, handlers)
    assert results(shop) == ["null", None]
    assert the_result(shop, one, handler=kept) is None
    with pytest.raises(NoResultError, match=f"job {other} .*keep_result=True"):
        the_result(shop, other, handler=not_kept)


@either_sort_of_handler
def test_jobs_of_one_batch(shop: Engine, kind: Kind) -> None:
    """Some have results, some do not, some fail: each ends as it would alone."""
    handlers = Handlers()

    @handlers("kept", keep_result=True)
    def kept(payload: int, session: Session) -> int:
        session.add(Note(text=str(payload), code=None))
        if payload % 5 == 0:
            raise ValueError
        return payload

    @handlers("plain")
    def plain(payload: int, session: Session) -> int:
        session.add(Note(text=str(payload)))
        return payload

    for n in range(FAST):
        put(shop, "kept", -1 - 5 * n, priority=0)
        put(shop, "plain", -1, priority=0)
    for n in range(1, 31):
        put(shop, "kept" if n % 2 else "plain", n)
    kind.run_batch(shop, handlers)
    late = [job for job in archived(shop) if job.priority == 5]
    ends = [(int(job.payload), job.job_type, job.status, job.result) for job in late]
    assert ends == [
        (
            n,
            "kept" if n % 2 else "plain",
            "failure" if n % 10 == 5 else "success",
            str(n) if n % 2 and n % 10 != 5 else None,
        )
        for n in range(1, 31)
    ]
    assert (
        sorted(map(int, notes(shop)))[-26:]
        == [n for n in range(1, 31) if n % 10 != 5 or n % 2 == 0][-26:]
    )
    assert queued(shop) == []


def test_objects_that_fail_at_the_end_leave_no_result(shop: Engine, kind: Kind) -> None:
    """Pending objects are flushed after the handler has returned."""
    handlers = Handlers()

    @handlers("kept", keep_result=True)
    def kept(payload: str, session: Session) -> str:
        session.add(Note(id=1, text=payload))
        return payload

    for payload in ("a", "b"):
        put(shop, "kept", payload)
    kind.run_batch(shop, handlers)
    assert [(job.status, job.result) for job in archived(shop)] == [
        ("success", '"a"'),
        ("failure", None),
    ]


class Opaque:
    def __repr__(self) -> str:
        return "opaque"


@either_sort_of_handler
def test_a_result_that_cannot_be_stored_fails_the_attempt(shop: Engine, kind: Kind) -> None:
    """What the handler wrote is undone, and the error names the place."""
    handlers = Handlers()

    @handlers("bad", keep_result=True, retry={"retries": 1})
    def bad(payload: Any, session: Session, job: Job) -> dict[str, Any]:
        session.add(Note(text="x"))
        session.flush()
        return {"items": [1, Opaque() if job.attempts == 1 else 2]}

    @handlers("typed", keep_result=True)
    def typed(payload: Any):  # type: ignore[no-untyped-def]
        return Total(1, date(2026, 5, 1))

    put(shop, "bad")
    put(shop, "typed")
    errors: list[str] = []
    handle_error = lambda event, data: errors.append(str(data.get("error")))  # noqa: E731
    kind.run_all(shop, handlers, log=handle_error)
    first, second = archived(shop)
    assert (first.status, first.result, first.attempts) == ("success", '{"items":[1,2]}', 2)
    assert "returned what cannot be kept: result['items'][1] is a " in "".join(errors)
    assert notes(shop) == ["x"]
    assert second.status == "failure"
    assert "result is a tests.integration.test_results.Total" in second.error
    assert "annotate what the handler returns" in second.error


def test_a_mapped_object_is_no_result(shop: Engine, kind: Kind) -> None:
    handlers = Handlers()

    @handlers("mapped", keep_result=True)
    def mapped(payload: None, session: Session) -> Any:
        note = Note(text="x")
        session.add(note)
        return note

    put(shop, "mapped")
    kind.run_all(shop, handlers)
    assert "result is a mapped object" in only_archived(shop).error
    assert notes(shop) == []


def test_why_there_is_no_result(shop: Engine) -> None:
    """Each reason has an error of its own, which says what there is to know."""
    handlers = Handlers()

    @handlers("fails", keep_result=True, retry={"retries": 1, "delays": [60_000]})
    def fails(payload: None) -> int:
        raise LookupError("no rates")

    @handlers("other", keep_result=True)
    def other(payload: None) -> int:
        return 1

    job_id = put(shop, "fails")
    with pytest.raises(JobNotFinishedError, match=r"in the queue 'default' since .* 0 attempts"):
        the_result(shop, job_id)
    run_all(shop, handlers)
    with pytest.raises(JobNotFinishedError, match="after 1 attempts: LookupError: no rates"):
        the_result(shop, job_id)
    with Session(shop) as session, session.begin():
        manage.reschedule(session, job_id, process_in=timedelta(0))
    run_all(shop, handlers)
    with pytest.raises(JobFailedError, match="type 'fails' failed: LookupError: no") as failed:
        the_result(shop, job_id)
    assert failed.value.status == "failure"
    assert "Traceback" in str(failed.value.error)
    copy = pickle.loads(pickle.dumps(failed.value))  # noqa: S301 - of this test
    assert (str(copy), copy.error) == (str(failed.value), failed.value.error)
    with Session(shop) as session, session.begin():
        cancelled = enqueue(session, "fails").job_id
        session.flush()
        manage.cancel(session, cancelled, reason="not needed")
    with pytest.raises(JobFailedError, match="was cancelled: not needed") as reason:
        the_result(shop, cancelled)
    assert (reason.value.status, reason.value.error) == ("cancelled", "not needed")
    with pytest.raises(JobNotFoundError, match=r"no job .* must be committed") as missing:
        the_result(shop, uuid4())
    assert isinstance(missing.value, ResultError | LookupError)
    done = put(shop, "other")
    run_all(shop, handlers)
    with pytest.raises(ValueError, match="another handler than that of 'fails'"):
        the_result(shop, done, handler=fails)
    with pytest.raises(PayloadError, match=r"result of the job .* cannot be decoded"):
        the_result(shop, done, annotation=str)


def test_a_session_sees_its_own_job(shop: Engine) -> None:
    """A pending object is flushed first."""
    with Session(shop) as session:
        job = enqueue(session, "job")
        with pytest.raises(JobNotFinishedError):
            manage.result(session, job.job_id)


def test_serializers(shop: Engine, kind: Kind) -> None:
    """A result has the serializer of its handler, or that of the worker."""
    handlers = Handlers()
    transit = TransitSerializer(keyword_names=False)

    @handlers("own", keep_result=True, serializer=transit)
    def own(payload: None) -> date:
        return date(2026, 5, 1)

    put(shop, "own", serializer=transit)
    kind.run_all(shop, handlers)
    (job,) = archived(shop)
    assert the_result(shop, job.job_id, handler=own) == date(2026, 5, 1)
    assert the_result(shop, job.job_id, annotation=date, serializer=transit) == date(2026, 5, 1)

    handlers = registered()
    job_id = put(shop, "without", 1, serializer=transit)
    kind.run_all(shop, handlers, serializer=transit)
    expected = Total(1, date(2026, 5, 1))
    handler = handlers.find("without")
    assert the_result(shop, job_id, handler=handler, serializer=transit) == expected


def test_a_handler_that_is_registered_later_keeps_results(shop: Engine, kind: Kind) -> None:
    handlers = Handlers()

    @handlers("other")
    def other(payload: None) -> None: ...

    worker = kind.worker(shop, handlers)

    @handlers("later", keep_result=True)
    def later(payload: None) -> int:
        return 3

    put(shop, "later")
    worker.drain()
    assert results(shop) == ["3"]


def test_the_job_of_a_class_has_a_result(shop: Engine, kind: Kind) -> None:
    """Of a job table of its own, with one class for each type."""
    handlers = Handlers()

    @handlers(SendInvoice, keep_result=True)
    def send(job: SendInvoice) -> str:
        return f"sent {job.note}"

    with Session(shop) as session, session.begin():
        job = SendInvoice(note="today")
        session.add(job)
        session.flush()
        job_id = job.job_id
    options = {"job_model": ShopJob, "archived_job_model": ArchivedShopJob}
    kind.run_all(shop, handlers, running_job_model=None, **options)
    assert the_result(shop, job_id, handler=send, **options) == "sent today"


def test_tables_of_your_own(shop: Engine, kind: Kind) -> None:
    options = {"job_model": EmailJob, "archived_job_model": ArchivedEmailJob}
    job_id = put(shop, "without", 1, job_model=EmailJob)
    kind.run_all(shop, registered(), **options)
    assert the_result(shop, job_id, annotation=Total, **options) == Total(1, date(2026, 5, 1))


def test_a_handler_that_removes_its_own_job_fails(shop: Engine, kind: Kind) -> None:
    handlers = Handlers()

    @handlers("removes", keep_result=True)
    def removes(payload: None, session: Session) -> int:
        session.execute(text("DELETE FROM proletarian.job"))
        return 1

    put(shop, "removes")
    kind.run_all(shop, handlers)
    job = only_archived(shop)
    assert (job.status, job.result) == ("failure", None)
    assert "removed its own job" in job.error


def test_a_retry_of_the_archived_job_has_a_result_of_its_own(shop: Engine) -> None:
    handlers = Handlers()

    @handlers("job", keep_result=True)
    def handle(payload: None, job: Job) -> str:
        return str(job.job_id)

    job_id = put(shop, "job")
    run_all(shop, handlers)
    with Session(shop) as session, session.begin():
        new = manage.retry(session, job_id)
    run_all(shop, handlers)
    assert the_result(shop, job_id) == str(job_id)
    assert the_result(shop, new) == str(new)


def statements_of(engine: Engine, handlers: Handlers, **options: Any) -> set[str]:
    """Return the different statements of a worker that runs three plain jobs."""
    for _ in range(3):
        put(engine, "plain", 1)
    found: list[str] = []
    keep = lambda *arguments: found.append(arguments[2])  # noqa: E731
    event.listen(engine, "before_cursor_execute", keep)
    try:
        QueueWorker(engine, handlers, **options).drain()
    finally:
        event.remove(engine, "before_cursor_execute", keep)
    return set(found)


def test_jobs_without_results_run_the_same_statements(
    shop: Engine, held: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether or not the worker keeps the results of other types."""
    # After slow claims, as on a busy machine, a worker looks for jobs with other statements.
    monkeypatch.setattr(claim_filter, "SLOW", inf)
    plain, keeping = Handlers(), Handlers()
    for handlers in (plain, keeping):

        @handlers("plain")
        def handle(payload: int) -> int:
            return payload

    @keeping("kept", keep_result=True)
    def kept(payload: int) -> int:
        return payload

    statements = statements_of(shop, plain, **held)
    assert statements_of(shop, keeping, **held) == statements
    assert not any("notify" in statement for statement in statements)
    assert not any("result" in statement for statement in statements)


def test_process_next_job_keeps_the_result(shop: Engine) -> None:
    with Session(shop) as session:
        job = enqueue(session, "session", 1)
        assert process_next_job(session, registered())
        assert manage.result(session, job.job_id, annotation=Total).value.amount == 1


def test_perform_checks_the_result(shop: Engine) -> None:
    handlers = Handlers()

    @handlers("bad", keep_result=True)
    def bad(payload: None) -> Any:
        return Opaque()

    with pytest.raises(PayloadError, match="cannot be kept: result is a"):
        perform(bad, None)


@in_a_loop
async def test_in_asyncio(shop: Engine, loop_engine: AsyncEngine) -> None:
    """The awaitable variant does the same; the plain one rejects an AsyncSession."""
    handlers = registered()
    job_id = put(shop, "without", 1)
    async with AsyncSession(loop_engine) as session:
        with pytest.raises(JobNotFinishedError):
            await async_result(session, job_id)
        await session.rollback()
        run_all(shop, handlers)
        found = await async_result(session, job_id, annotation=Total)
        assert found.value.amount == 1
        with pytest.raises(TypeError, match=r"asyncio\.result\(session, job_id\)"):
            manage.result(session, job_id)  # type: ignore[call-overload]


def test_the_option_is_checked_at_registration() -> None:
    handlers = Handlers()
    with pytest.raises(TypeError, match="keep_result must be True or False, not 1"):
        handlers("job", keep_result=1)  # type: ignore[arg-type]
    with pytest.raises(HandlerError, match=r"'job' .*no result can be decoded .*Opaque"):

        @handlers("job", keep_result=True)
        def handle(payload: None) -> Opaque: ...  # type: ignore[empty-body]

    @handlers("job", keep_result=False)
    def unkept(payload: None) -> Opaque: ...  # type: ignore[empty-body]


def test_a_column_of_another_use_is_rejected() -> None:
    """A column ``result`` of a model of your own."""

    class Base(DeclarativeBase):
        pass

    with pytest.raises(ModelError, match=r"column result of .*Bad is Integer.*another name"):

        class Bad(ArchivedJobMixin, Base):
            __tablename__ = "bad"
            result: Mapped[int] = mapped_column(Integer)  # type: ignore[assignment]

    class Task(JobMixin, Base):
        __tablename__ = "task"
        result: Mapped[str | None]

    class ArchivedTask(ArchivedJobMixin, Base):
        __tablename__ = "archived_task"

    engine = pytest.importorskip("sqlalchemy").create_engine("sqlite:///file")
    with pytest.raises(ModelError, match=r"column result of task .*give it another name"):
        QueueWorker(
            engine,
            Handlers(),
            job_model=Task,
            archived_job_model=ArchivedTask,
            running_job_model=None,
        )


def test_the_archive_refuses_a_result(shop: Engine, kind: Kind) -> None:
    """The attempt has failed, as for every success that the archive rejects."""
    with shop.begin() as connection:
        connection.execute(
            text(
                "ALTER TABLE proletarian.archived_job"
                " ADD CONSTRAINT short CHECK (length(result) < 5)"
            )
        )
    try:
        handlers = Handlers()

        @handlers("job", keep_result=True)
        def handle(payload: str) -> str:
            return payload

        put(shop, "job", "long text")
        put(shop, "job", "a")
        kind.run_batch(shop, handlers)
    finally:
        with shop.begin() as connection:
            connection.execute(text("ALTER TABLE proletarian.archived_job DROP CONSTRAINT short"))
    assert [(job.status, job.result) for job in archived(shop, ArchivedJob)] == [
        ("failure", None),
        ("success", '"a"'),
    ]
